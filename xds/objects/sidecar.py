"""Istio's Sidecar: what workloads reach and where they are called. https://istio.io/latest/docs/reference/config/networking/sidecar/"""

from typing import Literal

from xds.objects.destination_rule import ConnectionPoolSettings
from xds.objects.meta import KubernetesObject, Message, UInt32
from xds.objects.service_entry import WorkloadSelector
from xds.objects.virtual_service import Destination

CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]
TLSProtocol = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


class SidecarPort(Message, frozen=True):
    number: UInt32 | None = None
    protocol: str | None = None
    name: str | None = None
    target_port: UInt32 | None = None  # deprecated, no effect


class TLSCertificate(Message, frozen=True):
    server_certificate: str | None = None
    private_key: str | None = None
    ca_certificates: str | None = None


class ServerTLSSettings(Message, frozen=True):
    https_redirect: bool = False
    mode: Literal["PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"] = "PASSTHROUGH"
    server_certificate: str | None = None
    private_key: str | None = None
    ca_certificates: str | None = None
    ca_crl: str | None = None
    credential_name: str | None = None
    credential_names: tuple[str, ...] = ()
    ca_cert_credential_name: str | None = None
    tls_certificates: tuple[TLSCertificate, ...] = ()
    subject_alt_names: tuple[str, ...] = ()
    verify_certificate_spki: tuple[str, ...] = ()
    verify_certificate_hash: tuple[str, ...] = ()
    min_protocol_version: TLSProtocol = "TLS_AUTO"
    max_protocol_version: TLSProtocol = "TLS_AUTO"
    cipher_suites: tuple[str, ...] = ()
    insecure_skip_verify: bool | None = None


class IstioIngressListener(Message, frozen=True):
    port: SidecarPort
    bind: str | None = None
    capture_mode: CaptureMode = "DEFAULT"
    default_endpoint: str | None = None
    tls: ServerTLSSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None


class IstioEgressListener(Message, frozen=True):
    """`hosts` are `namespace/dnsName`; the namespace may be `.`, `*` or `~`, and the name may start with a wildcard."""

    hosts: tuple[str, ...]
    port: SidecarPort | None = None
    bind: str | None = None
    capture_mode: CaptureMode = "DEFAULT"


class OutboundTrafficPolicy(Message, frozen=True):
    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "REGISTRY_ONLY"
    egress_proxy: Destination | None = None


class SidecarSpec(Message, frozen=True):
    workload_selector: WorkloadSelector | None = None  # None: all workloads of the namespace
    ingress: tuple[IstioIngressListener, ...] = ()
    egress: tuple[IstioEgressListener, ...] = ()
    inbound_connection_pool: ConnectionPoolSettings | None = None
    outbound_traffic_policy: OutboundTrafficPolicy | None = None  # None: MeshConfig's


class Sidecar(KubernetesObject, frozen=True):
    spec: SidecarSpec = SidecarSpec()
