"""The endpoints of services: an assignment for each cluster that is told its endpoints, ordered for where the client is.

Istio: "Locality Load Balancing"; Envoy: `config.endpoint.v3`, "Priority levels", "Locality weighted load balancing".
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from xds import pb
from xds.envoy import names
from xds.envoy.addresses import UNIX, address, is_ip
from xds.envoy.load_balancing import minimum_health_percent
from xds.envoy.localities import CLUSTER_ID, NODE, Placement, distance, placement, shares
from xds.envoy.metadata import istio
from xds.mesh.model import Client, Endpoint, Health, Labels, Locality, Port, Resolution, Service
from xds.mesh.view import View
from xds.objects import TrafficPolicy

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_Metadata_Init as Metadata
    from xds.pb import envoy_config_endpoint_v3_ClusterLoadAssignment_Init as LoadAssignment
    from xds.pb import envoy_config_endpoint_v3_LbEndpoint_Init as LbEndpoint
    from xds.pb import envoy_config_endpoint_v3_LocalityLbEndpoints_Init as LocalityLbEndpoints

MAX_WEIGHT = 2**32 - 1  # Envoy: of all endpoints of a locality, and of all localities of a priority

CANONICAL_NAMES = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
CANONICAL_REVISIONS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def assignments(view: View, service: Service, client: Client) -> list[pb.ClusterLoadAssignment]:
    """The assignments of the clusters of `service` that may be told their endpoints. Of `client` just its place matters."""
    return [
        pb.ClusterLoadAssignment(**load_assignment(view, service, port.number, subset, policy, client))
        for port, subset, policy in destinations(view, service)
        if told(service, policy)
    ]


def destinations(view: View, service: Service) -> Iterator[tuple[Port, str, TrafficPolicy]]:
    """What of `service` can be called: port by port all of it, then each subset; with the policy for it.

    A headless service's callers go to one of its pods themselves, but for those whom a rule for another host leads to it.
    """
    subsets = ("", *(subset.name for subset in view.policy(service).subsets), *([names.EVERY_POD] if service.headless else []))
    for port in service.ports:
        if not port.protocol.is_udp:
            for subset in subsets:
                yield port, subset, view.traffic_policy(service, port.number, subset)


def told(service: Service, policy: TrafficPolicy) -> bool:
    """Whether there are clients that we tell the endpoints (EDS). Headless services' are found by most clients' own calls."""
    if policy.load_balancer is not None and policy.load_balancer.simple == "PASSTHROUGH":
        return False
    return service.resolution in (Resolution.ENDPOINTS, Resolution.PASSTHROUGH)


def deciding_labels(view: View, service: Service) -> frozenset[str]:
    """The labels of a client that decide which endpoints of `service` it gets, or in what order. See `localities.project`."""
    found: set[str] = {NODE} if service.node_local else set()
    for _, _, policy in destinations(view, service):
        found |= placement(service, policy, view.config).labels
    return frozenset(found)


def load_assignment(
    view: View, service: Service, port: int, subset: str, policy: TrafficPolicy, client: Client, single: bool = False
) -> "LoadAssignment":
    """The endpoints of one cluster, by locality, nearest first where their distance counts; `single`: just one of them."""
    selected = view.policy(service).subset(subset) if subset else None
    endpoints: Iterable[Endpoint] = view.endpoints(service, port, selected.labels if selected is not None else ())
    if told(service, policy):
        # One name among the addresses, of a WorkloadEntry say, and Envoy refuses the whole response.
        endpoints = [e for e in endpoints if _is_address(e.address)]
    if service.node_local:
        endpoints = [e for e in endpoints if e.node == client.node]
    if minimum_health_percent(policy.outlier_detection):
        # Envoy will fall back on unhealthy endpoints: it must not know those that are not ready.
        endpoints = [e for e in endpoints if e.health is Health.HEALTHY]
    placed = placement(service, policy, view.config)
    return {
        "cluster_name": names.outbound(service.hostname, port, subset),
        "endpoints": _localities(placed, client, list(endpoints)[:1] if single else list(endpoints)),
    }


def _localities(placed: Placement, client: Client, endpoints: list[Endpoint]) -> "list[LocalityLbEndpoints]":
    if placed.levels or placed.by_locality:
        distances = [distance(placed, client, e) for e in endpoints]
        order = {far: priority for priority, far in enumerate(sorted(set(distances)))}
        priorities: Iterable[int] = (order[far] for far in distances)
    else:
        priorities = (0 for _ in endpoints)
    grouped: dict[tuple[int, Locality], list[Endpoint]] = {}
    for priority, endpoint in zip(priorities, endpoints, strict=True):
        grouped.setdefault((priority, endpoint.locality), []).append(endpoint)
    weights = {key: min(MAX_WEIGHT, sum(e.weight or 1 for e in members)) for key, members in grouped.items()}
    if placed.distribute:
        share = shares(placed, client.locality, {place: weight for (_, place), weight in weights.items()})
        if share is not None:
            weights = {key: share[key[1]] for key in weights if key[1] in share}
    return [
        {
            "locality": {"region": place.region, "zone": place.zone, "sub_zone": place.subzone},
            "priority": priority,
            "load_balancing_weight": {"value": weights[priority, place]},
            "lb_endpoints": [_lb_endpoint(e) for e in grouped[priority, place]],
        }
        for priority, place in sorted(weights)
    ]


def _lb_endpoint(endpoint: Endpoint) -> "LbEndpoint":
    return {
        "endpoint": {"address": address(endpoint.address, endpoint.port)},
        "health_status": None if endpoint.health is Health.HEALTHY else endpoint.health.value,
        "load_balancing_weight": {"value": endpoint.weight} if endpoint.weight else None,
        "metadata": _workload(endpoint.workload, endpoint.namespace, endpoint.labels),
    }


@lru_cache(maxsize=65_536)
def _is_address(text: str) -> bool:
    return text.startswith(UNIX) or is_ip(text)


@lru_cache(maxsize=16_384)  # the endpoints of a workload have equal ones, and outlive changes of each other
def _workload(name: str, namespace: str, labels: Labels) -> "Metadata | None":
    """Who serves, as `istio.workload`: `reviews-v1;default;reviews;v1;Kubernetes`. Telemetry names the destination by it."""
    if not name:
        return None
    own = dict(labels)
    canonical = next((own[key] for key in CANONICAL_NAMES if key in own), name)
    revision = next((own[key] for key in CANONICAL_REVISIONS if key in own), "latest")
    return istio({"workload": ";".join((name, namespace, canonical, revision, CLUSTER_ID))})
