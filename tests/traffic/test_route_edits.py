"""VirtualServices that come, change and go while callers go on calling."""

import pytest
from support.calling import calling
from support.traffic import Mesh, Pod, eventually
from support.traffic_rules import SUBSETS, TO_V1, TO_V2, virtual_service


def split(v1: int | str, v2: int | str) -> str:
    """A VirtualService that gives `v1` and `v2` percent to the versions of `app`."""
    return f"""
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {{name: app}}
    spec:
      hosts: [app]
      http:
      - route:
        - destination: {{host: app, subset: v1}}
          weight: {v1}
        - destination: {{host: app, subset: v2}}
          weight: {v2}
    """


@pytest.fixture
def app(mesh: Mesh) -> Mesh:
    mesh.apply(SUBSETS, quiet=True)
    mesh.service("app", ("v1", "v2"))
    return mesh


def only(client: Pod, version: str) -> bool:
    return client.many("http://app/", 10) == {f"app-{version}": 10}


def test_a_canary_takes_over_without_a_failed_request(app: Mesh) -> None:
    app.apply(split(100, 0))
    client = app.pod("client")
    assert only(client, "v1")
    with calling(client, "http://app/") as calls:
        for share in (10, 50, 90):
            app.apply(split(100 - share, share))
            eventually(lambda: client.many("http://app/", 20).keys() == {"app-v1", "app-v2"})
        app.apply(split(0, 100))
        eventually(lambda: only(client, "v2"))
        before = calls.answers["app-v1"]
        eventually(lambda: sum(calls.answers.values()) > before + 50)
    assert calls.failures == []


def test_subsets_and_the_rule_that_uses_them_come_and_go_together_without_a_failed_request(mesh: Mesh) -> None:
    mesh.service("app", ("v1", "v2"))
    client = mesh.pod("client")
    with calling(client, "http://app/") as calls:
        for _ in range(3):
            mesh.apply(SUBSETS, quiet=True)
            mesh.apply(split(0, 100))
            eventually(lambda: only(client, "v2"))
            mesh.delete("DestinationRule", "app", quiet=True)
            mesh.delete("VirtualService", "app")
            eventually(lambda: client.many("http://app/", 20).keys() == {"app-v1", "app-v2"})
    assert calls.failures == []


def test_without_its_rule_a_service_is_routed_as_by_default(app: Mesh) -> None:
    app.apply(split(0, 100))
    client = app.pod("client")
    assert only(client, "v2")
    with calling(client, "http://app/") as calls:
        app.delete("VirtualService", "app")
        eventually(lambda: client.many("http://app/", 20).keys() == {"app-v1", "app-v2"})
    assert calls.failures == []


def test_a_rule_comes_to_a_host_that_no_service_has_and_goes(app: Mesh) -> None:
    client = app.pod("client")
    assert client.get("http://app/", host="new.test").server not in ("app-v1", "app-v2")
    app.apply(split(0, 100).replace("[app]", "[new.test]"))
    eventually(lambda: client.get("http://app/", host="new.test").server == "app-v2")
    app.delete("VirtualService", "app")
    eventually(lambda: client.get("http://app/", host="new.test").server != "app-v2")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (split(-10, 110), "$.spec.http[0].route[0].weight"),
        (split(0, 0), "$.spec.http[0].route"),
        (split("many", 0), "$.spec.http[0].route[0].weight"),
        (split(100, 0).replace("host: app, subset: v1", "subset: v1"), "$.spec.http[0].route[0].destination.host"),
        (split(100, 0).replace("- route:", "- timeout: soon\n        route:"), "$.spec.http[0].timeout"),
        (split(100, 0).replace("- route:", "- match: [{uri: {regex: '('}}]\n        route:"), "$.spec.http[0].match[0].uri.regex"),
        (split(100, 0).replace("- route:", "- redirect: {uri: /}\n        route:"), "$.spec.http[0]"),
        (split(100, 0).replace("[app]", "[]").replace("http:", "tcp:"), "$.spec.hosts"),
    ],
)
def test_an_edit_that_is_not_valid_changes_nothing_and_is_told(app: Mesh, bad: str, field: str) -> None:
    app.apply(split(0, 100))
    client = app.pod("client")
    app.apply(bad)
    assert [p.rpartition(field)[1] for p in app.problems()] == [field]
    assert only(client, "v2")
    app.apply(split(100, 0))
    eventually(lambda: only(client, "v1"))
    assert app.problems() == []


def test_a_rule_that_never_was_valid_harms_no_other(app: Mesh) -> None:
    app.apply(split(100, 0).replace("weight: 100", "weight: -1"), quiet=True)
    app.service("other")
    client = app.pod("client")
    assert client.many("http://app/", 40).keys() == {"app-v1", "app-v2"}
    assert client.get("http://other/").server == "other-v1"


def test_an_unknown_field_is_told_and_the_rest_is_served(app: Mesh) -> None:
    app.apply(split(0, 100).replace("- route:", "- retry: {}\n        route:"))
    client = app.pod("client")
    assert only(client, "v2")
    assert ["$.spec.http[0].retry" in p for p in app.problems()] == [True]


def test_a_destination_that_comes_later_is_used_when_it_is_there(mesh: Mesh) -> None:
    mesh.service("app")
    mesh.apply(virtual_service("app", "[{route: [{destination: {host: later}}]}]", hosts="[app]"))
    client = mesh.pod("client")
    assert client.get("http://app/").status == 503
    mesh.service("later")
    eventually(lambda: client.get("http://app/").server == "later-v1")


def test_a_caller_s_rule_comes_and_goes_with_its_conditions(app: Mesh) -> None:
    """What a rule asks of callers decides who shares what: it may change at any time."""
    client, other = app.pod("client", {"tier": "front"}), app.pod("other", {"tier": "back"})

    def rule(condition: str) -> str:
        return virtual_service("app", f"[{{match: [{{{condition}}}], {TO_V2}}}, {{{TO_V1}}}]", hosts="[app]")

    app.apply(rule("sourceLabels: {tier: front}"))
    eventually(lambda: only(client, "v2") and only(other, "v1"))
    app.apply(rule("sourceLabels: {tier: back}"))
    eventually(lambda: only(client, "v1") and only(other, "v2"))
    app.apply(rule("sourceNamespace: elsewhere"))
    eventually(lambda: only(client, "v1") and only(other, "v1"))
    app.apply(rule(f"sourceNamespace: {app.namespace}"))
    eventually(lambda: only(client, "v2") and only(other, "v2"))


def test_a_caller_whose_labels_change_is_routed_by_its_new_ones(app: Mesh) -> None:
    app.apply(virtual_service("app", f"[{{match: [{{sourceLabels: {{tier: front}}}}], {TO_V2}}}, {{{TO_V1}}}]", hosts="[app]"))
    client = app.pod("client", {"tier": "back"})
    assert only(client, "v1")
    app.objects["Pod", app.namespace, "client"]["metadata"]["labels"]["tier"] = "front"
    app.write()
    eventually(lambda: only(client, "v2"))
