"""MeshConfig's `extensionProviders`: what Telemetry, AuthorizationPolicy and credentials name by `provider`.

https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ExtensionProvider
"""

from typing import Any, Literal

import msgspec

from xds.objects.meta import Duration, Int32, Message, UInt32


class RequestBody(Message, frozen=True):
    """Istio's message `EnvoyExternalAuthorizationRequestBody`."""

    max_request_bytes: UInt32 | None = None
    allow_partial_message: bool = False
    pack_as_bytes: bool = False


class ExtAuthzHttp(Message, frozen=True):
    """Istio's message `EnvoyExternalAuthorizationHttpProvider`."""

    service: str
    port: UInt32
    timeout: Duration | None = None
    path_prefix: str | None = None
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: str | None = None
    include_headers_in_check: tuple[str, ...] = ()  # deprecated for include_request_headers_in_check
    include_request_headers_in_check: tuple[str, ...] = ()
    include_additional_headers_in_check: dict[str, str] = {}
    include_request_body_in_check: RequestBody | None = None
    headers_to_upstream_on_allow: tuple[str, ...] = ()
    headers_to_downstream_on_deny: tuple[str, ...] = ()
    headers_to_downstream_on_allow: tuple[str, ...] = ()


class ExtAuthzGrpc(Message, frozen=True):
    """Istio's message `EnvoyExternalAuthorizationGrpcProvider`."""

    service: str
    port: UInt32
    timeout: Duration | None = None
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: str | None = None
    include_request_body_in_check: RequestBody | None = None


class HttpHeader(Message, frozen=True):
    """Either a `value` or the name of an environment variable that holds it."""

    name: str
    value: str | None = None
    env_name: str | None = None


class ZipkinProvider(Message, frozen=True):
    service: str
    port: UInt32
    max_tag_length: UInt32 | None = None
    enable_64bit_trace_id: bool = msgspec.field(default=False, name="enable64bitTraceId")
    path: str | None = None
    trace_context_option: Literal["USE_B3", "USE_B3_WITH_W3C_PROPAGATION"] = "USE_B3"
    timeout: Duration | None = None
    headers: tuple[HttpHeader, ...] = ()


class LightstepProvider(Message, frozen=True):
    service: str
    port: UInt32
    access_token: str | None = None
    max_tag_length: UInt32 | None = None


class DatadogProvider(Message, frozen=True):
    service: str
    port: UInt32
    max_tag_length: UInt32 | None = None


class SkyWalkingProvider(Message, frozen=True):
    service: str
    port: UInt32
    access_token: str | None = None


class StackdriverLogging(Message, frozen=True):
    labels: dict[str, str] = {}


class StackdriverProvider(Message, frozen=True):
    debug: bool = False
    max_number_of_attributes: int | None = None
    max_number_of_annotations: int | None = None
    max_number_of_message_events: int | None = None
    max_tag_length: UInt32 | None = None
    logging: StackdriverLogging | None = None


class OpenCensusProvider(Message, frozen=True):
    service: str
    port: UInt32
    context: tuple[str, ...] = ()
    max_tag_length: UInt32 | None = None


class PrometheusProvider(Message, frozen=True):
    """Present: metrics are offered to Prometheus."""


class LogFormat(Message, frozen=True):
    """`labels` is any JSON object."""

    text: str | None = None
    labels: dict[str, Any] | None = None


class FileAccessLog(Message, frozen=True):
    path: str | None = None
    log_format: LogFormat | None = None
    omit_empty_values: bool = False


class HttpGrpcAccessLog(Message, frozen=True):
    service: str
    port: UInt32
    log_name: str | None = None
    filter_state_objects_to_log: tuple[str, ...] = ()
    additional_request_headers_to_log: tuple[str, ...] = ()
    additional_response_headers_to_log: tuple[str, ...] = ()
    additional_response_trailers_to_log: tuple[str, ...] = ()


class TcpGrpcAccessLog(Message, frozen=True):
    service: str
    port: UInt32
    log_name: str | None = None
    filter_state_objects_to_log: tuple[str, ...] = ()


class OpenTelemetryAccessLog(Message, frozen=True):
    service: str
    port: UInt32
    log_name: str | None = None
    log_format: LogFormat | None = None


class HttpService(Message, frozen=True):
    path: str | None = None
    timeout: Duration | None = None
    headers: tuple[HttpHeader, ...] = ()


class GrpcService(Message, frozen=True):
    timeout: Duration | None = None
    initial_metadata: tuple[HttpHeader, ...] = ()


class ResourceDetector(Message, frozen=True):
    """Present: that detector is on."""


class ResourceDetectors(Message, frozen=True):
    environment: ResourceDetector | None = None
    dynatrace: ResourceDetector | None = None


class DynatraceApi(Message, frozen=True):
    service: str
    port: UInt32
    http: HttpService


class DynatraceSampler(Message, frozen=True):
    tenant: str
    cluster_id: Int32
    root_spans_per_minute: UInt32 | None = None
    http_service: DynatraceApi | None = None


class OpenTelemetryProvider(Message, frozen=True):
    service: str
    port: UInt32
    max_tag_length: UInt32 | None = None
    http: HttpService | None = None
    grpc: GrpcService | None = None
    resource_detectors: ResourceDetectors | None = None
    service_attribute_enrichment: Literal["ISTIO_CANONICAL", "OTEL_SEMANTIC_CONVENTIONS"] = "ISTIO_CANONICAL"
    dynatrace_sampler: DynatraceSampler | None = None


class SDSProvider(Message, frozen=True):
    name: str
    service: str
    port: UInt32


class ExtensionProvider(Message, frozen=True):
    """A name and exactly one kind of provider."""

    name: str
    envoy_ext_authz_http: ExtAuthzHttp | None = None
    envoy_ext_authz_grpc: ExtAuthzGrpc | None = None
    zipkin: ZipkinProvider | None = None
    lightstep: LightstepProvider | None = None  # no longer supported by Envoy
    datadog: DatadogProvider | None = None
    stackdriver: StackdriverProvider | None = None
    opencensus: OpenCensusProvider | None = None  # no longer supported by Envoy
    skywalking: SkyWalkingProvider | None = None
    opentelemetry: OpenTelemetryProvider | None = None
    prometheus: PrometheusProvider | None = None
    envoy_file_access_log: FileAccessLog | None = None
    envoy_http_als: HttpGrpcAccessLog | None = None
    envoy_tcp_als: TcpGrpcAccessLog | None = None
    envoy_otel_als: OpenTelemetryAccessLog | None = None
    sds: SDSProvider | None = None


BUILTIN = (
    ExtensionProvider(name="prometheus", prometheus=PrometheusProvider()),
    ExtensionProvider(name="stackdriver", stackdriver=StackdriverProvider()),
    ExtensionProvider(name="envoy", envoy_file_access_log=FileAccessLog(path="/dev/stdout")),
)
