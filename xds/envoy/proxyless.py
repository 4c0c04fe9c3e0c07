"""What a gRPC client without a proxy gets: Envoy's API, in the dialect that gRPC speaks (gRFC A27, A28, A36).

It asks for a listener named as its target (`xds:///reviews.default.svc.cluster.local:9080`), and by name for all that follows from that:
one route table, its clusters, their endpoints. The resources are made from a sidecar's, so both route alike; what gRPC would refuse is
left out, and what it expects is added.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from xds import flow, pb
from xds.envoy.per_route import FAULT
from xds.envoy.translation import SHARED, Resources, Translation, VirtualHost, resources
from xds.envoy.virtual_hosts import domains
from xds.mesh.model import Client, Scope

if TYPE_CHECKING:
    from xds.pb import Cluster, ClusterLoadAssignment, Listener, RouteConfiguration
    from xds.pb import envoy_config_core_v3_ConfigSource_Init as ConfigSource

ADS: "ConfigSource" = {"ads": {}, "resource_api_version": "V3"}
RETRIES = frozenset({"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"})  # what gRPC retries on (A44)
LARGEST_RING = 4096  # of what C-core makes


class Proxyless(flow.Graph):
    """The derived resources of gRPC clients, one node a service."""

    def __init__(self, translation: Translation) -> None:
        super().__init__(parent=translation.mesh)
        self.mesh = translation.mesh
        self._sidecars = translation

    @flow.derived
    def hosts(self, scope: Scope, _client: Client, _kind: str) -> tuple[tuple[str, str], ...]:
        """All services of the scope, as the listing of one group: a node feeds one group only."""
        return self.mesh.hosts(scope)

    @flow.derived
    def clusters(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        """The clusters of one service that gRPC can use."""
        made = (pb.Cluster.FromString(resource.body) for resource in self._sidecars.clusters(scope, client, hostname, namespace))
        return resources(cluster for cluster in map(grpc_cluster, made) if cluster is not None)

    @flow.derived
    def assignments(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        """The endpoints of one service."""
        made = self._sidecars.assignments(scope, client, hostname, namespace)
        return resources(grpc_assignment(pb.ClusterLoadAssignment.FromString(resource.body)) for resource in made)

    @flow.derived
    def listeners(self, _scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        """A listener for each target that means one port of the service."""
        service = self.mesh.service(hostname, namespace)
        if service is None:
            return ()
        names = [name for name in domains(client.namespace, client.domain, service) if not name.startswith("*")]
        targets = ((f"{name}:{port.number}", route_name(hostname, port.number)) for port in service.ports for name in names)
        return resources(grpc_listener(target, routes) for target, routes in targets)

    @flow.derived
    def routes(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        """A route table for each port of the service."""
        service = self.mesh.service(hostname, namespace)
        if service is None:
            return ()
        return resources(self._routes(scope, client, hostname, namespace, port.number) for port in service.ports)

    @flow.derived
    def rule_listeners(self, scope: Scope, client: Client) -> Resources:
        """A listener for each target whose host only a VirtualService knows. A pattern stands for no target that could be named."""
        return resources(
            grpc_listener(f"{name}:{port}", _rule_route_name(host, port))
            for port, host in self._rule_hosts(scope, client)
            for name in host.domains
            if not name.startswith("*")
        )

    @flow.derived
    def rule_routes(self, scope: Scope, client: Client) -> Resources:
        """A route table for each host that only a VirtualService knows, and each port of it."""
        return resources(
            grpc_routes(_rule_route_name(host, port), pb.RouteConfiguration.FromString(host.field))
            for port, host in self._rule_hosts(scope, client)
        )

    def _rule_hosts(self, scope: Scope, client: Client) -> Iterator[tuple[int, VirtualHost]]:
        for port in self.mesh.rule_ports(scope):
            for host in self._sidecars.rule_hosts(scope, client, port):
                yield port, host

    def _routes(self, scope: Scope, client: Client, hostname: str, namespace: str, port: int) -> "RouteConfiguration":
        host = self._sidecars.virtual_host(scope, client, hostname, namespace, port, SHARED)
        table = pb.RouteConfiguration.FromString(b"" if host is None else host.field)
        return grpc_routes(route_name(hostname, port), table)


def route_name(hostname: str, port: int) -> str:
    """The name of a port's route table: as that of its cluster."""
    return f"outbound|{port}||{hostname}"


def _rule_route_name(host: VirtualHost, port: int) -> str:
    return route_name(host.domains[0], port)


def grpc_listener(target: str, routes: str) -> "Listener":
    """What a gRPC client asks for first: where its target's routes are, and the filters of its calls."""
    manager = pb.HttpConnectionManager(
        stat_prefix=target,
        rds={"config_source": ADS, "route_config_name": routes},
        http_filters=[
            {"name": FAULT, "typed_config": pb.any(pb.Fault())},
            {"name": "envoy.filters.http.router", "typed_config": pb.any(pb.Router())},
        ],
    )
    return pb.Listener(name=target, api_listener={"api_listener": pb.any(manager)})


def grpc_routes(name: str, table: "RouteConfiguration") -> "RouteConfiguration":
    """A table with the routes of the first virtual host of `table`, for whatever the target was called; without one, to its own cluster."""
    routes = [_route(route) for host in table.virtual_hosts[:1] for route in host.routes]
    routes = routes or [pb.Route(match={"prefix": ""}, route={"cluster": name})]
    return pb.RouteConfiguration(name=name, virtual_hosts=[{"name": name, "domains": ["*"], "routes": routes}])


def _route(route: Any) -> Any:
    made = pb.Route.FromString(route.SerializeToString())
    _keep_faults(made.typed_per_filter_config)
    if made.HasField("route"):
        action = made.route
        for cluster in action.weighted_clusters.clusters:
            _keep_faults(cluster.typed_per_filter_config)
        if action.timeout.seconds or action.timeout.nanos:
            # gRPC does not look at `timeout`.
            action.max_stream_duration.max_stream_duration.CopyFrom(action.timeout)
        if action.HasField("retry_policy"):
            reasons = [reason for reason in action.retry_policy.retry_on.replace(" ", "").split(",") if reason in RETRIES]
            action.retry_policy.retry_on = ",".join(reasons)
            action.retry_policy.ClearField("retry_host_predicate")
            if not reasons:
                action.ClearField("retry_policy")
    return made


def _keep_faults(settings: Any) -> None:
    """A client refuses the settings of a filter that it does not know."""
    for name in [name for name in settings if name != FAULT]:
        del settings[name]


def grpc_cluster(cluster: "Cluster") -> "Cluster | None":
    """A cluster as gRPC takes it: endpoints from EDS, or from one DNS name; None where it comes from elsewhere."""
    made = pb.Cluster(name=cluster.name, lb_policy="ROUND_ROBIN")  # LEAST_REQUEST is refused where it is not switched on
    addresses = [endpoint.endpoint.address.socket_address for each in cluster.load_assignment.endpoints for endpoint in each.lb_endpoints]
    if cluster.type == pb.Cluster.EDS:
        made.type = pb.Cluster.EDS
        made.eds_cluster_config.CopyFrom(
            pb.Cluster.EdsClusterConfig(eds_config=ADS, service_name=cluster.eds_cluster_config.service_name or cluster.name)
        )
    elif len(addresses) == 1:
        made.type = pb.Cluster.LOGICAL_DNS
        made.load_assignment.CopyFrom(
            pb.ClusterLoadAssignment(
                cluster_name=cluster.name,
                endpoints=[{"lb_endpoints": [{"endpoint": {"address": {"socket_address": addresses[0]}}}]}],
            )
        )
    else:
        return None
    if cluster.lb_policy in {pb.Cluster.RING_HASH, pb.Cluster.MAGLEV}:
        least = cluster.ring_hash_lb_config.minimum_ring_size.value
        made.lb_policy = pb.Cluster.RING_HASH
        made.ring_hash_lb_config.minimum_ring_size.value = min(least or 1024, LARGEST_RING)
    for threshold in cluster.circuit_breakers.thresholds:
        if threshold.priority == 0 and threshold.HasField("max_requests"):
            made.circuit_breakers.thresholds.add().max_requests.CopyFrom(threshold.max_requests)
    if cluster.HasField("outlier_detection"):
        made.outlier_detection.CopyFrom(cluster.outlier_detection)
    return made


def grpc_assignment(assignment: "ClusterLoadAssignment") -> "ClusterLoadAssignment":
    """An assignment as gRPC takes it: every locality once at a priority, with a weight, and priorities without a gap."""
    made = pb.ClusterLoadAssignment(cluster_name=assignment.cluster_name)
    groups: dict[tuple[int, bytes], Any] = {}
    priorities = sorted({each.priority for each in assignment.endpoints if any(True for _ in _reachable(each.lb_endpoints))})
    for each in assignment.endpoints:
        endpoints = list(_reachable(each.lb_endpoints))
        if not endpoints:
            continue
        priority = priorities.index(each.priority)
        key = priority, each.locality.SerializeToString(deterministic=True)
        group = groups.get(key)
        if group is None:
            group = groups[key] = made.endpoints.add(priority=priority)
            group.locality.CopyFrom(each.locality)
        for endpoint in endpoints:
            group.lb_endpoints.add(
                health_status=endpoint.health_status,
                load_balancing_weight=endpoint.load_balancing_weight if endpoint.HasField("load_balancing_weight") else None,
                endpoint={"address": {"socket_address": endpoint.endpoint.address.socket_address}},
            )
        group.load_balancing_weight.value += each.load_balancing_weight.value or sum(e.load_balancing_weight.value or 1 for e in endpoints)
    return made


def _reachable(endpoints: Iterable[Any]) -> Iterator[Any]:
    """Those at an address of their own: gRPC knows no tunnels within a proxy."""
    return (endpoint for endpoint in endpoints if endpoint.endpoint.address.HasField("socket_address"))
