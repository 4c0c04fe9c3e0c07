"""After any sequence of changes, what proxies get is what a control plane started just now would give them, version by version."""

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from xds import pb
from xds.discovery.resources import Assignment
from xds.envoy.classes import Classes
from xds.mesh.store import Mesh
from xds.objects import KINDS
from xds.objects.decoding import from_json
from xds.sources.changes import Change

NAMESPACES = ("one", "two")
NAMES = ("a", "b", "c")


def manifest(kind: str, api: str, name: str, namespace: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}


def service(name: str, namespace: str, variant: int) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80}, *([{"name": "tcp", "port": 90}] if variant == 1 else [])]
    address = "None" if variant == 2 else f"10.96.{NAMESPACES.index(namespace)}.{ord(name) % 90}"
    return manifest("Service", "v1", name, namespace, spec={"clusterIP": address, "ports": ports})


def endpoints(name: str, namespace: str, variant: int) -> dict[str, Any]:
    made = manifest("EndpointSlice", "discovery.k8s.io/v1", f"{name}-1", namespace, addressType="IPv4")
    made["metadata"]["labels"] = {"kubernetes.io/service-name": name}
    made["ports"] = [{"name": "http", "port": 8080}, {"name": "tcp", "port": 9090}]
    made["endpoints"] = [{"addresses": [f"10.1.{variant}.{i}"], "conditions": {"ready": True}} for i in range(1, variant + 2)]
    return made


def virtual_service(name: str, namespace: str, variant: int) -> dict[str, Any]:
    host = ("a.one.svc.cluster.local", "b.two.svc.cluster.local", "elsewhere.example")[variant]
    spec: dict[str, Any] = {"hosts": [host], "http": [{"timeout": f"{variant + 1}s", "route": [{"destination": {"host": f"{name}"}}]}]}
    if variant == 1:
        spec["exportTo"] = ["."]
    return manifest("VirtualService", "networking.istio.io/v1", name, namespace, spec=spec)


def destination_rule(name: str, namespace: str, variant: int) -> dict[str, Any]:
    host = ("a.one.svc.cluster.local", "b.two.svc.cluster.local", "a.one.svc.cluster.local")[variant]
    spec = {"host": host, "subsets": [{"name": f"v{variant}", "labels": {"version": str(variant)}}]}
    return manifest("DestinationRule", "networking.istio.io/v1", name, namespace, spec=spec)


def sidecar(name: str, namespace: str, variant: int) -> dict[str, Any]:
    hosts = (["./*"], ["*/a.one.svc.cluster.local"], ["one/*", "./b.two.svc.cluster.local"])[variant]
    return manifest("Sidecar", "networking.istio.io/v1", name, namespace, spec={"egress": [{"hosts": hosts}]})


MAKERS = (service, endpoints, virtual_service, destination_rule, sidecar)


class Proxy:
    """A stream, as classes see it."""

    peer_identity = ""
    pieces = True

    def __init__(self, namespace: str, index: int) -> None:
        self.node = pb.Node(id=f"sidecar~10.1.0.{index}~client-{index}.{namespace}~{namespace}.svc.cluster.local")
        self.node_metadata: dict[str, Any] = {"ROUTE_TABLES": "pieces"} if index == 2 else {}
        self.assignment: Assignment | None = None

    def assign(self, assignment: Assignment) -> None:
        self.assignment = assignment


def held(assignment: Assignment | None) -> dict[str, dict[str, str]]:
    assert assignment is not None
    return {url: {r.name: r.version for g in groups for r in g.offered()} for url, groups in assignment.groups.items()}


class Agreement(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.mesh = Mesh()
        self.classes = Classes(self.mesh)
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.proxies: dict[tuple[str, int], Proxy] = {}

    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from(MAKERS), st.sampled_from(NAMES), st.sampled_from(NAMESPACES), st.integers(-1, 2)),
            min_size=1,
            max_size=4,
        )
    )
    def change(self, changes: list[tuple[Any, str, str, int]]) -> None:
        for make, name, namespace, variant in changes:
            made = make(name, namespace, max(variant, 0))
            key = (made["kind"], namespace, made["metadata"]["name"])
            if variant >= 0:
                self.objects[key] = made
            else:
                self.objects.pop(key, None)
            self.mesh.apply([changed(made, gone=variant < 0)])

    @rule(namespace=st.sampled_from(NAMESPACES), index=st.integers(0, 2))
    def connect(self, namespace: str, index: int) -> None:
        if (namespace, index) not in self.proxies:
            proxy = self.proxies[namespace, index] = Proxy(namespace, index)
            proxy.assignment = self.classes.open(proxy)

    @rule(namespace=st.sampled_from(NAMESPACES), index=st.integers(0, 2))
    def leave(self, namespace: str, index: int) -> None:
        proxy = self.proxies.pop((namespace, index), None)
        if proxy is not None:
            self.classes.close(proxy)

    @rule()
    def settle(self) -> None:
        for _ in self.classes.settle():
            pass
        self.classes.flush()
        self.mesh.sweep()

    @rule()
    def release(self) -> None:
        self.classes.release()

    @rule()
    def proxies_have_what_a_new_control_plane_would_give(self) -> None:
        self.settle()
        fresh = Mesh()
        fresh.apply([changed(made) for made in self.objects.values()])
        classes = Classes(fresh)
        for (namespace, index), proxy in self.proxies.items():
            assert held(proxy.assignment) == held(classes.open(Proxy(namespace, index))), (namespace, index)

    def teardown(self) -> None:
        self.proxies_have_what_a_new_control_plane_would_give()


def changed(made: dict[str, Any], *, gone: bool = False) -> Change:
    decoded = from_json(json.dumps(made).encode(), KINDS[made["kind"]])
    assert decoded.ref is not None
    assert decoded.object is not None, decoded.problems
    return Change(decoded.ref) if gone else Change(decoded.ref, decoded.object)


TestAgreement = Agreement.TestCase
TestAgreement.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
