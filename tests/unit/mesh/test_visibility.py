"""Who sees which services: exportTo, Sidecars, and the scopes that clients share."""

import pytest
from support.meshes import apply, delete, istio, k8s, mesh, pod, seen, the, view

from xds.mesh.model import Client
from xds.mesh.store import Mesh
from xds.mesh.workloads import claim
from xds.objects.meta import Ref

X, Y, Z = (f"{name}.svc.cluster.local" for name in ("x.a", "y.b", "z.c"))


HTTP_80 = "ports: [{number: 80, name: http, protocol: HTTP}]"
ONLY_Y_FOR_WEB = "workloadSelector: {labels: {app: web}}, egress: [{hosts: ['b/*']}]"


def three(*more: str) -> Mesh:
    """`x` in the namespace a, `y` in b, `z` in c, and more."""
    return mesh(k8s("x", "a"), k8s("y", "b"), k8s("z", "c"), *more)


def hosts(made: Mesh, namespace: str = "a", **labels: str) -> set[str]:
    return {each.partition("@")[0] for each in seen(made, namespace, tuple(sorted(labels.items())))}


def sidecar(spec: str, namespace: str = "a", name: str = "default", **meta: str) -> str:
    return istio("Sidecar", name, spec, namespace, **meta)


class TestExportTo:
    def test_everything_is_seen_by_all_unless_it_says_otherwise(self) -> None:
        assert hosts(three()) == {X, Y, Z}

    def test_private(self) -> None:
        made = three(k8s("own", "b", annotations="{networking.istio.io/exportTo: .}"))
        assert ("own.b.svc.cluster.local" in hosts(made, "b"), "own.b.svc.cluster.local" in hosts(made, "a")) == (True, False)

    def test_named_namespaces(self) -> None:
        made = three(k8s("some", "b", annotations="{networking.istio.io/exportTo: 'a,c'}"))
        assert [n for n in "abc" if "some.b.svc.cluster.local" in hosts(made, n)] == ["a", "c"]

    def test_nobody(self) -> None:
        made = three(k8s("none", "b", annotations="{networking.istio.io/exportTo: '~'}"))
        assert "none.b.svc.cluster.local" not in hosts(made, "b")

    def entries(self, *exports: str) -> Mesh:
        """`e.com` defined in the namespaces a, b, …, the later the younger, exported so."""
        return mesh(
            *(
                istio("ServiceEntry", "e", f"hosts: [e.com], {HTTP_80}, exportTo: [{to}], resolution: DNS", namespace,
                      creationTimestamp=f"202{i}-01-01T00:00:00Z")
                for i, (namespace, to) in enumerate(zip("abc", exports, strict=False))
            )
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("exports", "owners"),
        [
            (("'*'", "'*'"), "abaa"),
            (("'.'", "'*'"), "abbb"),
            (("'.'", "'.'"), "ab--"),
            (("'~'", "'.'"), "-b--"),
            (("'.'", "c", "'*'"), "accc"),
        ],
    )
    def test_of_one_name_one_s_own_counts_else_the_oldest(self, exports: tuple[str, ...], owners: str) -> None:
        made = self.entries(*exports)
        found = [next((each.partition("@")[2] for each in seen(made, n)), "-") for n in ("a", "b", "c", "d")]
        assert found == list(owners)


class TestSidecar:
    @pytest.mark.parametrize(
        ("listed", "expected"),
        [
            ("'*/*'", {X, Y, Z}),
            ("'./*'", {X}),
            ("'b/*'", {Y}),
            ("'./*', b/y.b.svc.cluster.local", {X, Y}),
            ("'*/*.svc.cluster.local'", {X, Y, Z}),
            ("'*/*.b.svc.cluster.local'", {Y}),
            ("'*/y.b.svc.cluster.local'", {Y}),
            ("a/y.b.svc.cluster.local", set()),
            ("'~/*'", set()),
            ("'*/*', '~b/*'", {X, Z}),
        ],
    )
    def test_egress_hosts(self, listed: str, expected: set[str]) -> None:
        assert hosts(three(sidecar(f"egress: [{{hosts: [{listed}]}}]"))) == expected

    def test_the_one_that_selects_wins_over_the_namespace_s_over_the_root_s(self) -> None:
        made = three(sidecar("egress: [{hosts: ['c/*']}]", "istio-system"))
        assert (hosts(made), hosts(made, "d")) == ({Z}, {Z})
        apply(made, sidecar("egress: [{hosts: ['./*']}]"))
        assert (hosts(made), hosts(made, "d")) == ({X}, {Z})
        apply(made, sidecar(ONLY_Y_FOR_WEB, name="web"))
        assert (hosts(made, app="web", version="v1"), hosts(made, app="job")) == ({Y}, {X})
        delete(made, "Sidecar web.a", "Sidecar default.a")
        assert hosts(made, app="web") == {Z}

    def test_of_two_the_older_counts(self) -> None:
        made = three(
            sidecar("egress: [{hosts: ['b/*']}]", name="a", creationTimestamp="2025-01-01T00:00:00Z"),
            sidecar("egress: [{hosts: ['c/*']}]", name="b", creationTimestamp="2024-01-01T00:00:00Z"),
        )
        assert hosts(made) == {Z}

    def test_what_is_not_exported_is_not_imported(self) -> None:
        made = three(k8s("own", "b", annotations="{networking.istio.io/exportTo: .}"), sidecar("egress: [{hosts: ['b/*']}]"))
        assert hosts(made) == {Y}

    def test_a_listener_of_a_port_has_the_services_with_that_port(self) -> None:
        listener = "{port: {number: 81, protocol: HTTP, name: h}, hosts: ['./*']}"
        made = three(k8s("w", "a", "ports: [{name: http, port: 81}]"), sidecar(f"egress: [{listener}]"))
        assert hosts(made) == {"w.a.svc.cluster.local"}

    def test_where_its_rules_lead_can_be_reached(self) -> None:
        rule = istio("VirtualService", "r", f"hosts: [x], http: [{{route: [{{destination: {{host: {Z}}}}}]}}]", "a")
        made = three(rule, sidecar("egress: [{hosts: ['./*']}]"))
        assert hosts(made) == {X}
        assert the(view(made, "a").destination(Z)).hostname == Z
        assert view(made, "a").destination(Y) is None

    @pytest.mark.parametrize(
        ("spec", "mode"),
        [
            ("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "REGISTRY_ONLY"),
            ("outboundTrafficPolicy: {mode: ALLOW_ANY}", "ALLOW_ANY"),
            ("", "ALLOW_ANY"),
        ],
    )
    def test_what_becomes_of_other_calls(self, spec: str, mode: str) -> None:
        made = three(sidecar(spec))
        assert made.outbound_policy(made.scope(Client("a"))).mode == mode


class TestScopes:
    def test_namespaces_with_nothing_of_their_own_share_one(self) -> None:
        made = three()
        assert made.scope(Client("a")) == made.scope(Client("b"))

    @pytest.mark.parametrize(
        "own",
        [
            sidecar("egress: [{hosts: ['*/*']}]"),
            k8s("own", "a", annotations="{networking.istio.io/exportTo: .}"),
            istio("VirtualService", "r", "hosts: [x], exportTo: [.], http: [{route: [{destination: {host: x}}]}]", "a"),
            istio("DestinationRule", "r", f"host: {Y}", "a"),
        ],
        ids=["a sidecar", "a private service", "a private rule", "a rule for a foreign service"],
    )
    def test_what_is_a_namespace_s_own_makes_one(self, own: str) -> None:
        made = three(own)
        assert made.scope(Client("a")) != made.scope(Client("b"))

    def test_labels_that_nothing_selects_by_do_not_matter(self) -> None:
        route = "{match: [{sourceLabels: {app: web}}], route: [{destination: {host: x}}]}"
        made = three(istio("VirtualService", "r", f"hosts: [x], http: [{route}]", "a"))
        plain, web = (made.scope(Client("c", labels)) for labels in ((("hash", "1"),), (("app", "web"), ("hash", "1"))))
        assert (plain, web.labels) == (made.scope(Client("c", (("hash", "2"),))), (("app", "web"),))

    def test_a_pod_that_gets_a_label_moves(self) -> None:
        made = three(pod("p", "10.0.0.1", "app: job", "a"), sidecar(ONLY_Y_FOR_WEB, name="web"))
        claimed = claim("sidecar~10.0.0.1~p.a~", {})
        assert made.scope(made.client(claimed)).sidecar is None
        apply(made, pod("p", "10.0.0.1", "app: web", "a"))
        assert made.scope(made.client(claimed)).sidecar == Ref("Sidecar", "a", "web")
