"""Classes of proxies: what a connected proxy's groups hold after changes."""

from typing import Any

from xds import pb
from xds.discovery.resources import Assignment
from xds.envoy.classes import Classes
from xds.mesh.store import Mesh
from xds.mesh.workloads import claim
from xds.objects.decoding import from_yaml
from xds.sources.changes import Change

CLUSTER, ENDPOINTS, ROUTES = map(pb.type_url, (pb.Cluster, pb.ClusterLoadAssignment, pb.RouteConfiguration))


def service(name: str, address: str) -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [10.1.0.1], conditions: {{ready: true}}}}]
"""


SIDECAR = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: default}
spec: {egress: [{hosts: [./b.default.svc.cluster.local]}]}
"""


class Proxy:
    """A connected stream."""

    def __init__(self, address: str = "10.2.0.1") -> None:
        self.node = pb.Node(id=f"sidecar~{address}~client.default~default.svc.cluster.local")
        self.node_metadata: dict[str, Any] = {}
        self.peer_identity = ""
        self.pieces = False
        self.assignment: Assignment | None = None

    def assign(self, assignment: Assignment) -> None:
        self.assignment = assignment

    def names(self, type_url: str) -> set[str]:
        assert self.assignment is not None
        return {name for group in self.assignment.groups[type_url] for name in group.resources}


class World:
    """A mesh, and its classes, settled after each change."""

    def __init__(self) -> None:
        self.mesh = Mesh()
        self.classes = Classes(self.mesh)

    def connect(self, proxy: Proxy) -> Proxy:
        proxy.assignment = self.classes.open(proxy)
        return proxy

    def apply(self, text: str) -> None:
        self._change([Change(d.ref, d.object) for d in from_yaml(text, "test.yaml") if d.ref is not None])

    def delete(self, text: str) -> None:
        self._change([Change(d.ref) for d in from_yaml(text, "test.yaml") if d.ref is not None])

    def held(self) -> dict[str, dict[str, int]]:
        return self.classes.sizes(lambda *_: 0)[0]

    def _change(self, changes: list[Change]) -> None:
        self.mesh.apply(changes)
        for _ in self.classes.settle():
            pass
        self.classes.flush()


def outbound(name: str) -> str:
    return f"outbound|80||{name}.default.svc.cluster.local"


def test_a_new_service_reaches_clusters_endpoints_and_routes_of_a_connected_proxy() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1"))
    proxy = world.connect(Proxy())
    world.apply(service("b", "10.96.0.2"))
    assert outbound("b") in proxy.names(CLUSTER)
    assert outbound("b") in proxy.names(ENDPOINTS)
    assert b"b.default.svc.cluster.local" in proxy.assignment.groups[ROUTES][0].resources["80"].body


def test_a_deleted_service_leaves_nothing_behind() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1"))
    proxy = world.connect(Proxy())
    world.apply(service("b", "10.96.0.2"))
    world.delete(service("b", "10.96.0.2"))
    assert outbound("b") not in proxy.names(CLUSTER) | proxy.names(ENDPOINTS)


def test_a_sidecar_that_appears_moves_the_proxy_to_what_it_shows() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1") + "---" + service("b", "10.96.0.2"))
    proxy = world.connect(Proxy())
    world.apply(SIDECAR)
    assert outbound("a") not in proxy.names(CLUSTER)
    assert outbound("b") in proxy.names(CLUSTER)


def test_proxies_that_see_the_same_share_their_outbound_groups() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1"))
    one, other = world.connect(Proxy("10.2.0.1")), world.connect(Proxy("10.2.0.2"))
    assert one.assignment.groups[ENDPOINTS][0] is other.assignment.groups[ENDPOINTS][0]
    assert one.assignment.groups[CLUSTER][0] is other.assignment.groups[CLUSTER][0]


def test_groups_that_nobody_uses_are_let_go_a_while_after_the_last_proxy_left() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1"))
    proxy = world.connect(Proxy())
    world.classes.close(proxy)
    world.classes.release()
    assert world.held()
    world.classes.release()
    assert not world.held()


def test_a_proxy_that_comes_back_finds_its_groups_up_to_date() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1"))
    first = world.connect(Proxy())
    assert first.assignment is not None
    group = first.assignment.groups[ENDPOINTS][0]
    world.classes.close(first)
    world.classes.release()
    world.apply(service("b", "10.96.0.2"))
    second = world.connect(Proxy())
    world.classes.release()
    world.classes.release()
    assert second.assignment is not None
    assert second.assignment.groups[ENDPOINTS][0] is group
    assert second.names(ENDPOINTS) == {outbound("a"), outbound("b")}


def test_what_was_prepared_is_what_a_proxy_gets() -> None:
    world = World()
    world.apply(service("a", "10.96.0.1"))
    proxy = Proxy()
    for _ in world.classes.prepare(claim(proxy.node.id, {})):
        world.apply(service("b", "10.96.0.2"))  # changes in between
    world.connect(proxy)
    assert {outbound("a"), outbound("b")} <= proxy.names(CLUSTER)
    assert proxy.names(ENDPOINTS) == {outbound("a"), outbound("b")}
