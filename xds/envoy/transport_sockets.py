"""How a cluster's connections are wrapped: in TLS, behind a PROXY protocol header, or not at all.

Istio: DestinationRule, `tls` and `proxyProtocol`.
"""

from typing import TYPE_CHECKING, Literal

import msgspec

from xds import pb
from xds.envoy import names
from xds.envoy.addresses import is_ip
from xds.mesh.model import Service
from xds.objects import ClientTLSSettings, MeshConfig, ServerTLSSettings, TrafficPolicy
from xds.objects.mesh_config import TLSConfig

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_TransportSocket_Init as TransportSocket
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_CertificateValidationContext_Init as ValidationContext
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_CommonTlsContext_Init as CommonTlsContext
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_SdsSecretConfig_Init as SdsSecretConfig
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_SubjectAltNameMatcher_Init as SubjectAltNameMatcher
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_TlsParameters_Init as TlsParameters

TlsProtocol = Literal["TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"]

TLS = "envoy.transport_sockets.tls"
RAW_BUFFER = "envoy.transport_sockets.raw_buffer"
PROXY_PROTOCOL = "envoy.transport_sockets.upstream_proxy_protocol"

# Secrets that a proxy asks for over ADS.
WORKLOAD_CERTIFICATE = "default"
ROOT_CERTIFICATES = "ROOTCA"
CREDENTIAL = "kubernetes://"
CREDENTIAL_CA = "-cacert"

SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"  # where Envoy's images have the public authorities, as Debian does
MESH_ALPN = ("istio",)
HTTP2_ALPN = ("h2",)

NO_TLS_CONFIG = TLSConfig()
VERSIONS: dict[str, TlsProtocol] = {"TLSV1_0": "TLSv1_0", "TLSV1_1": "TLSv1_1", "TLSV1_2": "TLSv1_2", "TLSV1_3": "TLSv1_3"}


def transport_socket(
    service: Service, port: int, subset: str, policy: TrafficPolicy, config: MeshConfig, http2: bool
) -> "TransportSocket | None":
    """The wrapping of connections to one destination; None for plain ones."""
    socket = None if policy.tls is None else tls_socket(service, port, subset, policy.tls, config, http2)
    if policy.proxy_protocol is None:
        return socket
    wrapped = pb.ProxyProtocolUpstreamTransport(
        config={"version": policy.proxy_protocol.version},
        transport_socket=socket or {"name": RAW_BUFFER, "typed_config": pb.any(pb.RawBuffer())},
    )
    return {"name": PROXY_PROTOCOL, "typed_config": pb.any(wrapped)}


def without_credential(policy: TrafficPolicy) -> TrafficPolicy:
    """`policy` as sidecars have it where its rule selects no workloads.

    Istio: ClientTLSSettings, `credentialName`: "applicable at sidecars only if DestinationRule has a workloadSelector specified".
    """
    if policy.tls is None or not policy.tls.credential_name:
        return policy
    return msgspec.structs.replace(policy, tls=msgspec.structs.replace(policy.tls, credential_name=None))


def tls_socket(
    service: Service, port: int, subset: str, settings: ClientTLSSettings, config: MeshConfig, http2: bool
) -> "TransportSocket | None":
    """TLS as a rule asks for it; None for mode DISABLE."""
    if settings.mode == "DISABLE":
        return None
    names_expected = settings.subject_alt_names or service.subject_alt_names
    sni = settings.sni or ""
    common: CommonTlsContext
    if settings.mode == "ISTIO_MUTUAL":
        sni = sni or names.sni(service.hostname, port, subset)
        common = _mesh_context(names_expected, config, http2)
    else:
        common = _context(settings, names_expected, config, http2)
    return {"name": TLS, "typed_config": pb.any(pb.UpstreamTlsContext(sni=sni, common_tls_context=common))}


def _mesh_context(names_expected: tuple[str, ...], config: MeshConfig, http2: bool) -> "CommonTlsContext":
    return {
        "tls_params": _parameters(config.mesh_mtls),
        "alpn_protocols": (*MESH_ALPN, *HTTP2_ALPN) if http2 else MESH_ALPN,
        "tls_certificate_sds_secret_configs": [secret(WORKLOAD_CERTIFICATE)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": list(map(_exactly, names_expected))},
            "validation_context_sds_secret_config": secret(ROOT_CERTIFICATES),
        },
    }


def _context(settings: ClientTLSSettings, names_expected: tuple[str, ...], config: MeshConfig, http2: bool) -> "CommonTlsContext":
    context: CommonTlsContext = {"tls_params": _parameters(config.tls_defaults), "alpn_protocols": HTTP2_ALPN if http2 else ()}
    if settings.mode == "MUTUAL" and settings.credential_name:
        context["tls_certificate_sds_secret_configs"] = [secret(credential(settings.credential_name))]
    elif settings.mode == "MUTUAL" and settings.client_certificate:
        chain, key = settings.client_certificate, settings.private_key or ""
        context["tls_certificates"] = [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}]
    named = settings.ca_certificates or settings.credential_name or names_expected
    if settings.insecure_skip_verify or (_lenient(settings, config) and not named):
        return context
    validation: ValidationContext = {
        "match_typed_subject_alt_names": list(map(_exactly, names_expected)),
        "crl": {"filename": settings.ca_crl} if settings.ca_crl else None,
    }
    if settings.credential_name:
        context["combined_validation_context"] = {
            "default_validation_context": validation,
            "validation_context_sds_secret_config": secret(credential(settings.credential_name) + CREDENTIAL_CA),
        }
    else:
        context["validation_context"] = {**validation, "trusted_ca": {"filename": settings.ca_certificates or SYSTEM_CA}}
    return context


def _lenient(settings: ClientTLSSettings, config: MeshConfig) -> bool:
    """Whether a certificate is checked just for what a rule names (Istio: MeshConfig, `verifyCertificateAtClient: false`)."""
    return config.verify_certificate_at_client is False and settings.insecure_skip_verify is None


def server_socket(settings: ServerTLSSettings, config: MeshConfig, http: bool) -> "TransportSocket | None":
    """TLS that the proxy ends for callers of its workload (Istio: Sidecar `ingress[].tls`); None where it ends none."""
    if settings.mode not in ("SIMPLE", "MUTUAL"):
        return None
    parameters = _parameters(config.tls_defaults)
    if settings.cipher_suites:
        parameters["cipher_suites"] = settings.cipher_suites
    if settings.min_protocol_version != "TLS_AUTO":
        parameters["tls_minimum_protocol_version"] = VERSIONS[settings.min_protocol_version]
    if settings.max_protocol_version != "TLS_AUTO":
        parameters["tls_maximum_protocol_version"] = VERSIONS[settings.max_protocol_version]
    pairs = [(settings.server_certificate, settings.private_key)] * bool(settings.server_certificate)
    pairs += [(c.server_certificate, c.private_key) for c in settings.tls_certificates]
    context: CommonTlsContext = {
        "tls_params": parameters,
        "alpn_protocols": (*HTTP2_ALPN, "http/1.1") if http else (),
        "tls_certificates": [{"certificate_chain": {"filename": c or ""}, "private_key": {"filename": k or ""}} for c, k in pairs],
    }
    mutual = settings.mode == "MUTUAL"
    if mutual:
        context["validation_context"] = {
            "trusted_ca": {"filename": settings.ca_certificates or ""},
            "crl": {"filename": settings.ca_crl} if settings.ca_crl else None,
            "match_typed_subject_alt_names": list(map(_exactly, settings.subject_alt_names)),
            "verify_certificate_spki": settings.verify_certificate_spki,
            "verify_certificate_hash": settings.verify_certificate_hash,
        }
    wrapped = pb.DownstreamTlsContext(common_tls_context=context, require_client_certificate={"value": mutual})
    return {"name": TLS, "typed_config": pb.any(wrapped)}


def auto_server_name(service: Service, settings: ClientTLSSettings | None, config: MeshConfig) -> tuple[bool, bool]:
    """Whether an HTTP request's own host is the server name to ask for, and whether the certificate has to be for it.

    Istio: ClientTLSSettings, `sni`: it is, where the rule names none; and `subjectAltNames` likewise.
    """
    if settings is None or settings.mode not in ("SIMPLE", "MUTUAL") or settings.sni:
        return False, False
    named = settings.subject_alt_names or service.subject_alt_names
    return True, not (settings.insecure_skip_verify or named or _lenient(settings, config))


def secret(name: str) -> "SdsSecretConfig":
    """A secret that the proxy asks for on the stream that it has everything else from."""
    return {"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}}


def credential(name: str) -> str:
    """The secret's name for a `credentialName`, which may say itself where it is kept (`configmap://ca`)."""
    return name if "://" in name else CREDENTIAL + name


def _parameters(settings: TLSConfig | None) -> "TlsParameters":
    """Envoy's clients stop at TLS 1.2 unless told."""
    wanted = settings or NO_TLS_CONFIG
    return {
        "tls_minimum_protocol_version": "TLSv1_3" if wanted.min_protocol_version == "TLSV1_3" else "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_3",
        "cipher_suites": wanted.cipher_suites,
        "ecdh_curves": wanted.ecdh_curves,
    }


def _exactly(name: str) -> "SubjectAltNameMatcher":
    """A certificate's subject alternative name that is `name`: a URI, an address or a DNS name, by its looks."""
    if "://" in name:
        return {"san_type": "URI", "matcher": {"exact": name}}
    return {"san_type": "IP_ADDRESS" if is_ip(name) else "DNS", "matcher": {"exact": name}}
