"""Which VirtualService governs a host, and what delegates add to it."""

from typing import Any

import pytest
from support.meshes import apply, delete, istio, k8s, mesh, view

from xds.mesh.store import Mesh

X = "x.a.svc.cluster.local"
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"


def rule(name: str, hosts: str, namespace: str = "a", rest: str = "", **meta: str) -> str:
    """A VirtualService that redirects to its own name."""
    return istio("VirtualService", name, f"hosts: [{hosts}], http: [{{redirect: {{uri: /{name}}}}}]{rest}", namespace, **meta)


def governs(made: Mesh, host: str = X, namespace: str = "a") -> str:
    """The name of the rule, empty where there is none."""
    found = view(made, namespace).routing(host)
    return "" if found is None else found.rule.ref.name


class TestPrecedence:
    @pytest.mark.parametrize(
        ("hosts", "host", "governed"),
        [
            ("x", X, True),
            ("x.a", X, False),  # names with a dot are taken as they stand
            (X, X, True),
            ("X.a.svc.cluster.local", X, True),
            ("'*.a.svc.cluster.local'", X, True),
            ("'*'", X, True),
            ("other", X, False),
            ("'*.example.com'", "www.example.com", True),
        ],
    )
    def test_hosts(self, hosts: str, host: str, governed: bool) -> None:
        assert bool(governs(mesh(k8s("x", "a"), rule("r", hosts)), host)) is governed

    def test_the_most_specific_host_wins_whatever_its_age(self) -> None:
        made = mesh(
            rule("any", "'*'", creationTimestamp=OLD),
            rule("domain", "'*.a.svc.cluster.local'", creationTimestamp=OLD),
            rule("exact", "x", creationTimestamp=NEW),
        )
        assert governs(made) == "exact"
        delete(made, "VirtualService exact.a")
        assert governs(made) == "domain"
        delete(made, "VirtualService domain.a")
        assert governs(made) == "any"

    def test_of_two_for_one_host_the_older_wins_whole(self) -> None:
        made = mesh(rule("b", "x", creationTimestamp=OLD), rule("a", "x", creationTimestamp=NEW))
        assert governs(made) == "b"
        found = view(made, "a").routing(X)
        assert found is not None
        assert len(found.rule.spec.http) == 1

    def test_of_the_same_age_the_name_decides(self) -> None:
        assert governs(mesh(rule("b", "x"), rule("a", "x"))) == "a"

    def test_a_private_one_wins_over_a_public_one(self) -> None:
        made = mesh(rule("public", X, "b", creationTimestamp=OLD), rule("private", "x", "a", ", exportTo: [.]", creationTimestamp=NEW))
        assert (governs(made, namespace="a"), governs(made, namespace="c")) == ("private", "public")

    def test_one_for_some_namespaces_wins_over_one_for_all(self) -> None:
        made = mesh(rule("public", X, "b", creationTimestamp=OLD), rule("some", X, "b", ", exportTo: [a]", creationTimestamp=NEW))
        assert (governs(made, namespace="a"), governs(made, namespace="c")) == ("some", "public")

    def test_those_for_gateways_only_are_not_for_sidecars(self) -> None:
        made = mesh(rule("edge", "x", rest=", gateways: [edge/gw]"))
        assert governs(made) == ""
        apply(made, rule("edge", "x", rest=", gateways: [edge/gw, mesh]"))
        assert governs(made) == "edge"

    def test_a_sidecar_imports_rules_with_their_hosts(self) -> None:
        made = mesh(
            k8s("x", "a"),
            rule("here", X, "b"),
            istio("Sidecar", "default", "egress: [{hosts: ['a/*']}]", "c"),
        )
        assert (governs(made, namespace="c"), governs(made, namespace="d")) == ("", "here")
        apply(made, istio("Sidecar", "default", f"egress: [{{hosts: ['a/*', b/{X}]}}]", "c"))
        assert governs(made, namespace="c") == "here"


def routes(made: Mesh, host: str = X) -> list[Any]:
    found = view(made, "a").routing(host)
    assert found is not None
    return list(found.rule.spec.http)


def root(route: str = "", **meta: str) -> str:
    """A rule in `a` whose route hands over to `leaf` in `b`."""
    return istio("VirtualService", "root", f"hosts: [x], http: [{{{route}delegate: {{name: leaf, namespace: b}}}}]", "a", **meta)


def leaf(routes: str, rest: str = "") -> str:
    return istio("VirtualService", "leaf", f"http: [{routes}]{rest}", "b")


TO_Y = "route: [{destination: {host: y}}]"
Y = "y.b.svc.cluster.local"


class TestNames:
    def test_short_ones_are_in_the_rule_s_namespace(self) -> None:
        route = "{route: [{destination: {host: y}}], mirror: {host: z}, mirrors: [{destination: {host: far.example.com}}]}"
        (found,) = routes(mesh(istio("VirtualService", "r", f"hosts: [x], http: [{route}]", "a")))
        assert found.route[0].destination.host == "y.a.svc.cluster.local"
        assert (found.mirror.host, found.mirrors[0].destination.host) == ("z.a.svc.cluster.local", "far.example.com")


class TestDelegates:
    def test_its_routes_stand_in_for_the_root_s(self) -> None:
        made = mesh(root(), leaf(f"{{match: [{{uri: {{prefix: /a}}}}], {TO_Y}}}, {{{TO_Y}}}"))
        assert [r.route[0].destination.host for r in routes(made)] == [Y, Y]
        found = view(made, "a").routing(X)
        assert found is not None
        assert list(map(str, found.refs)) == ["VirtualService root.a", "VirtualService leaf.b"]

    def test_it_inherits_what_it_does_not_say_itself(self) -> None:
        made = mesh(root("timeout: 5s, retries: {attempts: 7}, "), leaf(f"{{timeout: 1s, {TO_Y}}}"))
        (found,) = routes(made)
        assert (found.timeout.total_seconds(), found.retries.attempts) == (1, 7)

    def test_matches_are_joined(self) -> None:
        made = mesh(
            root("name: root, match: [{uri: {prefix: /p}, headers: {x-a: {exact: '1'}}}], "),
            leaf(f"{{name: leaf, match: [{{uri: {{prefix: /p/q}}, headers: {{x-b: {{exact: '2'}}}}}}], {TO_Y}}}"),
        )
        (found,) = routes(made)
        (match,) = found.match
        assert (found.name, match.uri.prefix, set(match.headers)) == ("root-leaf", "/p/q", {"x-a", "x-b"})

    @pytest.mark.parametrize(
        ("of_root", "of_leaf", "fits"),
        [
            ("uri: {prefix: /p}", "uri: {prefix: /p/q}", True),
            ("uri: {prefix: /p}", "uri: {exact: /p}", True),
            ("uri: {prefix: /p}", "uri: {prefix: /o}", False),
            ("uri: {exact: /p}", "uri: {exact: /p}", True),
            ("uri: {exact: /p}", "uri: {prefix: /p}", False),
            ("uri: {regex: p}", "uri: {exact: p}", False),
            ("uri: {regex: p}", "headers: {x: {exact: p}}", True),
            ("port: 80", "port: 80", True),
            ("port: 80", "port: 81", False),
            ("method: {exact: GET}", "method: {exact: POST}", False),
            ("sourceLabels: {a: b}", "sourceLabels: {a: c}", False),
            ("sourceLabels: {a: b}", "sourceLabels: {c: d}", True),
            ("headers: {x: {prefix: a}}", "headers: {x: {exact: ab}}", True),
            ("headers: {x: {prefix: a}}", "headers: {x: {exact: b}}", False),
            ("ignoreUriCase: true, uri: {prefix: /p}", "uri: {prefix: /p}", False),
        ],
    )
    def test_matches_that_exclude_one_another_make_no_route(self, of_root: str, of_leaf: str, fits: bool) -> None:
        made = mesh(root(f"match: [{{{of_root}}}], "), leaf(f"{{match: [{{{of_leaf}}}], {TO_Y}}}"))
        assert bool(routes(made)) is fits

    def test_one_that_is_not_there_makes_no_route(self) -> None:
        made = mesh(root())
        assert routes(made) == []
        apply(made, leaf(f"{{{TO_Y}}}"))
        assert len(routes(made)) == 1

    def test_one_that_the_root_does_not_see_makes_no_route(self) -> None:
        assert routes(mesh(root(), leaf(f"{{{TO_Y}}}", ", exportTo: [.]"))) == []
        assert len(routes(mesh(root(), leaf(f"{{{TO_Y}}}", ", exportTo: [a]")))) == 1

    def test_alone_it_governs_nothing(self) -> None:
        assert governs(mesh(k8s("y", "b"), leaf(f"{{{TO_Y}}}")), Y) == ""

    def test_one_with_hosts_is_none(self) -> None:
        made = mesh(root(), istio("VirtualService", "leaf", f"hosts: [y], http: [{{{TO_Y}}}]", "b"))
        assert routes(made) == []
