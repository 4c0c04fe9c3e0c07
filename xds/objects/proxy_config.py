"""Istio's ProxyConfig as it stands in MeshConfig (`defaultConfig`), with Istio's defaults.

https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig
"""

from datetime import timedelta
from typing import Literal

from xds.objects.destination_rule import ClientTLSSettings, TcpKeepalive
from xds.objects.meta import Duration, Int32, Message, UInt32

ForwardClientCertDetails = Literal[
    "UNDEFINED", "SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"
]  # fmt: skip


class Zipkin(Message, frozen=True):
    address: str | None = None


class Lightstep(Message, frozen=True):
    address: str | None = None
    access_token: str | None = None


class Datadog(Message, frozen=True):
    address: str | None = None


class Stackdriver(Message, frozen=True):
    debug: bool = False
    max_number_of_attributes: int | None = None
    max_number_of_annotations: int | None = None
    max_number_of_message_events: int | None = None


class OpenCensusAgent(Message, frozen=True):
    address: str | None = None
    context: tuple[str, ...] = ()


class Literal_(Message, frozen=True):  # noqa: N801 - Istio's message `Literal`
    value: str | None = None


class Environment(Message, frozen=True):
    name: str | None = None
    default_value: str | None = None


class RequestHeader(Message, frozen=True):
    name: str | None = None
    default_value: str | None = None


class CustomTag(Message, frozen=True):
    literal: Literal_ | None = None
    environment: Environment | None = None
    header: RequestHeader | None = None


class Tracing(Message, frozen=True):
    zipkin: Zipkin | None = None
    lightstep: Lightstep | None = None
    datadog: Datadog | None = None
    stackdriver: Stackdriver | None = None
    open_census_agent: OpenCensusAgent | None = None
    custom_tags: dict[str, CustomTag] = {}
    max_path_tag_length: UInt32 | None = None
    sampling: float | None = None  # percent
    tls_settings: ClientTLSSettings | None = None
    enable_istio_tags: bool | None = None


class SDS(Message, frozen=True):
    enabled: bool = False
    k8s_sa_jwt_path: str | None = None


class RemoteService(Message, frozen=True):
    address: str | None = None
    tls_settings: ClientTLSSettings | None = None
    tcp_keepalive: TcpKeepalive | None = None


class ProxyProtocolConfiguration(Message, frozen=True):
    """Present: the gateway expects the PROXY protocol."""


class Topology(Message, frozen=True):
    num_trusted_proxies: UInt32 | None = None
    forward_client_cert_details: ForwardClientCertDetails = "UNDEFINED"
    proxy_protocol: ProxyProtocolConfiguration | None = None


class HTTPHeader(Message, frozen=True):
    name: str | None = None
    value: str | None = None


class HTTPHealthCheckConfig(Message, frozen=True):
    port: UInt32
    path: str | None = None
    host: str | None = None
    scheme: str | None = None
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPHealthCheckConfig(Message, frozen=True):
    port: UInt32
    host: str | None = None


class ExecHealthCheckConfig(Message, frozen=True):
    command: tuple[str, ...]


class GrpcHealthCheckConfig(Message, frozen=True):
    port: UInt32 | None = None
    service: str | None = None


class ReadinessProbe(Message, frozen=True):
    initial_delay_seconds: Int32 | None = None
    timeout_seconds: Int32 | None = None
    period_seconds: Int32 | None = None
    success_threshold: Int32 | None = None
    failure_threshold: Int32 | None = None
    http_get: HTTPHealthCheckConfig | None = None
    tcp_socket: TCPHealthCheckConfig | None = None
    exec: ExecHealthCheckConfig | None = None
    grpc: GrpcHealthCheckConfig | None = None


class ProxyStatsMatcher(Message, frozen=True):
    inclusion_prefixes: tuple[str, ...] = ()
    inclusion_suffixes: tuple[str, ...] = ()
    inclusion_regexps: tuple[str, ...] = ()


class ProxyImage(Message, frozen=True):
    image_type: str | None = None


class CryptoMb(Message, frozen=True):
    poll_delay: Duration | None = None
    fallback: bool | None = None


class QAT(Message, frozen=True):
    poll_delay: Duration | None = None
    fallback: bool | None = None


class PrivateKeyProvider(Message, frozen=True):
    cryptomb: CryptoMb | None = None
    qat: QAT | None = None


class Disabled(Message, frozen=True):
    """Istio's messages `RequestId`, `AttemptCount` and `EnvoyDebugHeaders`."""

    disabled: bool | None = None


class Enabled(Message, frozen=True):
    """Istio's messages `XForwardedHost` and `XForwardedPort`."""

    enabled: bool | None = None


class Server(Message, frozen=True):
    disabled: bool | None = None
    value: str | None = None


class MetadataExchangeHeaders(Message, frozen=True):
    mode: Literal["UNDEFINED", "IN_MESH"] = "UNDEFINED"


class SetCurrentClientCertDetails(Message, frozen=True):
    subject: bool | None = None
    cert: bool | None = None
    chain: bool | None = None
    dns: bool | None = None
    uri: bool | None = None


class ProxyHeaders(Message, frozen=True):
    forwarded_client_cert: ForwardClientCertDetails = "UNDEFINED"
    set_current_client_cert_details: SetCurrentClientCertDetails | None = None
    request_id: Disabled | None = None
    server: Server | None = None
    attempt_count: Disabled | None = None
    envoy_debug_headers: Disabled | None = None
    metadata_exchange_headers: MetadataExchangeHeaders | None = None
    preserve_http1_header_case: bool | None = None
    x_forwarded_host: Enabled | None = None
    x_forwarded_port: Enabled | None = None


class ConnectionSettings(Message, frozen=True):
    profile: Literal["SIDECAR", "EDGE"] = "SIDECAR"
    listener_per_connection_buffer_limit_bytes: Int32 | None = None
    cluster_per_connection_buffer_limit_bytes: Int32 | None = None
    http_idle_timeout: Duration | None = None
    http_max_connection_duration: Duration | None = None
    http_drain_timeout: Duration | None = None
    http_request_timeout: Duration | None = None
    http_request_headers_timeout: Duration | None = None
    http_stream_idle_timeout: Duration | None = None
    http_max_stream_duration: Duration | None = None
    http_max_concurrent_streams: Int32 | None = None
    http2_initial_stream_window_size: Int32 | None = None
    http2_initial_connection_window_size: Int32 | None = None
    http_headers_with_underscores_action: Literal[
        "HEADERS_WITH_UNDERSCORES_UNSPECIFIED",
        "HEADERS_WITH_UNDERSCORES_ALLOW",
        "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST",
        "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
    ] = "HEADERS_WITH_UNDERSCORES_UNSPECIFIED"
    http_merge_slashes: bool | None = None
    http_path_with_escaped_slashes_action: Literal[
        "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED",
        "KEEP_UNCHANGED",
        "REJECT_REQUEST",
        "UNESCAPE_AND_REDIRECT",
        "UNESCAPE_AND_FORWARD",
    ] = "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED"
    listener_connection_limit: Int32 | None = None
    global_downstream_connection_limit: Int32 | None = None


class ProxyConfig(Message, frozen=True):
    config_path: str = "./etc/istio/proxy"
    binary_path: str = "/usr/local/bin/envoy"
    service_cluster: str = "istio-proxy"
    tracing_service_name: (
        Literal["APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"] | None
    ) = None  # overrides service_cluster
    drain_duration: Duration = timedelta(seconds=45)
    discovery_address: str = "istiod.istio-system.svc:15012"
    discovery_refresh_delay: Duration | None = None  # deprecated, no effect
    zipkin_address: str | None = None  # deprecated for tracing
    statsd_udp_address: str | None = None
    envoy_metrics_service_address: str | None = None  # deprecated for envoy_metrics_service
    proxy_admin_port: Int32 = 15000
    availability_zone: str | None = None  # deprecated, no effect
    control_plane_auth_policy: Literal["NONE", "MUTUAL_TLS", "INHERIT"] = "MUTUAL_TLS"
    custom_config_file: str | None = None
    stat_name_length: Int32 = 189
    concurrency: Int32 | None = None
    proxy_bootstrap_template_path: str | None = None
    interception_mode: Literal["REDIRECT", "TPROXY", "NONE"] = "REDIRECT"
    tracing: Tracing | None = None
    sds: SDS | None = None  # deprecated, no effect
    envoy_access_log_service: RemoteService | None = None
    envoy_metrics_service: RemoteService | None = None
    proxy_metadata: dict[str, str] = {}
    runtime_values: dict[str, str] = {}
    status_port: Int32 = 15020
    extra_stat_tags: tuple[str, ...] = ()
    gateway_topology: Topology | None = None
    termination_drain_duration: Duration = timedelta(seconds=5)
    mesh_id: str | None = None
    readiness_probe: ReadinessProbe | None = None
    proxy_stats_matcher: ProxyStatsMatcher | None = None
    hold_application_until_proxy_starts: bool | None = None
    ca_certificates_pem: tuple[str, ...] = ()
    image: ProxyImage | None = None
    private_key_provider: PrivateKeyProvider | None = None
    proxy_headers: ProxyHeaders | None = None
    file_flush_interval: Duration | None = None
    file_flush_min_size_kb: UInt32 | None = None
    stats_compression: bool | None = None
    connection_settings: ConnectionSettings | None = None
