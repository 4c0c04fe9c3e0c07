"""One service, its DestinationRule and its endpoints, as clusters and assignments are made from them."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from support.chains import unpacked
from support.seen import Seen

from xds import pb
from xds.envoy.clusters import outbound_clusters
from xds.envoy.endpoints import assignments
from xds.envoy.traffic_policy import HTTP_PROTOCOL_OPTIONS
from xds.mesh.model import Client, DestinationPolicy, Endpoint, Labels, Locality, Port, Protocol, Resolution, Service, Subset
from xds.mesh.policies import layered
from xds.objects import MeshConfig, TrafficPolicy
from xds.objects.meta import Ref, decode_hook

HOST = "reviews.default.svc.cluster.local"
RULE = Ref("DestinationRule", "default", "reviews")
SIDECAR = Client("default", addresses=("10.0.0.1",))


def decoded(value: Mapping[str, Any], kind: Any) -> Any:
    """`value`, written as in YAML, as a struct."""
    return msgspec.convert(value, kind, dec_hook=decode_hook)


def reviews(*ports: Port, **fields: Any) -> Service:
    """The service `reviews`: of one HTTP port, 9080, unless said otherwise."""
    known = {"ref": Ref("Service", "default", "reviews"), "ports": ports or (Port(9080, "http", Protocol.HTTP),)}
    return Service(**{"hostname": HOST, "namespace": "default", **known, **fields})


def entry(hostname: str, *ports: Port, **fields: Any) -> Service:
    """A host of a ServiceEntry that DNS resolves."""
    known = {"resolution": Resolution.DNS, "external": True, "from_kubernetes": False}
    return reviews(*ports, **{"hostname": hostname, "ref": Ref("ServiceEntry", "default", "entry"), **known, **fields})


def at(address: str, port: int = 9080, place: str = "", **fields: Any) -> Endpoint:
    """An endpoint; `place` is `region/zone/subzone`."""
    return Endpoint(address, port, locality=Locality(*place.split("/")), namespace="default", **fields)


class Destination(Seen):
    """A view of one service under the `trafficPolicy` and `subsets` of one DestinationRule, written as in YAML.

    `selects`: the rule is for some workloads, and the client is one of them.
    """

    def __init__(
        self,
        service: Service | None = None,
        policy: Mapping[str, Any] | None = None,
        subsets: Iterable[Mapping[str, Any]] = (),
        endpoints: Iterable[Endpoint] = (),
        config: Mapping[str, Any] | None = None,
        *,
        selects: bool = False,
    ) -> None:
        self.the_service = service or reviews()
        super().__init__(self.the_service, config=decoded(config or {}, MeshConfig))
        made = tuple(
            Subset(
                s["name"],
                tuple(sorted(s.get("labels", {}).items())),
                decoded(s["trafficPolicy"], TrafficPolicy) if "trafficPolicy" in s else None,
            )
            for s in subsets
        )
        own = None if policy is None else decoded(policy, TrafficPolicy)
        self.rule = DestinationPolicy(own, made, (RULE,) if own or made else (), selects)
        self.all_endpoints = tuple(endpoints)
        self.hosts: tuple[str, ...] = ()  # further hosts that a rig's requests may name

    def called_at(self, service: Service, client: Client) -> tuple[str, ...]:
        return service.addresses

    def policy(self, service: Service) -> DestinationPolicy:
        return self.rule

    def traffic_policy(self, service: Service, port: int, subset: str = "") -> TrafficPolicy:
        found = layered(TrafficPolicy(), self.rule.policy, port, TrafficPolicy())
        part = self.rule.subset(subset)
        return found if part is None else layered(found, part.policy, port, TrafficPolicy())

    def endpoints(self, service: Service, port: int, labels: Labels = ()) -> tuple[Endpoint, ...]:
        return tuple(e for e in self.all_endpoints if set(labels) <= set(e.labels))

    def clusters(self, client: Client = SIDECAR) -> dict[str, pb.Cluster]:
        """The service's clusters by name."""
        return {c.name: c for c in outbound_clusters(self, self.the_service, client)}

    def cluster(self, client: Client = SIDECAR) -> Any:
        """The cluster of a service of one port and no subsets; of a headless one's two, that of those who call a pod themselves."""
        first, *_ = self.clusters(client).values()
        return first

    def assignments(self, client: Client = SIDECAR) -> dict[str, pb.ClusterLoadAssignment]:
        """The service's assignments by cluster name."""
        return {a.cluster_name: a for a in assignments(self, self.the_service, client)}

    def assignment(self, client: Client = SIDECAR) -> Any:
        """The only assignment of a service of one port and no subsets."""
        (assignment,) = self.assignments(client).values()
        return assignment


def cluster(policy: Mapping[str, Any] | None = None, client: Client = SIDECAR, **kwargs: Any) -> Any:
    """The cluster of a service of one port under this `trafficPolicy`."""
    return Destination(policy=policy, **kwargs).cluster(client)


def http_options(cluster: Any) -> Any:
    """A cluster's HttpProtocolOptions; None where it has Envoy's defaults."""
    packed = cluster.typed_extension_protocol_options
    return unpacked(packed[HTTP_PROTOCOL_OPTIONS]) if HTTP_PROTOCOL_OPTIONS in packed else None


def priorities(assignment: Any) -> list[list[str]]:
    """The addresses of an assignment's endpoints, by priority."""
    found: dict[int, list[str]] = {}
    for locality in assignment.endpoints:
        found.setdefault(locality.priority, []).extend(e.endpoint.address.socket_address.address for e in locality.lb_endpoints)
    return [sorted(found[priority]) for priority in sorted(found)]
