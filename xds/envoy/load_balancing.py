"""How the endpoints of a cluster share its load, and what requests are hashed by where equal ones should meet the same endpoint.

Istio: DestinationRule, `loadBalancer`.
"""

from typing import TYPE_CHECKING

from xds.envoy.localities import Placement
from xds.objects import ConsistentHashLB, LoadBalancerSettings, OutlierDetection, TrafficPolicy

if TYPE_CHECKING:
    from xds.pb import envoy_config_cluster_v3_Cluster_CommonLbConfig_Init as CommonLbConfig
    from xds.pb import envoy_config_cluster_v3_Cluster_Init as Cluster
    from xds.pb import envoy_config_cluster_v3_Cluster_SlowStartConfig_Init as SlowStartConfig
    from xds.pb import envoy_config_route_v3_RouteAction_HashPolicy_Init as HashPolicy
    from xds.pb import envoy_type_v3_HashPolicy_Init as TcpHashPolicy

DEFAULT_MINIMUM_RING_SIZE = 1024
AGGRESSION = "xds.slow_start.aggression"  # the runtime key by which an operator may override all


def load_balancer(settings: LoadBalancerSettings | None) -> "Cluster":
    """The fields of a cluster that choose its load balancer: least requests where nothing else is asked for."""
    if settings is None:
        return {"lb_policy": "LEAST_REQUEST"}
    if settings.consistent_hash is not None:
        return _consistent_hash(settings.consistent_hash)
    slow_start = _slow_start(settings)
    if settings.simple == "RANDOM":
        return {"lb_policy": "RANDOM"}
    if settings.simple == "ROUND_ROBIN":
        if slow_start is None:
            return {"lb_policy": "ROUND_ROBIN"}
        return {"lb_policy": "ROUND_ROBIN", "round_robin_lb_config": {"slow_start_config": slow_start}}
    if slow_start is None:
        return {"lb_policy": "LEAST_REQUEST"}
    return {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"slow_start_config": slow_start}}


def _consistent_hash(settings: ConsistentHashLB) -> "Cluster":
    if settings.maglev is not None:
        size = settings.maglev.table_size
        return {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": {"value": size}} if size else None}
    minimum = settings.ring_hash.minimum_ring_size if settings.ring_hash else settings.minimum_ring_size
    return {
        "lb_policy": "RING_HASH",
        "ring_hash_lb_config": {"minimum_ring_size": {"value": minimum or DEFAULT_MINIMUM_RING_SIZE}},
    }


def _slow_start(settings: LoadBalancerSettings) -> "SlowStartConfig | None":
    warmup = settings.warmup
    if warmup is None:
        return {"slow_start_window": settings.warmup_duration_secs} if settings.warmup_duration_secs else None
    return {
        "slow_start_window": warmup.duration,
        "aggression": None if warmup.aggression is None else {"default_value": warmup.aggression, "runtime_key": AGGRESSION},
        "min_weight_percent": None if warmup.minimum_percent is None else {"value": warmup.minimum_percent},
    }


def common_lb_config(placed: Placement, outlier_detection: OutlierDetection | None, told_health: bool) -> "CommonLbConfig | None":
    """What all load balancers share: the share of healthy endpoints below which all are used, and what a locality's weight means.

    A cluster that is `told_health` of its endpoints knows those that are not ready. Envoy would fall back on them when most are
    unhealthy, so that panic is off unless the rule asks for it. Istio: OutlierDetection, `minHealthPercent`.
    """
    config: CommonLbConfig = {}
    if told_health or outlier_detection is not None:
        config["healthy_panic_threshold"] = {"value": minimum_health_percent(outlier_detection)}
    if placed.zone_aware is not None:
        size = placed.zone_aware.min_cluster_size
        config["zone_aware_lb_config"] = {"min_cluster_size": None if size is None else {"value": size}}
    elif placed.distribute:
        # Without shares to keep to, all endpoints of a priority are compared with each other, which balances better.
        config["locality_weighted_lb_config"] = {}
    return config or None


def minimum_health_percent(outlier_detection: OutlierDetection | None) -> int:
    """The percentage of healthy endpoints below which Envoy uses all of them; 0: never."""
    return 0 if outlier_detection is None else outlier_detection.min_health_percent or 0


def hash_policies(policy: TrafficPolicy) -> "list[HashPolicy]":
    """What the HTTP requests to a destination are hashed by: the `hash_policy` of its routes, empty where nothing asks for it."""
    settings = None if policy.load_balancer is None else policy.load_balancer.consistent_hash
    if settings is None:
        return []
    if settings.http_header_name:
        return [{"header": {"header_name": settings.http_header_name}}]
    if (cookie := settings.http_cookie) is not None:
        return [
            {
                "cookie": {
                    "name": cookie.name,
                    "path": cookie.path,
                    "ttl": cookie.ttl,
                    "attributes": [{"name": a.name, "value": a.value} for a in cookie.attributes],
                }
            }
        ]
    if settings.use_source_ip:
        return [{"connection_properties": {"source_ip": True}}]
    if settings.http_query_parameter_name:
        return [{"query_parameter": {"name": settings.http_query_parameter_name}}]
    return []


def tcp_hash_policies(policy: TrafficPolicy) -> "list[TcpHashPolicy]":
    """What the connections to a destination are hashed by: the `hash_policy` of a TCP proxy. Only the source address can be."""
    settings = None if policy.load_balancer is None else policy.load_balancer.consistent_hash
    return [{"source_ip": {}}] if settings is not None and settings.use_source_ip else []
