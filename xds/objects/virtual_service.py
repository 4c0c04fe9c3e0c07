"""Istio's VirtualService: how calls to a host are routed. https://istio.io/latest/docs/reference/config/networking/virtual-service/"""

import base64
import builtins
from typing import Literal

import msgspec

from xds.objects.meta import Duration, Int32, KubernetesObject, Message, UInt32


class StringMatch(Message, frozen=True):
    """At most one is set; none matches any value. `regex` is RE2 and must match the whole value."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


class PortSelector(Message, frozen=True):
    number: UInt32 | None = None


class Destination(Message, frozen=True):
    host: str
    subset: str | None = None
    port: PortSelector | None = None


class HeaderOperations(Message, frozen=True):
    set: dict[str, str] = {}
    add: dict[str, str] = {}
    remove: tuple[str, ...] = ()


class Headers(Message, frozen=True):
    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class HTTPRouteDestination(Message, frozen=True):
    destination: Destination
    weight: Int32 | None = None
    headers: Headers | None = None


class RouteDestination(Message, frozen=True):
    destination: Destination
    weight: Int32 | None = None


class HTTPMatchRequest(Message, frozen=True):
    """All conditions must hold."""

    name: str | None = None
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: dict[str, StringMatch] = {}
    port: UInt32 | None = None
    source_labels: dict[str, str] = {}
    gateways: tuple[str, ...] = ()
    query_params: dict[str, StringMatch] = {}
    ignore_uri_case: bool = False
    without_headers: dict[str, StringMatch] = {}
    source_namespace: str | None = None
    stat_prefix: str | None = None


class HTTPRedirect(Message, frozen=True):
    uri: str | None = None
    authority: str | None = None
    port: UInt32 | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: str | None = None
    redirect_code: UInt32 | None = None  # None: 301
    prefix_rewrite: str | None = None  # Istio: HTTPRedirect; replaces the matched prefix


class HTTPBody(Message, frozen=True):
    string: str | None = None
    bytes: str | None = None  # base64

    @property
    def content(self) -> builtins.bytes:
        """The body itself. ValueError where `bytes` is not base64.

        Protobuf's JSON form of bytes: base64 of either alphabet, padded or not.
        """
        if self.bytes is None:
            return (self.string or "").encode()
        text = self.bytes.rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


class HTTPDirectResponse(Message, frozen=True):
    status: UInt32
    body: HTTPBody | None = None


class Delegate(Message, frozen=True):
    name: str | None = None
    namespace: str | None = None


class RegexRewrite(Message, frozen=True):
    match: str | None = None
    rewrite: str | None = None


class HTTPRewrite(Message, frozen=True):
    uri: str | None = None
    authority: str | None = None
    uri_regex_rewrite: RegexRewrite | None = None


class HTTPRetry(Message, frozen=True):
    attempts: Int32 | None = None  # 0 switches retries off
    per_try_timeout: Duration | None = None
    retry_on: str | None = None
    retry_remote_localities: bool | None = None
    retry_ignore_previous_hosts: bool | None = None
    backoff: Duration | None = None


class Percent(Message, frozen=True):
    value: float = 0.0


class Delay(Message, frozen=True):
    fixed_delay: Duration | None = None
    exponential_delay: Duration | None = None  # no effect, in Istio either
    percentage: Percent | None = None
    percent: Int32 | None = None  # deprecated for percentage


GRPC_STATUSES = {
    name: code
    for code, name in enumerate(
        """
        OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED
        FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED
        """.split()
    )
}


class Abort(Message, frozen=True):
    http_status: Int32 | None = None
    grpc_status: str | None = None
    http2_error: str | None = None  # no effect, in Istio either
    percentage: Percent | None = None  # None: all requests


class HTTPFaultInjection(Message, frozen=True):
    delay: Delay | None = None
    abort: Abort | None = None


class HTTPMirrorPolicy(Message, frozen=True):
    destination: Destination
    percentage: Percent | None = None  # None: all requests


class CorsPolicy(Message, frozen=True):
    allow_origins: tuple[StringMatch, ...] = ()
    allow_origin: tuple[str, ...] = ()  # deprecated for allow_origins
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: Duration | None = None
    allow_credentials: bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"


class HTTPRoute(Message, frozen=True):
    name: str | None = None
    match: tuple[HTTPMatchRequest, ...] = ()  # any of them; empty matches all
    route: tuple[HTTPRouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: HTTPDirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    mirror: Destination | None = None
    mirrors: tuple[HTTPMirrorPolicy, ...] = ()
    mirror_percentage: Percent | None = None
    mirror_percent: UInt32 | None = None  # deprecated for mirror_percentage
    mirror_percent_snake: UInt32 | None = msgspec.field(default=None, name="mirror_percent")  # the API takes both spellings
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None

    @property
    def mirror_share(self) -> float:
        """The percentage of requests that go to `mirror` too: all where no field says otherwise."""
        if self.mirror_percentage is not None:
            return self.mirror_percentage.value
        percent = self.mirror_percent if self.mirror_percent is not None else self.mirror_percent_snake
        return 100.0 if percent is None else float(percent)


class TLSMatchAttributes(Message, frozen=True):
    sni_hosts: tuple[str, ...] = ()
    destination_subnets: tuple[str, ...] = ()
    port: UInt32 | None = None
    source_labels: dict[str, str] = {}
    gateways: tuple[str, ...] = ()
    source_namespace: str | None = None


class TLSRoute(Message, frozen=True):
    match: tuple[TLSMatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class L4MatchAttributes(Message, frozen=True):
    destination_subnets: tuple[str, ...] = ()
    port: UInt32 | None = None
    source_labels: dict[str, str] = {}
    gateways: tuple[str, ...] = ()
    source_namespace: str | None = None
    source_subnet: str | None = None  # no effect, in Istio either


class TCPRoute(Message, frozen=True):
    match: tuple[L4MatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class VirtualServiceSpec(Message, frozen=True):
    hosts: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()  # empty: `mesh`
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: tuple[str, ...] = ()  # empty: MeshConfig.default_virtual_service_export_to


class VirtualService(KubernetesObject, frozen=True):
    spec: VirtualServiceSpec = VirtualServiceSpec()
