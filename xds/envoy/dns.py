"""Clusters whose endpoints Envoy resolves by DNS."""

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from xds import pb
from xds.envoy.addresses import families
from xds.mesh.model import Client
from xds.objects import MeshConfig

if TYPE_CHECKING:
    from xds.pb import envoy_config_cluster_v3_Cluster_CustomClusterType_Init as CustomClusterType
    from xds.pb import envoy_config_cluster_v3_Cluster_RefreshRate_Init as RefreshRate
    from xds.pb import envoy_config_core_v3_TypedExtensionConfig_Init as TypedExtensionConfig
    from xds.pb import envoy_extensions_common_dynamic_forward_proxy_v3_DnsCacheConfig_Init as DnsCacheConfig

JITTER = timedelta(milliseconds=100)  # proxies that start together do not ask together for ever
# A UDP socket is used for so many queries: no proxy stays with one DNS server behind a virtual address, nor with a dead one.
MAX_QUERIES_A_SOCKET = 100
# A name that does not resolve is asked for again soon, then ever less often, down to the usual rate: it may be about to be made.
FAILURE_INTERVAL = timedelta(seconds=1)


def _family(client: Client) -> Literal["V4_ONLY", "V6_ONLY", "ALL"]:
    v4, v6 = families(client)
    return "ALL" if v4 and v6 else "V6_ONLY" if v6 else "V4_ONLY"


def dns_cluster(client: Client, config: MeshConfig, one_at_a_time: bool) -> "CustomClusterType":
    """The type of a cluster whose endpoints are names.

    It balances over all addresses of each name, or, `one_at_a_time`, connects to whichever address comes first when it needs one.
    """
    options = pb.DnsCluster(
        dns_refresh_rate=config.dns_refresh_rate,
        dns_failure_refresh_rate=_failure_rate(config),
        respect_dns_ttl=True,
        dns_jitter=JITTER,
        dns_lookup_family=_family(client),
        typed_dns_resolver_config=_resolver(),
        all_addresses_in_single_endpoint=one_at_a_time,
    )
    return {"name": "envoy.clusters.dns", "typed_config": pb.any(options)}


def dynamic_forward_proxy_cluster(client: Client, config: MeshConfig) -> "CustomClusterType":
    """The type of a cluster that goes where the request's host is. The filters in front of it must have the same `dns_cache`."""
    options = pb.DynamicForwardProxyCluster(
        dns_cache_config=dns_cache(client, config),
        allow_insecure_cluster_options=True,  # whether the server's name is asked for and checked is for the rule to say
    )
    return {"name": "envoy.clusters.dynamic_forward_proxy", "typed_config": pb.any(options)}


def dns_cache(client: Client, config: MeshConfig) -> "DnsCacheConfig":
    """The cache of names that dynamic forward proxying uses.

    Envoy refuses two caches of one name and different settings, even for the moment in which one replaces the other: the name
    tells the settings.
    """
    family = _family(client)
    refresh_ms = config.dns_refresh_rate // timedelta(milliseconds=1)
    return {
        "name": f"dns-{family.lower()}-{refresh_ms}ms",
        "dns_lookup_family": family,
        "dns_refresh_rate": config.dns_refresh_rate,
        "dns_failure_refresh_rate": _failure_rate(config),
        "typed_dns_resolver_config": _resolver(),
    }


def _failure_rate(config: MeshConfig) -> "RefreshRate":
    return {"base_interval": FAILURE_INTERVAL, "max_interval": max(FAILURE_INTERVAL, config.dns_refresh_rate)}


def _resolver() -> "TypedExtensionConfig":
    options = pb.CaresDnsResolver(udp_max_queries={"value": MAX_QUERIES_A_SOCKET})
    return {"name": "envoy.network.dns_resolver.cares", "typed_config": pb.any(options)}
