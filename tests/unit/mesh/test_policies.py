"""DestinationRules: which apply to a service, to whom, and what they come to."""

from typing import Any

import pytest
from support.meshes import apply, config, delete, istio, k8s, mesh, view

from xds.mesh.model import Labels
from xds.mesh.store import Mesh

X = "x.a.svc.cluster.local"
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"


def rule(name: str, maximum: int, namespace: str = "a", host: str = "x", rest: str = "", **meta: str) -> str:
    """A DestinationRule that is told by its number of connections."""
    policy = f"trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {maximum}}}}}}}"
    return istio("DestinationRule", name, f"host: '{host}', {policy}{rest}", namespace, **meta)


def policy(made: Mesh, namespace: str = "c", port: int = 80, subset: str = "", labels: Labels = ()) -> Any:
    look = view(made, namespace, labels)
    service = look.service(X)
    assert service is not None
    return look.traffic_policy(service, port, subset)


def limit(made: Mesh, namespace: str = "c", labels: Labels = ()) -> int | None:
    """The rule's number, as clients in `namespace` have it."""
    pool = policy(made, namespace, labels=labels).connection_pool
    return None if pool is None else pool.tcp.max_connections


def world(*rules: str) -> Mesh:
    return mesh(k8s("x", "a", "ports: [{name: http, port: 80}, {name: admin, port: 81}]"), *rules)


class TestPrecedence:
    def test_the_client_s_namespace_then_the_service_s_then_the_root(self) -> None:
        made = world(rule("r", 1, "istio-system", X), rule("r", 2, "a"), rule("r", 3, "c", X))
        assert (limit(made, "c"), limit(made, "d"), limit(made, "a")) == (3, 2, 2)
        delete(made, "DestinationRule r.a")
        assert (limit(made, "c"), limit(made, "d")) == (3, 1)

    def test_only_exported_ones_of_other_namespaces_count(self) -> None:
        made = world(rule("r", 1, "istio-system", X), rule("r", 2, "a", rest=", exportTo: [.]"))
        assert (limit(made, "c"), limit(made, "a")) == (1, 2)
        apply(made, rule("r", 2, "a", rest=", exportTo: [c]"))
        assert (limit(made, "c"), limit(made, "d")) == (2, 1)

    def test_within_a_namespace_the_most_specific_host_wins(self) -> None:
        made = world(rule("wide", 1, host="*.svc.cluster.local", creationTimestamp=OLD), rule("narrow", 2, host="*.a.svc.cluster.local"))
        assert limit(made) == 2
        apply(made, rule("exact", 3, creationTimestamp=NEW))
        assert limit(made) == 3

    def test_a_namespace_nearer_wins_over_a_host_more_specific(self) -> None:
        assert limit(world(rule("wide", 1, "c", "*.cluster.local"), rule("exact", 2, "a"))) == 1

    def test_one_for_some_workloads_is_for_those(self) -> None:
        selector = ", workloadSelector: {matchLabels: {app: web}}"
        made = world(rule("all", 1, "c", X), rule("web", 2, "c", X, selector))
        assert (limit(made, "c"), limit(made, "c", (("app", "web"),)), limit(made, "d", (("app", "web"),))) == (1, 2, None)

    def test_of_namespaces_that_the_mesh_does_not_look_at_there_are_none(self) -> None:
        made = mesh(k8s("x", "a"), rule("r", 1, "c", X), config("discoverySelectors: [{matchLabels: {kubernetes.io/metadata.name: a}}]"))
        assert limit(made) is None

    def test_a_service_entry_host_finds_them_too(self) -> None:
        entry = istio("ServiceEntry", "e", f"hosts: [{X}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS", "b")
        made = mesh(entry, rule("r", 1, "b", X))
        assert limit(made) == 1


NEW_V1 = "{name: v1, labels: {version: new}}"


class TestMerging:
    def test_rules_for_one_host_in_one_namespace_are_one(self) -> None:
        made = world(
            istio("DestinationRule", "young", f"host: x, subsets: [{NEW_V1}, {{name: v2}}]", "a", creationTimestamp=NEW),
            rule("old", 5, rest=", subsets: [{name: v1, labels: {version: old}}]", creationTimestamp=OLD),
        )
        service = view(made, "c").service(X)
        assert service is not None
        found = view(made, "c").policy(service)
        assert [(s.name, s.labels) for s in found.subsets] == [("v1", (("version", "old"),)), ("v2", ())]
        assert list(map(str, found.refs)) == ["DestinationRule old.a", "DestinationRule young.a"]
        assert limit(made) == 5

    def test_the_older_policy_stands_alone(self) -> None:
        made = world(
            rule("old", 5, creationTimestamp=OLD),
            istio("DestinationRule", "young", "host: x, trafficPolicy: {loadBalancer: {simple: RANDOM}}", "a", creationTimestamp=NEW),
        )
        assert (limit(made), policy(made).load_balancer) == (5, None)


SETTINGS = "portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: RANDOM}}]"
LIMIT = "connectionPool: {tcp: {maxConnections: 5}}"


def layered(text: str, subset: str = "", mesh_wide: str = "{}") -> Mesh:
    subsets = f", subsets: [{{name: v1, trafficPolicy: {{{subset}}}}}]" if subset else ""
    return world(istio("DestinationRule", "r", f"host: x, trafficPolicy: {{{text}}}{subsets}", "a"), config(mesh_wide))


class TestLayers:
    def test_settings_for_a_port_replace_the_rule_s_for_that_port(self) -> None:
        made = layered(f"{LIMIT}, tls: {{mode: SIMPLE}}, {SETTINGS}")
        assert policy(made, port=80).connection_pool.tcp.max_connections == 5
        other = policy(made, port=81)
        assert (other.connection_pool, other.tls, other.load_balancer.simple) == (None, None, "RANDOM")

    def test_a_subset_s_policy_wins_block_by_block(self) -> None:
        made = layered(f"{LIMIT}, loadBalancer: {{simple: RANDOM}}", "loadBalancer: {simple: ROUND_ROBIN}")
        found = policy(made, subset="v1")
        assert (found.load_balancer.simple, found.connection_pool.tcp.max_connections) == ("ROUND_ROBIN", 5)
        assert policy(made).load_balancer.simple == "RANDOM"

    def test_the_mesh_s_defaults_are_below_all(self) -> None:
        made = layered("loadBalancer: {simple: RANDOM}", mesh_wide="{defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}}}")
        assert policy(made).connection_pool.tcp.max_connections == 9

    @pytest.mark.parametrize("port", [80, 81])
    def test_nothing_is_by_port_any_more(self, port: int) -> None:
        assert policy(layered(f"{LIMIT}, {SETTINGS}"), port=port).port_level_settings == ()
