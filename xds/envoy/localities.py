"""Which endpoints a client prefers for where it is: shares of localities, or an order in which they take over from each other.

Istio: "Locality Load Balancing", DestinationRule `localityLbSetting` and `zoneAwareLbSetting`. The more specific setting decides
alone: the rule's, then the service's `trafficDistribution`, then the mesh's. Localities take over from each other (Envoy:
"priority levels") only where Envoy may find endpoints unhealthy, or else none would ever be left.

What of a client matters is told as labels: the workload's own, and those by which Kubernetes and Istio tell where it is.
"""

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import msgspec

from xds.mesh.model import Client, Endpoint, Locality, Service
from xds.objects import (
    Distribute,
    Failover,
    LocalityLoadBalancerSetting,
    MeshConfig,
    TrafficPolicy,
    ZoneAwareLoadBalancerSetting,
)

REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
SUBZONE = "topology.istio.io/subzone"
NODE = "kubernetes.io/hostname"
NETWORK = "topology.istio.io/network"
CLUSTER_ID = "Kubernetes"  # what Istio calls a mesh's only Kubernetes cluster

# What Kubernetes' `trafficDistribution` comes to, widest first.
TRAFFIC_DISTRIBUTION = {
    "PreferClose": (NETWORK, REGION, ZONE),
    "PreferSameZone": (NETWORK, REGION, ZONE),
    "PreferSameNode": (NETWORK, REGION, ZONE, SUBZONE, NODE),
}
SHARE_SCALE = 10_000  # shares are percentages; this keeps a share exact enough when many localities split it


class Placement(msgspec.Struct, frozen=True):
    """How a client's place decides. Empty where all endpoints are alike to it.

    `levels` are labels, the most important first: the more of them an endpoint has in common with the client before one differs,
    the nearer it is. `by_locality` does the same with parts of the locality, among what `levels` find equally near; `failover`
    says which other region is nearer than the rest.
    """

    distribute: tuple[Distribute, ...] = ()
    levels: tuple[str, ...] = ()
    by_locality: tuple[str, ...] = ()
    failover: tuple[Failover, ...] = ()
    zone_aware: ZoneAwareLoadBalancerSetting | None = None

    @property
    def labels(self) -> frozenset[str]:
        """The client's labels that this depends on."""
        located = (REGION, ZONE, SUBZONE) if self.distribute else self.by_locality
        return frozenset((*located, *(level.partition("=")[0] for level in self.levels if "=" not in level)))


NOWHERE = Locality()


def placement(service: Service, policy: TrafficPolicy, config: MeshConfig) -> Placement:
    """How a client's place decides on the endpoints of `service` that `policy` is for."""
    rule, unhealthy_are_told = policy.load_balancer, policy.outlier_detection is not None
    if rule is not None and _enabled(rule.zone_aware_lb_setting):
        return _zone_aware(rule.zone_aware_lb_setting, unhealthy_are_told)
    if rule is not None and rule.locality_lb_setting is not None:
        return _by_locality(rule.locality_lb_setting, unhealthy_are_told)
    if service.traffic_distribution in TRAFFIC_DISTRIBUTION:
        return Placement(levels=TRAFFIC_DISTRIBUTION[service.traffic_distribution])
    if _enabled(config.zone_aware_lb_setting):
        return _zone_aware(config.zone_aware_lb_setting, unhealthy_are_told)
    return _by_locality(config.locality_lb_setting, unhealthy_are_told)


def _enabled(setting: ZoneAwareLoadBalancerSetting | None) -> TypeGuard[ZoneAwareLoadBalancerSetting]:
    return setting is not None and setting.enabled is not False


def _zone_aware(setting: ZoneAwareLoadBalancerSetting, unhealthy_are_told: bool) -> Placement:
    """Envoy itself shares load among the zones of a region; only regions take over from each other."""
    if not unhealthy_are_told:
        return Placement(zone_aware=setting)
    return Placement(zone_aware=setting, levels=setting.failover_priority, by_locality=(REGION,), failover=setting.failover)


def _by_locality(setting: LocalityLoadBalancerSetting, unhealthy_are_told: bool) -> Placement:
    if setting.enabled is False:
        return Placement()
    if setting.distribute:
        return Placement(distribute=setting.distribute)
    if not unhealthy_are_told:
        return Placement()
    if setting.failover_priority and not setting.failover:
        return Placement(levels=setting.failover_priority)
    return Placement(levels=setting.failover_priority, by_locality=(REGION, ZONE, SUBZONE), failover=setting.failover)


def label(of: Client | Endpoint, key: str) -> str:
    """The value of a label, empty where there is none. What tells a place is not looked for among the workload's own labels."""
    match key:
        case "topology.kubernetes.io/region":
            return of.locality.region
        case "topology.kubernetes.io/zone":
            return of.locality.zone
        case "topology.istio.io/subzone":
            return of.locality.subzone
        case "kubernetes.io/hostname":
            return of.node
        case "topology.istio.io/network":
            return of.network
        case "topology.istio.io/cluster":
            return CLUSTER_ID
    return dict(of.labels).get(key, "")


def distance(placement: Placement, client: Client, endpoint: Endpoint) -> tuple[int, int]:
    """How far `endpoint` is for `client`; only the order of distances means anything."""
    far = 0
    for index, level in enumerate(placement.levels):
        key, given, value = level.partition("=")
        if (value if given else label(client, key)) != label(endpoint, key):
            far = len(placement.levels) - index
            break
    return far, _locality_distance(placement, client.locality, endpoint.locality)


def _locality_distance(placement: Placement, ours: Locality, theirs: Locality) -> int:
    if not placement.by_locality or ours == NOWHERE:
        return 0
    if theirs.region == ours.region:
        pairs = ((theirs.zone, ours.zone), (theirs.subzone, ours.subzone))[: len(placement.by_locality) - 1]
        differing = (index for index, (their, our) in enumerate(pairs) if their != our)
        return next((len(pairs) - index for index in differing), 0)
    target = next((f.to for f in placement.failover if f.from_ == ours.region), None)
    return len(placement.by_locality) + (target is not None and theirs.region != target)


def shares(placement: Placement, ours: Locality, weights: Mapping[Locality, int]) -> dict[Locality, int] | None:
    """How load is shared by localities that have `weights` of their own; None where nothing is said for a client at `ours`.

    Localities that fall under one destination share its percentage by their weights. What falls under none gets nothing. Where
    several destinations cover a locality the most specific has it.
    """
    setting = next((d for d in placement.distribute if covers(d.from_ or "", ours)), None)
    if setting is None:
        return None
    found: dict[Locality, int] = {}
    for pattern, percent in sorted(setting.to.items(), key=lambda item: (-_specificity(item[0]), item[0])):
        members = {place: weight for place, weight in weights.items() if place not in found and covers(pattern, place)}
        total = sum(members.values())
        found |= {place: max(1, percent * SHARE_SCALE * weight // total) if percent else 0 for place, weight in members.items()}
    return {place: share for place, share in found.items() if share}


def covers(pattern: str, place: Locality) -> bool:
    """Whether `place` is in what `region/zone/subzone` names; each part may be `*`, and the later ones may be left out."""
    region, zone, subzone = (*pattern.split("/", 2), "", "")[:3]
    return region in ("*", place.region) and zone in ("*", "", place.zone) and subzone in ("*", "", place.subzone)


def _specificity(pattern: str) -> int:
    return sum(part not in ("*", "") for part in pattern.split("/"))


def project(client: Client, labels: Iterable[str]) -> Client:
    """`client` as far as these labels tell it: clients with equal projections prefer the same endpoints."""
    kept = frozenset(labels)
    place = client.locality
    return Client(
        namespace="",
        labels=tuple(pair for pair in client.labels if pair[0] in kept),
        locality=Locality(
            place.region if REGION in kept else "", place.zone if ZONE in kept else "", place.subzone if SUBZONE in kept else ""
        ),
        network=client.network if NETWORK in kept else "",
        node=client.node if NODE in kept else "",
    )
