"""How a cluster's connections are wrapped: in TLS, behind a PROXY protocol header, or not at all.

Istio: DestinationRule, `tls` and `proxyProtocol`.
"""

from typing import TYPE_CHECKING

from xds import pb
from xds.envoy import names
from xds.envoy.addresses import is_ip
from xds.mesh.model import Service
from xds.objects import ClientTLSSettings, MeshConfig, TrafficPolicy
from xds.objects.mesh_config import TLSConfig

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_TransportSocket_Init as TransportSocket
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_CertificateValidationContext_Init as ValidationContext
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_CommonTlsContext_Init as CommonTlsContext
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_SdsSecretConfig_Init as SdsSecretConfig
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_SubjectAltNameMatcher_Init as SubjectAltNameMatcher
    from xds.pb import envoy_extensions_transport_sockets_tls_v3_TlsParameters_Init as TlsParameters

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
    if settings.insecure_skip_verify:
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


def auto_server_name(service: Service, settings: ClientTLSSettings | None) -> tuple[bool, bool]:
    """Whether an HTTP request's own host is the server name to ask for, and whether the certificate has to be for it.

    Istio: ClientTLSSettings, `sni`: it is, where the rule names none; and `subjectAltNames` likewise.
    """
    if settings is None or settings.mode not in ("SIMPLE", "MUTUAL") or settings.sni:
        return False, False
    return True, not (settings.insecure_skip_verify or settings.subject_alt_names or service.subject_alt_names)


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
