"""A sidecar's resources in gRPC's dialect: what gRPC refuses is left out, what it expects is there."""

from typing import Any

from xds import pb
from xds.envoy.per_route import FAULT
from xds.envoy.proxyless import grpc_assignment, grpc_cluster, grpc_listener, grpc_routes
from xds.mesh.workloads import PROXYLESS, claim

ADDRESS = {"socket_address": {"address": "10.0.0.1", "port_value": 80}}


def endpoint(address: str, weight: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}}
    return {**made, "load_balancing_weight": {"value": weight}} if weight else made


def test_each_locality_stands_once_at_a_priority_with_a_weight() -> None:
    """gRFC A27: a locality without weight is passed over, one that stands twice is an error."""
    made = grpc_assignment(
        pb.ClusterLoadAssignment(
            cluster_name="c",
            endpoints=[
                {"locality": {"zone": "a"}, "lb_endpoints": [endpoint("10.0.0.1"), endpoint("10.0.0.2", 3)]},
                {"locality": {"zone": "a"}, "lb_endpoints": [endpoint("10.0.0.3")], "load_balancing_weight": {"value": 7}},
                {"lb_endpoints": [endpoint("10.0.0.4")]},
            ],
        )
    )
    assert [(each.locality.zone, len(each.lb_endpoints), each.load_balancing_weight.value) for each in made.endpoints] == [
        ("a", 3, 11),
        ("", 1, 1),
    ]
    assert all(each.HasField("locality") for each in made.endpoints)


def test_priorities_have_no_gap() -> None:
    """gRFC A27: else the whole assignment is an error."""
    made = grpc_assignment(
        pb.ClusterLoadAssignment(
            endpoints=[
                {"priority": 0, "lb_endpoints": []},
                {"priority": 3, "lb_endpoints": [endpoint("10.0.0.1")]},
                {"priority": 5, "lb_endpoints": [endpoint("10.0.0.2")]},
            ]
        )
    )
    assert [each.priority for each in made.endpoints] == [0, 1]


def test_endpoints_behind_a_tunnel_within_the_proxy_are_left_out() -> None:
    inside = {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "tunnel"}}}}
    made = grpc_assignment(pb.ClusterLoadAssignment(endpoints=[{"lb_endpoints": [inside, endpoint("10.0.0.1")]}]))
    assert [len(each.lb_endpoints) for each in made.endpoints] == [1]


def test_a_cluster_asks_for_its_endpoints_by_ads() -> None:
    made = grpc_cluster(pb.Cluster(name="c", type="EDS", lb_policy="LEAST_REQUEST", eds_cluster_config={"service_name": "s"}))
    assert made is not None
    assert made.eds_cluster_config.service_name == "s"
    assert made.eds_cluster_config.eds_config.HasField("ads")
    assert made.lb_policy == pb.Cluster.ROUND_ROBIN


def test_hashing_is_by_a_ring_of_a_size_that_grpc_makes() -> None:
    size = {"minimum_ring_size": {"value": 100_000}}
    made = grpc_cluster(pb.Cluster(name="c", type="EDS", lb_policy="RING_HASH", ring_hash_lb_config=size))
    maglev = grpc_cluster(pb.Cluster(name="c", type="EDS", lb_policy="MAGLEV"))
    assert made is not None
    assert maglev is not None
    assert (made.lb_policy, made.ring_hash_lb_config.minimum_ring_size.value) == (pb.Cluster.RING_HASH, 4096)
    assert maglev.lb_policy == pb.Cluster.RING_HASH


def test_limits_of_requests_are_kept_and_others_left_out() -> None:
    thresholds = [{"max_requests": {"value": 5}, "max_connections": {"value": 7}}, {"priority": "HIGH", "max_requests": {"value": 9}}]
    made = grpc_cluster(pb.Cluster(name="c", type="EDS", circuit_breakers={"thresholds": thresholds}))
    assert made is not None
    assert [(each.max_requests.value, each.HasField("max_connections")) for each in made.circuit_breakers.thresholds] == [(5, False)]


def test_one_name_is_resolved_and_several_places_are_not_for_grpc() -> None:
    one = {"lb_endpoints": [{"endpoint": {"address": ADDRESS}}]}
    made = grpc_cluster(pb.Cluster(name="c", type="STRICT_DNS", load_assignment={"endpoints": [one]}))
    assert made is not None
    assert made.type == pb.Cluster.LOGICAL_DNS
    assert grpc_cluster(pb.Cluster(name="c", type="STRICT_DNS", load_assignment={"endpoints": [one, one]})) is None
    assert grpc_cluster(pb.Cluster(name="c", type="ORIGINAL_DST")) is None


def test_routes_keep_what_grpc_knows() -> None:
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "c",
            "timeout": {"seconds": 3},
            "retry_policy": {"retry_on": "connect-failure,unavailable, cancelled", "num_retries": {"value": 2}},
        },
        "typed_per_filter_config": {FAULT: pb.any(pb.Fault()), "envoy.filters.http.cors": pb.any(pb.CorsPolicy())},
    }
    table = pb.RouteConfiguration(virtual_hosts=[{"name": "h", "domains": ["h"], "routes": [route]}])
    (host,) = grpc_routes("r", table).virtual_hosts
    (made,) = host.routes
    assert list(host.domains) == ["*"]
    assert list(made.typed_per_filter_config) == [FAULT]
    assert made.route.max_stream_duration.max_stream_duration.seconds == 3
    assert made.route.retry_policy.retry_on == "unavailable,cancelled"
    assert len(table.virtual_hosts[0].routes[0].typed_per_filter_config) == 2, "the sidecar's own stays what it is"


def test_retries_for_reasons_that_grpc_does_not_know_are_left_out() -> None:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c", "retry_policy": {"retry_on": "5xx"}}}
    (host,) = grpc_routes("r", pb.RouteConfiguration(virtual_hosts=[{"routes": [route]}])).virtual_hosts
    assert not host.routes[0].route.HasField("retry_policy")


def test_a_port_without_http_routes_leads_to_its_cluster() -> None:
    (host,) = grpc_routes("outbound|80||h", pb.RouteConfiguration()).virtual_hosts
    assert [route.route.cluster for route in host.routes] == ["outbound|80||h"]


def test_a_listener_ends_its_filters_with_the_router() -> None:
    made = grpc_listener("h:80", "r")
    manager: Any = pb.HttpConnectionManager.FromString(made.api_listener.api_listener.value)
    assert [each.name for each in manager.http_filters] == [FAULT, "envoy.filters.http.router"]
    assert manager.rds.route_config_name == "r"


def test_a_client_says_that_it_has_no_proxy() -> None:
    """Istio: node metadata GENERATOR."""
    assert claim("sidecar~10.0.0.1~a.b~b.svc.cluster.local", {"GENERATOR": "grpc"}).kind == PROXYLESS
    assert claim("sidecar~10.0.0.1~a.b~b.svc.cluster.local", {}).kind == "sidecar"
