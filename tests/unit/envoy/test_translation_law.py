"""The law of the whole translation: whatever was changed in whatever order, every proxy has what a server started now would give it."""

# ruff: noqa: E501 - a version of an object is a line

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.meshes import config, endpoints, istio, k8s, namespace, node, objects, pod

from xds import flow, pb
from xds.discovery.resources import Assignment
from xds.envoy.classes import Classes
from xds.envoy.translation import Resources, Shares, Translation, Workload
from xds.errors import Problem
from xds.mesh.model import Client, Scope
from xds.mesh.store import Mesh
from xds.objects import Object
from xds.objects.meta import Ref
from xds.sources.changes import Change

HTTP = "ports: [{name: http, port: 80, targetPort: 8080}]"
BOTH = "ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]"
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"


def to(host: str, subset: str = "") -> str:
    return f"{{destination: {{host: {host}{f', subset: {subset}' if subset else ''}}}}}"


# What each object may be: its versions, of which one at most exists at a time.
VERSIONS = [
    [
        config("{discoverySelectors: [{matchLabels: {mesh: in}}], connectTimeout: 3s}"),
        config("{defaultVirtualServiceExportTo: [.], defaultServiceExportTo: [.]}"),
        config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"),
        config("{defaultDestinationRuleExportTo: [.], proxyHttpPort: 15002}"),
    ],
    [namespace("a", "mesh: in"), namespace("a", "mesh: out")],
    [namespace("b", "mesh: in")],
    [namespace("istio-system", "mesh: in")],
    [node("n1", "r", "z1"), node("n1", "r", "z2")],
    [
        k8s("x", "a", HTTP),
        k8s("x", "a", BOTH),
        k8s("x", "a", f"{HTTP}, clusterIP: None, selector: {{app: x}}"),
        k8s("x", "a", "type: ExternalName, externalName: y.b.svc.cluster.local"),
        k8s("x", "a", HTTP, annotations="{networking.istio.io/exportTo: .}"),
    ],
    [k8s("y", "b", BOTH), k8s("y", "b", HTTP, annotations="{networking.istio.io/exportTo: a}"), k8s("y", "b", f"{HTTP}, trafficDistribution: PreferClose")],
    [
        endpoints("x", "{addresses: [10.1.0.1], targetRef: {kind: Pod, name: x1}}, {addresses: [10.1.0.2], conditions: {ready: false}}", "a"),
        endpoints("x", "{addresses: [10.1.0.1], targetRef: {kind: Pod, name: x1}, nodeName: n1}", "a"),
        endpoints("x", "", "a"),
    ],
    [endpoints("y", "{addresses: [10.1.1.1], nodeName: n1}, {addresses: [10.1.1.2]}", "b", "{name: http, port: 8080}, {name: tcp, port: 9000}")],
    [
        pod("x1", "10.1.0.1", "app: x, version: v1", "a", "nodeName: n1"),
        pod("x1", "10.1.0.1", "app: x, version: v2", "a", "nodeName: n1"),
        pod("x1", "10.1.0.9", "app: other", "a"),
    ],
    [pod("y1", "10.1.1.1", "app: y", "b", "nodeName: n1"), pod("y1", "10.1.1.1", "app: y, istio-locality: r.z9", "b")],
    [
        istio("VirtualService", "one", "hosts: [x], http: [{match: [{uri: {prefix: /p}}], delegate: {name: leaf, namespace: b}}]", "a"),
        istio("VirtualService", "one", f"hosts: [x], http: [{{route: [{to('x', 'v1')}]}}]", "a", creationTimestamp=OLD),
        istio("VirtualService", "one", f"hosts: [x, new.example.com], exportTo: [.], http: [{{route: [{to('y.b.svc.cluster.local')}]}}]", "a"),
        istio("VirtualService", "one", f"hosts: [x], http: [{{match: [{{sourceLabels: {{app: y}}}}], route: [{to('x')}]}}, {{redirect: {{uri: /}}}}]", "a"),
    ],
    [
        istio("VirtualService", "two", f"hosts: [x.a.svc.cluster.local], http: [{{route: [{to('x.a.svc.cluster.local')}], timeout: 1s}}]", "b", creationTimestamp=NEW),
        istio("VirtualService", "two", f"hosts: ['*.a.svc.cluster.local'], http: [{{route: [{to('y')}]}}]", "b"),
        istio("VirtualService", "two", f"hosts: [y], tcp: [{{match: [{{port: 9000}}], route: [{to('x.a.svc.cluster.local')}]}}]", "b"),
    ],
    [
        istio("VirtualService", "leaf", f"http: [{{match: [{{uri: {{prefix: /p/q}}}}], route: [{to('y')}]}}]", "b"),
        istio("VirtualService", "leaf", f"exportTo: [.], http: [{{route: [{to('y')}]}}]", "b"),
    ],
    [
        istio("DestinationRule", "of-x", "host: x, subsets: [{name: v1, labels: {version: v1}}, {name: v3}]", "a", creationTimestamp=NEW),
        istio("DestinationRule", "of-x", "host: x, exportTo: [.], trafficPolicy: {loadBalancer: {simple: RANDOM}}", "a"),
        istio("DestinationRule", "of-x", "host: x, workloadSelector: {matchLabels: {app: x}}, trafficPolicy: {loadBalancer: {simple: RANDOM}}", "a"),
    ],
    [istio("DestinationRule", "also-x", "host: x, subsets: [{name: v1, labels: {version: v2}}, {name: v2, labels: {version: v2}}]", "a", creationTimestamp=OLD)],
    [istio("DestinationRule", "of-x", "host: x.a.svc.cluster.local, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}", "b")],
    [
        istio("DestinationRule", "named", "host: y, exportTo: [a], trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}", "b"),
        istio("DestinationRule", "named", "host: y, exportTo: [elsewhere, .], trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [version]}}}", "b"),
    ],
    [
        istio("DestinationRule", "all", "host: '*.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}}", "istio-system"),
        istio("DestinationRule", "all", "host: '*', trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}", "istio-system"),
    ],
    [
        istio("Sidecar", "default", "egress: [{hosts: ['./*', b/y.b.svc.cluster.local]}]", "a"),
        istio("Sidecar", "default", "egress: [{hosts: ['*/*', '~b/*']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "a"),
    ],
    [
        istio("Sidecar", "some", "workloadSelector: {labels: {app: x}}, egress: [{port: {number: 80, protocol: HTTP, name: h}, hosts: ['*/*']}], "
              "ingress: [{port: {number: 8080, protocol: HTTP, name: h}, defaultEndpoint: '127.0.0.1:8081'}]", "a"),
    ],
    [istio("Sidecar", "default", "egress: [{hosts: ['./*', istio-system/*]}]", "istio-system")],
    [
        istio("ServiceEntry", "ext", "hosts: [ext.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS", "a"),
        istio("ServiceEntry", "ext", "hosts: [ext.example.com, '*.wild.example.com'], exportTo: [.], resolution: NONE, "
              "ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]", "a"),
    ],
    [
        istio("ServiceEntry", "vm", "hosts: [vm.example.com], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], location: MESH_INTERNAL, "
              "resolution: STATIC, workloadSelector: {labels: {app: vm}}", "b"),
        istio("ServiceEntry", "vm", "hosts: [vm.example.com, db.example.com], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: STATIC, "
              "endpoints: [{address: 10.6.0.1}]", "b"),
        istio("ServiceEntry", "vm", "hosts: [x.a.svc.cluster.local, ext.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, "
              "addresses: [10.5.0.1], endpoints: [{address: 10.6.0.1, labels: {version: v1}}]", "b"),
    ],
    [
        istio("WorkloadEntry", "vm1", "address: 10.7.0.1, labels: {app: vm}, locality: r/z1, weight: 3", "b"),
        istio("WorkloadEntry", "vm1", "address: 10.7.0.1, labels: {app: vm, version: v1}, ports: {http: 9999}", "b"),
    ],
]  # fmt: skip
CHOICES: list[tuple[Ref, Object | None]] = []
for versions in VERSIONS:
    made = objects(*versions)
    CHOICES += [(made[0].ref, version) for version in [*made, None]]
BAD = (Problem("$", "cannot be used"),)

NODES = {
    "sidecar~10.1.0.1~x1.a~a.svc.cluster.local": {"NAMESPACE": "a"},
    "sidecar~10.1.1.1~y1.b~b.svc.cluster.local": {"NAMESPACE": "b", "DNS_CAPTURE": "true"},
    "sidecar~10.1.0.5~job.a~a.svc.cluster.local": {"NAMESPACE": "a", "DNS_CAPTURE": "true", "DNS_AUTO_ALLOCATE": "true"},
    "sidecar~10.7.0.1~vm1.b~b.svc.cluster.local": {"NAMESPACE": "b", "LABELS": {"app": "vm"}, "INTERCEPTION_MODE": "TPROXY"},
    "sidecar~10.9.9.9~none.elsewhere~elsewhere.svc.cluster.local": {"INTERCEPTION_MODE": "NONE", "LABELS": {"app": "y"}, "NODE_NAME": "n1"},
}

Held = dict[str, dict[str, tuple[str, bytes]]]


class Proxy:
    """A connected stream: what its groups hold is what the proxy has."""

    def __init__(self, node_id: str) -> None:
        self.node = pb.Node(id=node_id)
        self.node_metadata: dict[str, Any] = NODES[node_id]
        self.peer_identity = ""
        self.pieces = False
        self.assignment: Assignment | None = None

    def assign(self, assignment: Assignment) -> None:
        self.assignment = assignment

    def held(self) -> Held:
        assert self.assignment is not None
        found: Held = {}
        for type_url, groups in self.assignment.groups.items():
            of = found[type_url.rpartition(".")[2]] = {}
            for group in groups:
                for name, resource in group.resources.items():
                    assert name not in of, f"{name} comes from two groups"
                    of[name] = (resource.version, resource.body)
        return found


class Unshared(Translation):
    """The translation of each proxy by itself: nothing of the client is left out, and no scope stands for another."""

    @flow.derived
    def shares(self, client: Client) -> Shares:
        scope = Scope(client.namespace, self.mesh.sidecar(client.namespace, client.labels), client.labels)
        inbound = Workload(client, self.mesh.inbound(client))
        return Shares(scope, client, client, client, client, inbound, client if client.dns else None)

    @flow.derived
    def rule_scope(self, scope: Scope, _hostname: str, _namespace: str) -> Scope:
        return scope

    @flow.derived
    def route_scope(self, scope: Scope, _hostname: str, _namespace: str) -> Scope:
        return scope

    @flow.derived
    def clusters(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        return self._clusters(scope, client, hostname, namespace)

    @flow.derived
    def assignments(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        return self._assignments(scope, client, hostname, namespace)


class World:
    """A mesh, its classes, and proxies that come and go."""

    def __init__(self, shared: bool = True) -> None:
        self.mesh = Mesh()
        self.classes = Classes(self.mesh)
        if not shared:
            self.classes.translation = Unshared(self.mesh)
        self.proxies: dict[str, Proxy] = {}
        self.good: dict[Ref, Object] = {}

    def apply(self, changes: list[Change]) -> None:
        self.mesh.apply(changes)
        for change in changes:
            if change.object is not None:
                self.good[change.ref] = change.object
            elif not change.problems:
                self.good.pop(change.ref, None)

    def settle(self) -> None:
        for _ in self.classes.settle():
            pass
        self.classes.flush()
        self.mesh.sweep()
        assert list(self.mesh.errors()) == []

    def toggle(self, node_id: str) -> None:
        """Connect, or disconnect."""
        proxy = self.proxies.pop(node_id, None)
        if proxy is None:
            proxy = self.proxies[node_id] = Proxy(node_id)
            proxy.assign(self.classes.open(proxy))
        else:
            self.classes.close(proxy)

    def check(self, shared: bool = True) -> None:
        """Hold every proxy to what a server that starts now would give it, or one in which proxies share nothing."""
        self.settle()
        fresh = World(shared)
        fresh.apply([Change(ref, item) for ref, item in self.good.items()])
        for node_id, proxy in self.proxies.items():
            fresh.toggle(node_id)
            now, anew = proxy.held(), fresh.proxies[node_id].held()
            for kind in now.keys() | anew.keys():
                assert now[kind].keys() == anew[kind].keys(), f"{kind} of {node_id}"
                different = [name for name in now[kind] if now[kind][name] != anew[kind][name]]
                assert different == [], f"{kind} of {node_id}"


steps = st.one_of(
    st.tuples(st.just("apply"), st.lists(st.integers(0, len(CHOICES) - 1), min_size=1, max_size=4)),
    st.tuples(st.just("apply"), st.lists(st.integers(0, len(CHOICES) - 1), min_size=1, max_size=1)),
    st.tuples(st.just("break"), st.lists(st.integers(0, len(CHOICES) - 1), min_size=1, max_size=1)),
    st.tuples(st.just("toggle"), st.lists(st.integers(0, len(NODES) - 1), min_size=1, max_size=1)),
    st.tuples(st.just("settle"), st.just([])),
)


FIRST = list({ref: i for i, (ref, _) in reversed(list(enumerate(CHOICES)))}.values())  # of each object the first version


@given(
    st.one_of(
        st.lists(st.integers(0, len(CHOICES) - 1), max_size=25),
        st.lists(st.integers(0, len(CHOICES) - 1), max_size=6).map(lambda others: FIRST + others),
    ),
    st.sets(st.sampled_from(sorted(NODES)), min_size=1),
    st.lists(steps, max_size=15),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_incremental_equals_from_scratch(first: list[int], nodes: set[str], todo: list[tuple[str, list[int]]]) -> None:
    world = World()
    world.apply([Change(*CHOICES[i]) for i in first])
    for node_id in sorted(nodes):
        world.toggle(node_id)
    world.check()
    for what, numbers in todo:
        match what:
            case "apply":
                world.apply([Change(*CHOICES[i]) for i in numbers])
            case "break":
                world.apply([Change(CHOICES[i][0], None, BAD) for i in numbers])
            case "toggle":
                world.settle()
                world.toggle(sorted(NODES)[numbers[0]])
            case "settle":
                world.settle()
    world.check()


@given(
    st.one_of(
        st.lists(st.integers(0, len(CHOICES) - 1), max_size=25),
        st.lists(st.integers(0, len(CHOICES) - 1), max_size=12).map(lambda others: FIRST + others),
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_proxies_share_is_what_each_would_get_by_itself(numbers: list[int]) -> None:
    world = World()
    world.apply([Change(*CHOICES[i]) for i in numbers])
    for node_id in NODES:
        world.toggle(node_id)
    world.check(shared=False)


def test_the_objects_it_draws_from_matter() -> None:
    """Among the others, most versions of each object change what some proxy has."""
    first = {CHOICES[i][0]: Change(*CHOICES[i]) for i in FIRST}
    world = World()
    world.apply(list(first.values()))
    for node_id in NODES:
        world.toggle(node_id)
    quiet = []
    for ref, item in CHOICES:
        before = {node_id: proxy.held() for node_id, proxy in world.proxies.items()}
        world.apply([Change(ref, item)])
        world.settle()
        after = {node_id: proxy.held() for node_id, proxy in world.proxies.items()}
        if before == after and item != first[ref].object:
            quiet.append((ref, item))
        world.apply([first[ref]])
        world.settle()
        assert {node_id: proxy.held() for node_id, proxy in world.proxies.items()} == before, "there and back"
    world.check()
    assert quiet == []
