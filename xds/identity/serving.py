"""The certificate that a server of ours shows to the API server, and the authority that has signed it.

One authority, of our own and for this alone, signs certificates that live for 90 days. Both are renewed after two thirds of their
lives. A new authority is trusted beside the old one first, and signs only when its certificate has been handed out: `renew` makes
one step at a time, and is called again and again.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=90)
AUTHORITY_LIFETIME = timedelta(days=3650)
_RENEWED_AFTER = 2 / 3
_EARLIER = timedelta(minutes=5)  # clocks differ


class Credentials(msgspec.Struct, frozen=True):
    """All PEM. `authorities` are those to be trusted, the newest, whose key `authority_key` is, first."""

    authorities: str
    authority_key: str
    certificate: str
    key: str


def renew(now: datetime, names: Sequence[str], credentials: Credentials | None, trusted: str) -> Credentials:
    """The credentials to have at `now` for these DNS names: the same where nothing is due.

    `trusted` are the authorities that clients know already, PEM. Credentials that cannot be read are made anew.
    """
    authorities = _load(credentials.authorities) if credentials else []
    if credentials is None or not authorities or not _usable(credentials):
        authority, key = _authority(now)
        return Credentials(_pem(authority), _key_pem(key), *_leaf(now, names, authority, key))
    newest = authorities[0]
    if _due(newest, now):
        authority, key = _authority(now)
        kept = [authority, *(a for a in authorities if a.not_valid_after_utc > now)]
        return msgspec.structs.replace(credentials, authorities="".join(map(_pem, kept)), authority_key=_key_pem(key))
    certificate = _load(credentials.certificate)[0]
    if _due(certificate, now) or _names(certificate) != set(names) or (certificate.issuer != newest.subject and newest in _load(trusted)):
        authority_key = serialization.load_pem_private_key(credentials.authority_key.encode(), None)
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        leaf, leaf_key = _leaf(now, names, newest, authority_key)
        return msgspec.structs.replace(credentials, certificate=leaf, key=leaf_key)
    return credentials


def expiry(credentials: Credentials) -> datetime:
    """When the certificate ends."""
    return _load(credentials.certificate)[0].not_valid_after_utc


def _usable(credentials: Credentials) -> bool:
    try:
        key = serialization.load_pem_private_key(credentials.authority_key.encode(), None)
        leaf_key = serialization.load_pem_private_key(credentials.key.encode(), None)
    except ValueError:
        return False
    leaves, authorities = _load(credentials.certificate), _load(credentials.authorities)
    return (
        len(leaves) == 1
        and isinstance(key, ec.EllipticCurvePrivateKey)
        and authorities[0].public_key() == key.public_key()
        and leaves[0].public_key() == leaf_key.public_key()
    )


def _load(pem: str) -> list[x509.Certificate]:
    """The certificates in `pem`; none where it is none."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return []


def _due(certificate: x509.Certificate, now: datetime) -> bool:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return not begin <= now < begin + (end - begin) * _RENEWED_AFTER  # one from the future was made by a clock that was wrong


def _names(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value.get_values_for_type(x509.DNSName))


def _authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"xds webhook authority {now:%Y-%m-%d} {x509.random_serial_number() % 16**6:06x}"  # told apart from the one before by it
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(now, AUTHORITY_LIFETIME, subject, subject, key).add_extension(x509.BasicConstraints(True, 0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hashes.SHA256()), key


def _leaf(now: datetime, names: Sequence[str], authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey) -> tuple[str, str]:
    """A certificate for `names` and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(now, LIFETIME, subject, authority.subject, key)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    return _pem(builder.sign(authority_key, hashes.SHA256())), _key_pem(key)


def _builder(
    now: datetime, lifetime: timedelta, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _EARLIER).not_valid_after(now + lifetime)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, *form).decode()
