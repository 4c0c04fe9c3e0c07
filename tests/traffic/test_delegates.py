"""VirtualService `http[].delegate`: routes that another VirtualService has."""

import pytest
from support.traffic import Mesh, Pod, eventually
from support.traffic_rules import SUBSETS, TO_V1, TO_V2, virtual_service


@pytest.fixture
def app(mesh: Mesh) -> Mesh:
    mesh.apply(SUBSETS, quiet=True)
    mesh.service("app", ("v1", "v2"))
    return mesh


TO_LEAF = "delegate: {name: leaf}"


def root(http: str) -> str:
    return virtual_service("root", http, hosts="[app]")


def leaf(http: str, **more: str) -> str:
    return virtual_service("leaf", http, **more)


def server(client: Pod, path: str, **headers: str) -> str | int:
    """Who answers; the status where nobody does."""
    reply = client.get(f"http://app{path}", {name.replace("_", "-"): value for name, value in headers.items()})
    return reply.server or reply.status


class TestMatches:
    def test_the_root_s_match_holds_for_a_delegate_without_one(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {TO_LEAF}}}, {{{TO_V1}}}]"), quiet=True)
        app.apply(leaf(f"[{{{TO_V2}}}]"))
        client = app.pod("client")
        assert [server(client, path) for path in ("/a", "/ab", "/b")] == ["app-v2", "app-v2", "app-v1"]

    def test_the_delegate_s_match_narrows_the_root_s(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {TO_LEAF}}}, {{directResponse: {{status: 418}}}}]"), quiet=True)
        app.apply(leaf(f"[{{match: [{{uri: {{prefix: /a/b}}}}], {TO_V2}}}, {{match: [{{uri: {{exact: /a/c}}}}], {TO_V1}}}]"))
        client = app.pod("client")
        assert [server(client, path) for path in ("/a/b/x", "/a/c", "/a/d", "/b")] == ["app-v2", "app-v1", 418, 418]

    def test_conditions_on_different_things_must_both_hold(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}, method: {{exact: GET}}}}], {TO_LEAF}}}, {{{TO_V1}}}]"), quiet=True)
        app.apply(leaf(f"[{{match: [{{headers: {{x-user: {{exact: me}}}}, queryParams: {{q: {{exact: '1'}}}}}}], {TO_V2}}}]"))
        client = app.pod("client")
        assert server(client, "/a?q=1", x_user="me") == "app-v2"
        assert [server(client, "/a?q=1"), server(client, "/a", x_user="me"), server(client, "/b?q=1", x_user="me")] == ["app-v1"] * 3

    @pytest.mark.parametrize(
        "match",
        ["uri: {prefix: /b}", "uri: {exact: /b}", "uri: {prefix: /}", "uri: {regex: '/a/.*'}", "uri: {prefix: /a/b}, ignoreUriCase: true",
         "uri: {prefix: /a}, headers: {x-user: {exact: you}}", "uri: {prefix: /a}, headers: {x-user: {prefix: m}}",
         "port: 8080", "sourceNamespace: elsewhere", "sourceLabels: {app: other}"],
    )  # fmt: skip
    def test_a_route_outside_the_root_s_match_has_no_effect(self, app: Mesh, match: str) -> None:
        conditions = "uri: {prefix: /a}, headers: {x-user: {exact: me}}, port: 80, sourceLabels: {app: client}"
        conditions += f", sourceNamespace: {app.namespace}"
        app.apply(root(f"[{{match: [{{{conditions}}}], {TO_LEAF}}}, {{{TO_V1}}}]"), quiet=True)
        app.apply(leaf(f"[{{match: [{{{match}}}], directResponse: {{status: 418}}}}, {{match: [{{uri: {{prefix: /a/b}}}}], {TO_V2}}}]"))
        client = app.pod("client")
        assert [server(client, path, x_user="me") for path in ("/a", "/b", "/a/b")] == ["app-v1", "app-v1", "app-v2"]

    def test_each_of_several_matches_may_lie_in_another(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}, {{uri: {{prefix: /b}}}}], {TO_LEAF}}}, {{{TO_V1}}}]"), quiet=True)
        app.apply(leaf(f"[{{match: [{{uri: {{exact: /a/1}}}}, {{uri: {{exact: /b/2}}}}], {TO_V2}}}]"))
        client = app.pod("client")
        assert [server(client, path) for path in ("/a/1", "/b/2", "/a/2", "/b")] == ["app-v2", "app-v2", "app-v1", "app-v1"]

    def test_routes_keep_their_order(self, app: Mesh) -> None:
        app.apply(root(f"[{{{TO_LEAF}}}, {{match: [{{uri: {{exact: /late}}}}], directResponse: {{status: 418}}}}]"), quiet=True)
        app.apply(leaf(f"[{{match: [{{uri: {{prefix: /a}}}}], {TO_V2}}}, {{{TO_V1}}}]"))
        client = app.pod("client")
        assert [server(client, path) for path in ("/a", "/late")] == ["app-v2", "app-v1"]


class TestFields:
    def test_what_a_delegate_leaves_out_is_the_root_s(self, app: Mesh) -> None:
        shared = "timeout: 1h, rewrite: {uri: /root}, headers: {response: {set: {x-from: root}}}"
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {shared}, {TO_LEAF}}}]"), quiet=True)
        app.apply(leaf(f"[{{{TO_V2}}}]"))
        reply = app.pod("client").get("http://app/a/x")
        assert reply.call is not None
        assert (reply.call.path, reply.call.header("x-envoy-expected-rq-timeout-ms"), reply.header("x-from")) == (
            "/root/x",
            "3600000",
            "root",
        )

    def test_what_a_delegate_says_is_said_in_the_root_s_place(self, app: Mesh) -> None:
        own = "timeout: 2h, rewrite: {uri: /leaf}, headers: {request: {set: {x-leaf: 'yes'}}}"
        theirs = "timeout: 1h, rewrite: {uri: /root}, headers: {response: {set: {x-from: root}}}"
        fault = "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {theirs}, {fault}, {TO_LEAF}}}]"), quiet=True)
        app.apply(leaf(f"[{{match: [{{uri: {{exact: /a/fails}}}}], {TO_V2}}}, {{{own}, fault: {{delay: {{fixedDelay: 1ms}}}}, {TO_V2}}}]"))
        client = app.pod("client")
        assert client.get("http://app/a/fails").status == 418
        reply = client.get("http://app/a/x")
        assert reply.call is not None
        found = (reply.call.path, reply.call.header("x-envoy-expected-rq-timeout-ms"), reply.header("x-from"), reply.call.header("x-leaf"))
        assert found == ("/leaf/x", "7200000", None, "yes")

    def test_actions_of_every_kind(self, app: Mesh) -> None:
        app.apply(root(f"[{{{TO_LEAF}}}]"), quiet=True)
        app.apply(
            leaf("""[
            {match: [{uri: {exact: /moved}}], redirect: {uri: /new}},
            {match: [{uri: {exact: /said}}], directResponse: {status: 418}},
            {route: [{destination: {host: app, subset: v1}, weight: 0}, {destination: {host: app, subset: v2}, weight: 1}]}]""")
        )
        client = app.pod("client")
        assert [server(client, path) for path in ("/moved", "/said", "/")] == [301, 418, "app-v2"]


class TestReferences:
    def test_a_delegate_of_another_namespace_means_services_of_its_own(self, app: Mesh) -> None:
        other = f"{app.namespace}-other"
        app.service("app", ("theirs",), namespace=other)
        app.apply(root(f"[{{delegate: {{name: leaf, namespace: {other}}}}}]"), quiet=True)
        app.apply(leaf("[{route: [{destination: {host: app}}]}]", namespace=other))
        assert server(app.pod("client"), "/") == "app-theirs"

    @pytest.mark.parametrize(("export_to", "found"), [("['.']", False), ("['*']", True), ("[{}]", True), ("[elsewhere]", False)])
    def test_a_delegate_must_be_exported_to_the_root(self, app: Mesh, export_to: str, found: bool) -> None:
        other = f"{app.namespace}-other"
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], delegate: {{name: leaf, namespace: {other}}}}}, {{{TO_V1}}}]"), quiet=True)
        export_to = export_to.format(app.namespace)
        app.apply(leaf("[{directResponse: {status: 418}}]", namespace=other, more=f"exportTo: {export_to}"))
        assert server(app.pod("client"), "/a") == (418 if found else "app-v1")

    def test_only_virtual_services_without_hosts_are_delegates(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {TO_LEAF}}}, {{{TO_V1}}}]"), quiet=True)
        app.apply(leaf("[{directResponse: {status: 418}}]", hosts="[other.test]"))
        assert server(app.pod("client"), "/a") == "app-v1"

    def test_a_delegate_alone_routes_nothing(self, app: Mesh) -> None:
        app.apply(leaf("[{directResponse: {status: 418}}]"))
        assert app.pod("client").many("http://app/", 40).keys() == {"app-v1", "app-v2"}

    def test_a_delegate_cannot_delegate_further(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {TO_LEAF}}}, {{{TO_V1}}}]"), quiet=True)
        app.apply(virtual_service("third", "[{directResponse: {status: 418}}]"), quiet=True)
        app.apply(leaf("[{delegate: {name: third}}]"))
        assert {p.partition(":")[0].split(".")[0] for p in app.problems()} == {"VirtualService leaf", "VirtualService root"}
        assert server(app.pod("client"), "/a") == "app-v1"

    def test_a_root_may_have_many_delegates(self, app: Mesh) -> None:
        routes = ", ".join(f"{{match: [{{uri: {{prefix: /{n}}}}}], delegate: {{name: {n}}}}}" for n in ("one", "two"))
        app.apply(root(f"[{routes}, {{directResponse: {{status: 418}}}}]"), quiet=True)
        app.apply(virtual_service("one", f"[{{{TO_V1}}}]"), quiet=True)
        app.apply(virtual_service("two", f"[{{{TO_V2}}}]"))
        client = app.pod("client")
        assert [server(client, path) for path in ("/one", "/two", "/three")] == ["app-v1", "app-v2", 418]

    def test_a_delegate_comes_changes_and_goes(self, app: Mesh) -> None:
        app.apply(root(f"[{{match: [{{uri: {{prefix: /a}}}}], {TO_LEAF}}}, {{{TO_V1}}}]"))
        client = app.pod("client")
        assert server(client, "/a") == "app-v1"
        assert ["$.spec.http[0].delegate: there is no VirtualService leaf." in p for p in app.problems()] == [True]
        app.apply(leaf(f"[{{{TO_V2}}}]"))
        assert app.problems() == []
        eventually(lambda: server(client, "/a") == "app-v2")
        app.apply(leaf("[{directResponse: {status: 418}}]"))
        eventually(lambda: server(client, "/a") == 418)
        app.delete("VirtualService", "leaf")
        eventually(lambda: server(client, "/a") == "app-v1")
