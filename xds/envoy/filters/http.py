"""The HTTP filters of a chain, in Istio's order: authentication, authorisation, protocol, faults, CORS, metrics, timeouts, router."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from xds import pb
from xds.envoy.dns import dns_cache
from xds.envoy.filters import Chain
from xds.envoy.filters.timeouts import PUT_BACK
from xds.mesh.model import Protocol

if TYPE_CHECKING:
    from xds.pb import envoy_extensions_filters_network_http_connection_manager_v3_HttpFilter_Init as HttpFilter


def http_filter(name: str, config: Message) -> "HttpFilter":
    """An entry of a connection manager's filters."""
    return {"name": name, "typed_config": pb.any(config)}


def grpc_web(chain: Chain) -> "HttpFilter | None":
    """Lets browsers call gRPC: on ports that declare it."""
    return GRPC_WEB if chain.protocol is Protocol.GRPC_WEB else None


def grpc_stats(_: Chain) -> "HttpFilter":
    """Counts messages and statuses of gRPC calls, and leaves them for access logs."""
    return GRPC_STATS


def fault(_: Chain) -> "HttpFilter":
    """Idle by itself: routes configure it (VirtualService `fault`)."""
    return FAULT


def cors(_: Chain) -> "HttpFilter":
    """Idle by itself: routes configure it (VirtualService `corsPolicy`)."""
    return CORS


def dynamic_forward_proxy(chain: Chain) -> "HttpFilter | None":
    """Resolves the host of requests that go to a service of any name (ServiceEntry `DYNAMIC_DNS`)."""
    if not chain.dynamic_dns:
        return None
    config = pb.DynamicForwardProxyFilter(dns_cache_config=dns_cache(chain.client, chain.config))
    return http_filter("envoy.filters.http.dynamic_forward_proxy", config)


def caller_timeout(chain: Chain) -> "HttpFilter | None":
    """Lets callers set the timeout of a request: those of this workload."""
    return None if chain.inbound else CALLER_TIMEOUT


def router(chain: Chain) -> "HttpFilter":
    """Forwards. Always last."""
    headers = chain.config.default_config.proxy_headers
    if headers is not None and headers.envoy_debug_headers is not None and headers.envoy_debug_headers.disabled:
        return QUIET_ROUTER
    return ROUTER


GRPC_WEB = http_filter("envoy.filters.http.grpc_web", pb.GrpcWeb())
GRPC_STATS = http_filter("envoy.filters.http.grpc_stats", pb.GrpcStats(emit_filter_state=True, stats_for_all_methods={"value": False}))
FAULT = http_filter("envoy.filters.http.fault", pb.Fault())
CORS = http_filter("envoy.filters.http.cors", pb.Cors())
CALLER_TIMEOUT = http_filter("envoy.filters.http.header_mutation", PUT_BACK)
ROUTER = http_filter("envoy.filters.http.router", pb.Router())
QUIET_ROUTER = http_filter("envoy.filters.http.router", pb.Router(suppress_envoy_headers=True))  # no x-envoy-* headers

ORDER: tuple[Callable[[Chain], "HttpFilter | None"], ...] = (
    grpc_web,
    grpc_stats,
    fault,
    cors,
    dynamic_forward_proxy,
    caller_timeout,
    router,
)


def http_filters(chain: Chain) -> "list[HttpFilter]":
    """The HTTP filters of `chain`, the router last."""
    return [made for make in ORDER if (made := make(chain)) is not None]
