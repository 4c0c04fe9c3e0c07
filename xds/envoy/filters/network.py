"""The network filters of a chain: those that guard it, then the one that ends it: a connection manager or a TCP proxy."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from xds import pb
from xds.envoy.access_logs import access_logs
from xds.envoy.dns import dns_cache
from xds.envoy.filters import Chain
from xds.envoy.load_balancing import tcp_hash_policies
from xds.objects import TrafficPolicy

if TYPE_CHECKING:
    from xds.pb import envoy_config_listener_v3_Filter_Init as NetworkFilter
    from xds.pb import envoy_extensions_filters_network_tcp_proxy_v3_TcpProxy_Init as TcpProxy
    from xds.pb import envoy_extensions_filters_network_tcp_proxy_v3_TcpProxy_TunnelingConfig_Init as TunnelingConfig


def network_filter(name: str, config: Message) -> "NetworkFilter":
    """An entry of a filter chain's filters."""
    return {"name": name, "typed_config": pb.any(config)}


def dynamic_forward_proxy(chain: Chain) -> "NetworkFilter | None":
    """Resolves the server name of TLS connections that go to a service of any name (ServiceEntry `DYNAMIC_DNS`)."""
    if not chain.dynamic_dns or chain.http:
        return None
    config = pb.SniDynamicForwardProxy(dns_cache_config=dns_cache(chain.client, chain.config), port_value=chain.port)
    return network_filter("envoy.filters.network.sni_dynamic_forward_proxy", config)


# A connection that an endpoint refuses is tried with another: nothing of it has been sent yet. As often as HTTP by default (Istio), but
# not where a rule says how long connecting may take: an endpoint that does not answer at all would take that several times.
CONNECT_ATTEMPTS = 3

ORDER: tuple[Callable[[Chain], "NetworkFilter | None"], ...] = (dynamic_forward_proxy,)


def network_filters(chain: Chain, last: "NetworkFilter") -> "list[NetworkFilter]":
    """The network filters of `chain`, of which `last` ends it."""
    return [*(made for make in ORDER if (made := make(chain)) is not None), last]


def tcp_proxy(chain: Chain, stat_prefix: str, clusters: Sequence[tuple[str, int]], policy: TrafficPolicy | None = None) -> "NetworkFilter":
    """Forwards bytes to `clusters`, by weight where there are several; `policy` is the destination's."""
    fields: TcpProxy = {"stat_prefix": stat_prefix, "access_log": access_logs(chain)}
    if len(clusters) == 1:
        fields["cluster"] = clusters[0][0]
    else:
        fields["weighted_clusters"] = {"clusters": [{"name": name, "weight": weight} for name, weight in clusters]}
    if policy is not None:
        tcp = policy.connection_pool and policy.connection_pool.tcp
        if not tcp or tcp.connect_timeout is None:
            fields["max_connect_attempts"] = {"value": CONNECT_ATTEMPTS}
        if tcp:
            fields["idle_timeout"] = tcp.idle_timeout
            fields["max_downstream_connection_duration"] = tcp.max_connection_duration
        fields["hash_policy"] = tcp_hash_policies(policy)
        fields["tunneling_config"] = _tunnel(policy)
    return network_filter("envoy.filters.network.tcp_proxy", pb.TcpProxy(**fields))


def _tunnel(policy: TrafficPolicy) -> "TunnelingConfig | None":
    """Istio: DestinationRule, TrafficPolicy.TunnelSettings: HTTP CONNECT (or POST) through the destination to another host."""
    if policy.tunnel is None:
        return None
    host = policy.tunnel.target_host
    if ":" in host:
        host = f"[{host}]"
    return {"hostname": f"{host}:{policy.tunnel.target_port}", "use_post": policy.tunnel.protocol == "POST"}
