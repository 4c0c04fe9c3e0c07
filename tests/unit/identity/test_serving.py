"""The webhook's credentials over the years."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from xds.identity.serving import AUTHORITY_LIFETIME, LIFETIME, Credentials, expiry, renew

NAMES = ("istiod.istio-system.svc", "istiod.istio-system")
START = datetime(2026, 1, 1, tzinfo=UTC)


def accepted(credentials: Credentials, trusted: str, when: datetime, name: str = NAMES[0]) -> bool:
    """Whether a client that trusts these authorities accepts the certificate for `name`."""
    store = Store(x509.load_pem_x509_certificates(trusted.encode()))
    verifier = PolicyBuilder().store(store).time(when).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(x509.load_pem_x509_certificate(credentials.certificate.encode()), [])
    except x509.verification.VerificationError:
        return False
    return True


@pytest.fixture(scope="module")
def first() -> Credentials:
    return renew(START, NAMES, None, "")


def test_the_certificate_is_for_every_name_and_no_other(first: Credentials) -> None:
    assert all(accepted(first, first.authorities, START, name) for name in NAMES)
    assert not accepted(first, first.authorities, START, "kubernetes.default.svc")


def test_nothing_is_made_anew_before_it_is_due(first: Credentials) -> None:
    assert renew(START + LIFETIME / 2, NAMES, first, first.authorities) == first


def test_the_certificate_is_renewed_by_the_same_authority_after_two_thirds_of_its_life(first: Credentials) -> None:
    later = START + timedelta(days=61)
    second = renew(later, NAMES, first, first.authorities)
    assert expiry(second) == later + LIFETIME
    assert second.authorities == first.authorities
    assert accepted(second, first.authorities, later)


def test_other_names_need_another_certificate(first: Credentials) -> None:
    renamed = renew(START, ("istiod-canary.istio-system.svc",), first, first.authorities)
    assert accepted(renamed, first.authorities, START, "istiod-canary.istio-system.svc")


@pytest.mark.parametrize("broken", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "nonsense"])
@pytest.mark.parametrize("field", ["authorities", "authority_key", "certificate", "key"])
def test_credentials_that_cannot_be_used_are_made_anew(first: Credentials, field: str, broken: str) -> None:
    values = {name: getattr(first, name) for name in Credentials.__struct_fields__} | {field: broken}
    fresh = renew(START, NAMES, Credentials(**values), first.authorities)
    assert accepted(fresh, fresh.authorities, START)


def test_keys_that_belong_to_another_certificate_are_found_out(first: Credentials) -> None:
    other = renew(START, NAMES, None, "")
    mixed = Credentials(first.authorities, first.authority_key, first.certificate, other.key)
    assert renew(START, NAMES, mixed, first.authorities) not in (mixed, first)


def test_no_client_is_left_without_trust_when_the_authority_changes(first: Credentials) -> None:
    """Whatever a client was told last, and whatever a replica serves: they agree at each step."""
    later = START + AUTHORITY_LIFETIME * 2 / 3 + timedelta(days=1)
    current = renew(later - timedelta(days=2), NAMES, first, first.authorities)  # a certificate of these days
    assert accepted(current, first.authorities, later)

    announced = renew(later, NAMES, current, first.authorities)
    assert announced.certificate == current.certificate
    assert announced.authorities != first.authorities
    assert accepted(announced, announced.authorities, later)
    assert renew(later, NAMES, announced, first.authorities) == announced  # not told yet: the old one goes on to be shown

    signed = renew(later, NAMES, announced, announced.authorities)
    assert signed.certificate != current.certificate
    assert accepted(signed, announced.authorities, later)
    assert accepted(current, announced.authorities, later)  # a replica that has not read the new one yet
    assert renew(later, NAMES, signed, announced.authorities) == signed


def test_credentials_from_the_future_are_made_anew(first: Credentials) -> None:
    earlier = START - timedelta(days=400)
    current = first
    for _ in range(3):
        current = renew(earlier, NAMES, current, current.authorities)
    assert accepted(current, current.authorities, earlier)
    assert renew(earlier, NAMES, current, current.authorities) == current
