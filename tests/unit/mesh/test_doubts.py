"""Warnings that objects give each other cause for."""

from typing import Any

import pytest
from support.meshes import apply, config, delete, endpoints, istio, k8s, mesh, pod

from xds.mesh.store import Mesh

X = "x.a.svc.cluster.local"
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
SUBSETS = "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]"


def to(destination: str, kind: str = "http", more: str = "", name: str = "r", namespace: str = "a") -> str:
    """A VirtualService of `x` that leads to `destination`."""
    return istio("VirtualService", name, f"hosts: [x], {kind}: [{{{more}route: [{{destination: {{{destination}}}}}]}}]", namespace)


def told(made: Mesh, of: str = "r.a") -> list[str]:
    """The warnings on the objects of this name."""
    assert all(problem["warning"] and problem["in_force"] for problem in made.problems())
    return [problem["problem"] for problem in made.problems() if problem["object"].split()[1] == of]


class TestDestinations:
    @pytest.mark.parametrize(
        ("destination", "reason"),
        [
            ("host: x", ""),
            ("host: x, port: {number: 80}", ""),
            ("host: api.wild.test", ""),
            ("host: alias", ""),
            ("host: nobody", ".host: there is no service nobody.a.svc.cluster.local"),
            ("host: nobody.test", ".host: there is no service nobody.test"),
            ("host: x.a", f".host: there is no service x.a; did you mean {X}?"),
            ("host: x.a.svc", f".host: there is no service x.a.svc; did you mean {X}?"),
            ("host: x, subset: v9", f".subset: no DestinationRule defines the subset v9 of {X}"),
            ("host: x, subset: v1", ""),
            ("host: x, subset: of-all", ""),
            ("host: x, port: {number: 81}", f".port.number: {X} has no port 81; it has 80"),
        ],
    )
    def test_a_service_a_subset_and_a_port_must_be_there(self, destination: str, reason: str) -> None:
        made = mesh(
            k8s("x", "a"),
            k8s("alias", "a", f"type: ExternalName, externalName: {X}"),
            istio("ServiceEntry", "wild", "hosts: ['*.wild.test'], ports: [{number: 80, name: http, protocol: HTTP}]", "b"),
            istio("DestinationRule", "x", f"host: x, {SUBSETS}", "a"),
            istio("DestinationRule", "all", "host: '*.svc.cluster.local', subsets: [{name: of-all}]", "b"),
            to(destination),
        )
        assert told(made) == ([f"$.spec.http[0].route[0].destination{reason}"] if reason else [])

    @pytest.mark.parametrize("kind", ["tcp", "tls"])
    def test_of_connections_too(self, kind: str) -> None:
        more = "match: [{sniHosts: [x]}], " if kind == "tls" else ""
        made = mesh(k8s("x", "a"), to("host: nobody", kind, more))
        assert told(made) == [f"$.spec.{kind}[0].route[0].destination.host: there is no service nobody.a.svc.cluster.local"]

    def test_of_mirrors_too(self) -> None:
        made = mesh(k8s("x", "a"), to("host: x", more="mirrors: [{destination: {host: two}}], "))
        assert told(made) == ["$.spec.http[0].mirrors[0].destination.host: there is no service two.a.svc.cluster.local"]
        apply(made, to("host: x", more="mirror: {host: one}, "))
        assert told(made) == ["$.spec.http[0].mirror.host: there is no service one.a.svc.cluster.local"]

    def test_a_service_must_be_exported_to_somebody_whom_the_rule_is_for(self) -> None:
        private = k8s("y", "b", annotations="{networking.istio.io/exportTo: .}")
        y = "host: y.b.svc.cluster.local"
        made = mesh(k8s("x", "a"), private, to(y))
        assert told(made) == []  # clients in b follow the rule and see the service
        rule = istio("VirtualService", "r", f"hosts: [x], exportTo: [.], http: [{{route: [{{destination: {{{y}}}}}]}}]", "a")
        apply(made, rule)
        assert told(made) == ["$.spec.http[0].route[0].destination.host: there is no service y.b.svc.cluster.local"]

    def test_what_comes_later_ends_the_warning(self) -> None:
        made = mesh(k8s("x", "a"), to("host: later, subset: v1"))
        assert told(made) != []
        apply(made, k8s("later", "a"), istio("DestinationRule", "later", f"host: later, {SUBSETS}", "a"))
        assert told(made) == []
        delete(made, "DestinationRule later.a")
        (problem,) = told(made)
        assert problem.endswith(".subset: no DestinationRule defines the subset v1 of later.a.svc.cluster.local")

    def test_rules_of_gateways_alone_are_none_of_ours(self) -> None:
        rule = "hosts: [x], gateways: [edge], http: [{route: [{destination: {host: nobody}}]}]"
        assert told(mesh(k8s("x", "a"), istio("VirtualService", "r", rule, "a"))) == []

    def test_rules_of_namespaces_that_the_mesh_does_not_look_at_are_none_of_ours(self) -> None:
        selectors = config("discoverySelectors: [{matchLabels: {kubernetes.io/metadata.name: b}}]")
        assert told(mesh(to("host: nobody"), selectors)) == []


class TestDelegates:
    ROOT = istio("VirtualService", "r", "hosts: [x], http: [{delegate: {name: leaf, namespace: b}}]", "a")

    @staticmethod
    def leaf(more: str = "", destination: str = "host: x.a.svc.cluster.local") -> str:
        return istio("VirtualService", "leaf", f"{more}http: [{{route: [{{destination: {{{destination}}}}}]}}]", "b")

    @pytest.mark.parametrize(
        ("leaf", "reason"),
        [
            ("", "there is no VirtualService leaf.b"),
            ("hosts: [other.test], ", "VirtualService leaf.b is no delegate: it has hosts of its own"),
            ("exportTo: [.], ", "VirtualService leaf.b is not exported to a"),
            ("exportTo: [a], ", ""),
            ("exportTo: ['*'], ", ""),
        ],
    )
    def test_a_delegate_must_be_there_and_exported_to_the_root(self, leaf: str, reason: str) -> None:
        made = mesh(k8s("x", "a"), self.ROOT, *([self.leaf(leaf)] if leaf else []))
        assert told(made) == ([f"$.spec.http[0].delegate: {reason}; the route has no effect"] if reason else [])

    def test_a_delegate_s_destinations_are_looked_for_in_its_own_namespace(self) -> None:
        made = mesh(k8s("x", "a"), self.ROOT, self.leaf(destination="host: x"))
        assert told(made, "leaf.b") == ["$.spec.http[0].route[0].destination.host: there is no service x.b.svc.cluster.local"]


class TestRivals:
    @staticmethod
    def rule(name: str, hosts: str, more: str = "", namespace: str = "a", created: str = OLD) -> str:
        spec = f"hosts: [{hosts}]{more}, http: [{{redirect: {{uri: /}}}}]"
        return istio("VirtualService", name, spec, namespace, creationTimestamp=created)

    def test_the_younger_of_two_for_one_host_is_told(self) -> None:
        made = mesh(k8s("x", "a"), self.rule("old", f"other.test, {X}"), self.rule("r", "more.test, x", created=NEW))
        assert told(made, "old.a") == []
        assert told(made) == [f"$.spec.hosts[1]: for {X}, clients follow VirtualService old.a and not this one"]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("", ", exportTo: [.]"),  # followed in its own namespace, where it is the nearer
            (", exportTo: [b]", ", exportTo: [c]"),
            (", exportTo: [b]", ""),  # followed everywhere else
            (", gateways: [edge]", ""),
        ],
    )
    def test_a_rule_that_somebody_follows_is_not(self, old: str, new: str) -> None:
        assert told(mesh(k8s("x", "a"), self.rule("old", "x", old), self.rule("r", "x", new, created=NEW))) == []

    def test_a_nearer_rule_stands_before_an_older_one_that_only_its_namespace_sees(self) -> None:
        made = mesh(k8s("x", "a"), self.rule("r", X, ", exportTo: [a]", "b"), self.rule("near", "x", ", exportTo: [.]", created=NEW))
        assert told(made, "near.a") == []
        assert told(made, "r.b") == [f"$.spec.hosts[0]: for {X}, clients follow VirtualService near.a and not this one"]


class TestDestinationRules:
    PODS = (
        endpoints("x", "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}", "a"),
        pod("p", "10.0.0.1", "app: x, version: v1", "a"),
    )

    @pytest.mark.parametrize(
        ("host", "known"),
        [("x", True), (X, True), ("'*.cluster.local'", True), ("nobody", False), ("'*.nobody.test'", False), ("x.a", False)],
    )
    def test_some_service_must_have_the_host(self, host: str, known: bool) -> None:
        found = told(mesh(k8s("x", "a"), istio("DestinationRule", "r", f"host: {host}, trafficPolicy: {{}}", "a")))
        assert [text.partition(" service")[0] for text in found] == ([] if known else ["$.spec.host: there is no"])

    def test_a_subset_that_no_endpoint_belongs_to_is_told(self) -> None:
        made = mesh(k8s("x", "a"), *self.PODS, istio("DestinationRule", "r", f"host: x, {SUBSETS}", "a"))
        assert told(made) == [f"$.spec.subsets[1].labels: no endpoint of {X} has version=v2"]

    def test_a_service_without_endpoints_is_no_fault_of_the_rule(self) -> None:
        assert told(mesh(k8s("x", "a"), istio("DestinationRule", "r", f"host: x, {SUBSETS}", "a"))) == []

    def test_endpoints_of_service_entries_have_labels_of_their_own(self) -> None:
        entry = "hosts: [x.test], ports: [{number: 80, name: http}], resolution: STATIC"
        entry += ", endpoints: [{address: 10.0.0.1, labels: {version: v2}}]"
        made = mesh(istio("ServiceEntry", "x", entry, "a"), istio("DestinationRule", "r", f"host: x.test, {SUBSETS}", "a"))
        assert told(made) == ["$.spec.subsets[0].labels: no endpoint of x.test has version=v1"]


def test_of_sidecars_without_a_selector_a_namespace_has_one() -> None:
    spec = "egress: [{hosts: ['./*']}]"
    made = mesh(
        istio("Sidecar", "old", spec, "a", creationTimestamp=OLD),
        istio("Sidecar", "r", spec, "a", creationTimestamp=NEW),
        istio("Sidecar", "selecting", f"workloadSelector: {{labels: {{app: x}}}}, {spec}", "a", creationTimestamp=NEW),
        istio("Sidecar", "elsewhere", spec, "b", creationTimestamp=NEW),
    )
    assert [problem["object"] for problem in made.problems()] == ["Sidecar r.a"]
    assert told(made) == ["$.spec: without a workloadSelector it has no effect: Sidecar old.a has none either, and is older"]


def test_asking_leaves_nothing_behind_for_changes_to_settle() -> None:
    made = mesh(k8s("x", "a"), *TestDestinationRules.PODS, istio("DestinationRule", "r", f"host: x, {SUBSETS}", "a"), to("host: nobody"))

    def kept() -> dict[str, int]:
        made.sweep()
        return {name: len(held.nodes) for name, held in vars(made).items() if getattr(held, "nodes", None)}

    before = kept()
    assert made.problems()
    assert kept() == before


class TestSteps:
    """The mesh may change while it is looked at."""

    OBJECTS = (
        to("host: gone"),
        istio("VirtualService", "delegating", "hosts: [x], http: [{delegate: {name: gone}}]", "a"),
        istio("DestinationRule", "d", "host: gone", "a"),
        istio("Sidecar", "one", "egress: [{hosts: [./*]}]", "a"),
        istio("Sidecar", "two", "egress: [{hosts: [./*]}]", "a"),
    )
    NAMES = ("VirtualService r.a", "VirtualService delegating.a", "DestinationRule d.a", "Sidecar one.a", "Sidecar two.a")

    def test_no_step_looks_at_more_than_one_rule(self) -> None:
        rules = [istio("DestinationRule", f"d{n}", f"host: gone{n}", "a") for n in range(50)]
        found: list[dict[str, Any]] = []
        assert len(list(mesh(*rules).examine(found))) >= len(found) == len(rules)

    def test_nothing_is_said_of_rules_that_are_deleted_meanwhile(self) -> None:
        count = len(list(mesh(*self.OBJECTS).examine([])))
        for done in range(count + 1):
            made = mesh(*self.OBJECTS)
            found: list[dict[str, Any]] = []
            steps = made.examine(found)
            for _ in range(done):
                next(steps)
            delete(made, *self.NAMES)
            for _ in steps:
                pass
            assert found == []
