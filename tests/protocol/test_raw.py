"""Resources in files, as people write and break them, seen by a client of a running product."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from support.product import Delta, Product, Sotw, assignment, cluster, listener, message_of, names_of, routes, versions_of

from xds.discovery.protocol import types as t


def test_a_bad_file_at_the_start_harms_only_itself(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: b: c")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good.yaml").write_text(json.dumps(cluster("good")))
    with Product(directory=tmp_path) as product, Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"good"}
        places = {event["problem"].partition(": ")[0] for event in product.events("resource.invalid")}
        assert places == {f"{tmp_path}/bad.yaml:1", f"{tmp_path}/binary.json"}
        product.write("bad.yaml", cluster("better"))
        assert names_of(client.next(t.CLUSTER)) == {"better"}


def test_a_directory_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no such file or directory"):
        Product("--resources", str(tmp_path / "missing")).start()


def problems(product: Product) -> list[str]:
    return [event["problem"] for event in product.events("resource.invalid")]


@pytest.mark.parametrize(
    ("document", "line", "problem"),
    [
        ({"name": "x"}, 2, "$: not a resource: an object with @type is needed"),
        ({"@type": "no.such.Message", "name": "x"}, 2, "$.@type: no.such.Message is no message of Envoy's API"),
        ({"@type": t.CLUSTER}, 2, "$.name: a resource needs a name"),
        ({"@type": t.CLUSTER, "name": "x", "nonsense": 1}, 2, "no field named"),
        ({"@type": t.CLUSTER, "name": "x", "connect_timeout": "fast"}, 2, "connect_timeout"),
        ({"@type": t.CLUSTER, "name": "x", "connect_timeout": "-1s"}, 2, "$.connect_timeout: must be greater than 0s"),
        ({"@type": t.CLUSTER, "name": ["x"]}, 2, "$"),
        ("- a\n- list", 3, "$[1]: not a resource"),
        ("just text", 2, "$: not a resource"),
        ({"resource": cluster("x"), "nodez": {}}, 2, "$: unknown in a wrapper: nodez"),
        ({"resource": cluster("x"), "ttl": "soon"}, 2, "$.ttl"),
        ({"resource": cluster("x"), "ttl": "0.1s"}, 2, "$.ttl"),
        ({"resource": cluster("x"), "aliases": "y"}, 2, "$.aliases"),
        ({"resource": cluster("x"), "nodes": {"name": "y"}}, 2, "$.nodes"),
    ],
)
def test_a_bad_document_is_said_to_be_bad_and_harms_only_itself(product: Product, document: object, line: int, problem: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    product.publish("a.yaml", cluster("before"), text, cluster("after"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"before", "after"}
    last = problems(product)[-1]
    assert last.startswith(f"{product.directory}/a.yaml:{line + 1}: ")
    assert problem in last


def test_a_problem_names_the_line_of_the_field(product: Product) -> None:
    """A rule of the descriptor, far down in the document."""
    product.publish(
        "a.yaml",
        f"# a comment\n'@type': {t.ENDPOINTS}\ncluster_name: x\nendpoints:\n- priority: 0\n- lb_endpoints: []\n  priority: 1000\n",
    )
    assert problems(product)[-1] == f"{product.directory}/a.yaml:7: $.endpoints[1].priority: must be at most 128"


def test_operators_are_shown_what_is_wrong_with_files_now(product: Product) -> None:
    product.publish("a.yaml", cluster("a"), cluster("b", timeout="-1s"))
    (problem,) = product.ask("/debug/configz")
    assert problem["problem"] == f"{product.directory}/a.yaml:3: $.connect_timeout: must be greater than 0s"
    assert problem["in_force"]
    product.publish("a.yaml", cluster("a"))
    assert product.ask("/debug/configz") == []


def test_a_document_that_breaks_keeps_what_it_was(product: Product) -> None:
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        product.write("a.yaml", cluster("a", timeout="-3s"), cluster("b", timeout="9s"))
        response = client.next(t.CLUSTER)
        assert (names_of(response), list(response.removed_resources)) == ({"b"}, [])
        product.write("a.yaml", cluster("b", timeout="9s"))
        assert list(client.next(t.CLUSTER).removed_resources) == ["a"]


def test_json_documents_may_just_follow_one_another(product: Product) -> None:
    product.publish("a.json", json.dumps(cluster("a"), indent="\t") + json.dumps(cluster("b")) + "\n" + json.dumps(cluster("c")))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"a", "b", "c"}


def test_a_byte_order_mark_and_windows_lines_are_fine(product: Product) -> None:
    product.publish("a.yaml", f"\ufeff'@type': {t.CLUSTER}\r\nname: a\r\n---\r\n'@type': {t.CLUSTER}\r\nname: b\r\n")
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"a", "b"}


def test_directories_below_are_read_and_hidden_files_are_not(product: Product) -> None:
    product.write("deep/er/a.yaml", cluster("a"))
    product.write(".hidden.yaml", cluster("h"))
    product.publish("notes.txt", "not a resource")
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"a"}
        product.write("new/b.yaml", cluster("b"))
        assert names_of(client.next(t.CLUSTER)) == {"b"}
        shutil.rmtree(product.directory / "deep")
        assert list(client.next(t.CLUSTER).removed_resources) == ["a"]


def test_files_may_be_written_in_place_and_renamed(product: Product) -> None:
    file = product.directory / "a.yaml"
    with Delta(product.port) as client, Sotw(product.port) as whole:
        client.ask(t.CLUSTER)
        whole.ask(t.CLUSTER)
        file.write_text(json.dumps(cluster("a")) + "\n---\n" + json.dumps(cluster("b")))
        until_names(client, whole, {"a", "b"})
        file.rename(product.directory / "b.yaml")
        product.settle()
        assert client.between() == []
        assert whole.between() == []
        (product.directory / "b.yaml").write_text(json.dumps(cluster("a")))
        assert list(client.next(t.CLUSTER).removed_resources) == ["b"]
        assert names_of(whole.next(t.CLUSTER)) == {"a"}


def until_names(client: Delta, whole: Sotw, names: set[str]) -> None:
    """Take what comes until both have these: a file may be looked at while it is written."""
    held: set[str] = set()
    while held != names:
        held |= names_of(client.next(t.CLUSTER))
    while names_of(whole.next(t.CLUSTER)) != names:
        pass


EVERY_TYPE: dict[str, dict[str, object]] = {
    t.CLUSTER: cluster("x"),
    t.ENDPOINTS: assignment("x"),
    t.LISTENER: listener("x"),
    t.SCOPED_ROUTE: {"name": "x", "route_configuration_name": "x", "key": {"fragments": [{"string_key": "a"}]}},
    t.ROUTE: routes("x"),
    t.VIRTUAL_HOST: {"name": "x/a", "domains": ["a"]},
    t.SECRET: {"name": "x", "generic_secret": {"secret": {"inline_string": "s"}}},
    t.EXTENSION: {"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
    t.RUNTIME: {"name": "x", "layer": {"a": 1}},
}


@pytest.mark.parametrize("client_of", [Delta, Sotw])
def test_every_type_is_served_by_name_and_by_star(product: Product, client_of: type[Delta] | type[Sotw]) -> None:
    product.publish("a.yaml", *({"@type": kind, **resource} for kind, resource in EVERY_TYPE.items()))
    for star in (False, True):
        with client_of(product.port) as client:
            for kind, resource in EVERY_TYPE.items():
                name = "*" if star else resource.get("name") or resource["cluster_name"]
                assert len(client.ask(kind, str(name)).resources) == 1, kind


@pytest.mark.parametrize("client_of", [Delta, Sotw])
@pytest.mark.parametrize("name", ["a b", "ü/ß", "a:b|c,d", "x" * 2000, "*/*", "**", "xdstp", "a?b=c"])
def test_a_name_may_be_anything(product: Product, client_of: type[Delta] | type[Sotw], name: str) -> None:
    product.publish("a.yaml", assignment(name), assignment("other"))
    with client_of(product.port) as client:
        assert names_of(client.ask(t.ENDPOINTS, name)) == {name}


@pytest.mark.parametrize("client_of", [Delta, Sotw])
def test_a_client_that_acknowledges_nothing_is_served_everything(product: Product, client_of: type[Delta] | type[Sotw]) -> None:
    """V13: it is waited for, but not for long."""
    product.publish("a.yaml", cluster("a", eds=True), assignment("a"), listener("l"), routes("r", "a"))
    wanted = {t.CLUSTER: (), t.ENDPOINTS: ("a",), t.LISTENER: (), t.ROUTE: ("r",)}
    with client_of(product.port) as client:
        for kind, names in wanted.items():
            client.subscribe(kind, *names)
        assert {client.receive().type_url for _ in wanted} == wanted.keys()
        product.write("b.yaml", cluster("b"))
        assert "b" in names_of(client.receive())


def test_the_directory_itself_may_be_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "resources"
    with Product(directory=directory) as product:
        product.publish("a.yaml", cluster("a"))
        with Delta(product.port) as client:
            client.ask(t.CLUSTER)
            shutil.copytree(directory, tmp_path / "next")
            (tmp_path / "next" / "a.yaml").write_text(json.dumps(cluster("b")))
            directory.rename(tmp_path / "last")
            (tmp_path / "next").rename(directory)
            seen: set[str] = set()
            while seen != {"b", "-a"}:
                response = client.next(t.CLUSTER)
                seen |= names_of(response) | {f"-{name}" for name in response.removed_resources}
            product.write("c.yaml", cluster("c"))
            assert names_of(client.next(t.CLUSTER)) == {"c"}


def test_a_single_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(json.dumps(cluster("a")))
    with Product("--resources", str(file), directory=tmp_path) as product, Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"a"}
        product.write("one.yaml", cluster("a", timeout="9s"))
        assert names_of(client.next(t.CLUSTER)) == {"a"}
        product.write("other.yaml", cluster("b"))
        product.write("one.yaml", cluster("a"))
        assert names_of(client.next(t.CLUSTER)) == {"a"}


def test_strange_files_are_passed_over(product: Product) -> None:
    """A pipe would be read for ever, a dangling link leads nowhere."""
    (product.directory / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(product.directory / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(product.directory / "socket.yaml"))
        product.publish("a.yaml", cluster("a"))
        with Delta(product.port) as client:
            assert names_of(client.ask(t.CLUSTER)) == {"a"}


def test_of_two_files_with_one_name_the_first_counts(product: Product) -> None:
    product.write("b.yaml", cluster("x", timeout="2s"))
    product.publish("a.yaml", cluster("x", timeout="1s"))
    with Delta(product.port) as client:
        assert message_of(client.ask(t.CLUSTER), "x").connect_timeout.seconds == 1
        assert product.events("resource.duplicate")[-1]["counts"] == f"{product.directory}/a.yaml:1"
        product.remove("a.yaml")
        response = client.next(t.CLUSTER)
        assert message_of(response, "x").connect_timeout.seconds == 2
        assert not response.removed_resources


def test_a_version_that_is_given_is_told(product: Product) -> None:
    product.publish("a.yaml", {"resource": cluster("a"), "version": 7})
    with Delta(product.port) as client:
        assert versions_of([client.ask(t.CLUSTER)]) == {"a": "7"}
        product.write("a.yaml", {"resource": cluster("a"), "version": "8"})
        assert versions_of([client.next(t.CLUSTER)]) == {"a": "8"}


def test_a_version_that_all_of_a_type_are_given_is_that_of_the_type(product: Product) -> None:
    """V2"""

    def version(number: int, *resources: dict[str, object]) -> list[dict[str, object]]:
        return [{"resource": each, "version": number} for each in resources]

    product.publish("a.yaml", *version(7, cluster("a"), cluster("b")), *version(1, assignment("a")))
    with Sotw(product.port) as whole, Delta(product.port) as client:
        assert whole.ask(t.CLUSTER).version_info == "7"
        assert whole.ask(t.ENDPOINTS, "a").version_info == "1"
        assert client.ask(t.CLUSTER).system_version_info == "7"
        product.publish("a.yaml", *version(8, cluster("a", timeout="9s"), cluster("b")))
        assert whole.next(t.CLUSTER).version_info == "8"
        assert client.next(t.CLUSTER).system_version_info == "8"
        product.publish("a.yaml", *version(9, cluster("a")), *version(8, cluster("b")))
        assert whole.next(t.CLUSTER).version_info not in {"8", "9"}


def test_a_change_under_a_version_that_stays_is_said_not_to_be_sent(product: Product) -> None:
    product.publish("a.yaml", {"resource": cluster("a"), "version": "7"})
    product.publish("a.yaml", {"resource": cluster("a", timeout="9s"), "version": "7"})
    assert product.events("resource.stale")[-1]["name"] == "a"


def test_a_resource_for_some_nodes_goes_to_them_alone(product: Product) -> None:
    product.publish(
        "a.yaml",
        cluster("all"),
        {"resource": cluster("by-id"), "nodes": {"id": "edge-*"}},
        {"resource": cluster("by-cluster"), "nodes": {"cluster": "blue"}},
        {"resource": cluster("by-metadata"), "nodes": {"metadata": {"ZONE": "a", "LIST": [1]}}},
        {"resource": cluster("all", timeout="9s"), "nodes": {"id": "edge-2"}},
    )
    nodes = {
        "edge-1": {"cluster": "blue"},
        "edge-2": {"metadata": {"ZONE": "a", "LIST": [1.0], "MORE": "x"}},
        "other": {"metadata": {"ZONE": "b", "LIST": [1]}},
    }
    came = {}
    for name, fields in nodes.items():
        with Delta(product.port, node={"id": name, **fields}) as client:
            response = client.ask(t.CLUSTER)
            came[name] = names_of(response)
            if name == "edge-2":
                assert message_of(response, "all").connect_timeout.seconds == 9
    assert came == {"edge-1": {"all", "by-id", "by-cluster"}, "edge-2": {"all", "by-id", "by-metadata"}, "other": {"all"}}


def test_a_resource_that_becomes_for_some_nodes_leaves_the_others(product: Product) -> None:
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port, node={"id": "one"}) as one, Delta(product.port, node={"id": "two"}) as two:
        one.ask(t.CLUSTER)
        two.ask(t.CLUSTER)
        product.write("a.yaml", {"resource": cluster("a"), "nodes": {"id": "one"}})
        assert list(two.next(t.CLUSTER).removed_resources) == ["a"]
        assert one.between() == []


def test_what_has_a_time_to_live_is_told_to_live_on(product: Product) -> None:
    """X9"""
    product.publish("a.yaml", {"resource": cluster("a"), "ttl": "1.5s"}, cluster("b"))
    with Delta(product.port) as client:
        first = client.ask(t.CLUSTER)
        ttl = {resource.name: resource.ttl.ToMilliseconds() for resource in first.resources}
        assert ttl == {"a": 1500, "b": 0}
        beats = [client.next(t.CLUSTER) for _ in range(3)]
        for beat in beats:
            (resource,) = beat.resources
            assert (resource.name, resource.version) == ("a", versions_of([first])["a"])
            assert resource.ttl.ToMilliseconds() == 1500
            assert not resource.HasField("resource")
            assert beat.nonce != first.nonce
        product.write("a.yaml", cluster("a"), cluster("b"))
        response = client.next(t.CLUSTER)
        while not response.resources[0].HasField("resource"):
            response = client.next(t.CLUSTER)
        assert names_of(response) == {"a"}
        assert not response.resources[0].HasField("ttl")


def test_a_client_that_returns_has_its_resources_told_to_live_on(product: Product) -> None:
    """X9"""
    product.publish("a.yaml", {"resource": assignment("a"), "ttl": "1s"})
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.ENDPOINTS, "a")])
    with Delta(product.port) as client:
        beat = client.ask(t.ENDPOINTS, "a", initial_resource_versions=held)
        assert names_of(beat) == {"a"}
        assert not beat.resources[0].HasField("resource")


def test_times_to_live_are_not_for_the_state_of_the_world(product: Product) -> None:
    """D6: Envoy 1.40 ends itself when endpoints expire there."""
    product.publish("a.yaml", {"resource": assignment("a"), "ttl": "1s"})
    with Sotw(product.port) as client:
        assert client.ask(t.ENDPOINTS, "a").resources[0].type_url == t.ENDPOINTS


def host(name: str, text: str = "x") -> dict[str, object]:
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": text}}}
    return {"@type": t.VIRTUAL_HOST, "name": name, "domains": [name.rpartition("/")[2]], "routes": [route]}


def test_a_resource_answers_to_its_aliases(product: Product) -> None:
    """X4"""
    product.publish("a.yaml", {"resource": host("80/reviews"), "aliases": ["80/reviews.default", "80/10.0.0.1"]})
    with Delta(product.port) as client:
        response = client.ask(t.VIRTUAL_HOST, "80/10.0.0.1", "80/reviews")
        (resource,) = response.resources
        assert (resource.name, list(resource.aliases)) == ("80/reviews", ["80/reviews.default", "80/10.0.0.1"])
        assert not response.removed_resources
        product.write("a.yaml", {"resource": host("80/reviews", "y"), "aliases": ["80/10.0.0.1"]})
        assert names_of(client.next(t.VIRTUAL_HOST)) == {"80/reviews"}
        product.remove("a.yaml")
        assert list(client.next(t.VIRTUAL_HOST).removed_resources) == ["80/reviews"]


def test_an_alias_asked_for_before_it_exists_is_answered_later(product: Product) -> None:
    """X4: at first with a resource without body, so that the waiting request fails at once."""
    with Delta(product.port) as client:
        (nothing,) = client.ask(t.VIRTUAL_HOST, "80/late").resources
        assert (nothing.name, list(nothing.aliases), nothing.HasField("resource")) == ("80/late", ["80/late"], False)
        product.write("a.yaml", {"resource": host("80/on-time"), "aliases": ["80/late"]})
        assert names_of(client.next(t.VIRTUAL_HOST)) == {"80/on-time"}


def test_a_client_that_returns_with_aliases_is_sent_what_differs(product: Product) -> None:
    """X4"""
    product.publish("a.yaml", {"resource": host("80/a"), "aliases": ["80/b"]})
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.VIRTUAL_HOST, "80/b")])
    with Delta(product.port) as client:
        client.subscribe(t.VIRTUAL_HOST, "80/b", initial_resource_versions=held)
        assert client.between() == []


def test_hosts_of_a_route_table_follow_it(product: Product) -> None:
    """X4: what came before its table, Envoy has dropped."""
    table = {"@type": t.ROUTE, "name": "80", "vhds": {"config_source": {"ads": {}}}}
    product.publish("a.yaml", table, {**table, "name": "8080"}, host("80/a"), host("80/b"), host("8080/c"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.ROUTE, "80")) == {"80"}
        assert names_of(client.ask(t.VIRTUAL_HOST)) == {"80/a", "80/b", "8080/c"}
        assert names_of(client.ask(t.ROUTE, "8080")) == {"8080"}
        assert names_of(client.next(t.VIRTUAL_HOST)) == {"8080/c"}


def test_hosts_of_a_route_table_that_is_let_go_are_removed_and_come_back_with_it(product: Product) -> None:
    """X4: with a table Envoy drops its hosts, but goes on counting them as held."""
    table = {"@type": t.ROUTE, "name": "80", "vhds": {"config_source": {"ads": {}}}}
    product.publish("a.yaml", table, {**table, "name": "8080"}, host("80/a"))
    product.publish("b.yaml", host("8080/c"), host("8080/d"))
    with Delta(product.port) as client, Delta(product.port, node={"id": "other"}) as other:
        for each in (client, other):
            each.ask(t.ROUTE, "80", "8080")
            each.ask(t.VIRTUAL_HOST)
        client.unsubscribe(t.ROUTE, "8080")
        gone = client.next(t.VIRTUAL_HOST)
        assert (names_of(gone), set(gone.removed_resources)) == (set(), {"8080/c", "8080/d"})
        # What happens to them meanwhile is for those that have the table.
        product.write("b.yaml", host("8080/c", "other"), host("8080/e"))
        seen = other.next(t.VIRTUAL_HOST)
        if not seen.removed_resources:
            seen = other.next(t.VIRTUAL_HOST)
        assert list(seen.removed_resources) == ["8080/d"]
        assert client.between() == []
        product.publish("c.yaml", host("80/b"))
        assert names_of(client.next(t.VIRTUAL_HOST)) == {"80/b"}
        assert names_of(client.ask(t.ROUTE, "8080")) == {"8080"}
        assert names_of(client.next(t.VIRTUAL_HOST)) == {"8080/c", "8080/e"}


def test_hosts_of_a_route_table_that_was_let_go_before_are_not_sent(product: Product) -> None:
    """X4: nor are they left to a client that holds some from an earlier stream."""
    table = {"@type": t.ROUTE, "name": "80", "vhds": {"config_source": {"ads": {}}}}
    product.publish("a.yaml", table, {**table, "name": "8080"}, host("80/a"), host("8080/c"))
    with Delta(product.port) as client:
        client.ask(t.ROUTE, "80", "8080")
        held = versions_of([client.ask(t.VIRTUAL_HOST)])
    with Delta(product.port) as client:
        client.ask(t.ROUTE, "80", "8080")
        client.unsubscribe(t.ROUTE, "8080")
        returned = client.ask(t.VIRTUAL_HOST, initial_resource_versions=held)
        assert (names_of(returned), list(returned.removed_resources)) == (set(), ["8080/c"])


def test_a_route_table_without_hosts_is_told_so(product: Product) -> None:
    """X4: an empty answer would be waited for."""
    product.publish("a.yaml", {"@type": t.ROUTE, "name": "80", "vhds": {"config_source": {"ads": {}}}})
    with Delta(product.port) as client:
        client.ask(t.ROUTE, "80")
        response = client.ask(t.VIRTUAL_HOST)
        assert [each.name for each in response.resources] + list(response.removed_resources) == ["80/_"]


def test_clusters_on_demand_come_beside_all_others(product: Product) -> None:
    """X5"""
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        assert list(client.ask(t.CLUSTER, "lazy").removed_resources) == ["lazy"]
        product.write("b.yaml", cluster("lazy"))
        assert names_of(client.next(t.CLUSTER)) == {"lazy"}


def test_an_xdstp_name_is_found_whatever_the_order_of_its_parameters(product: Product) -> None:
    """X8"""
    product.publish("a.yaml", listener("xdstp://mesh/envoy.config.listener.v3.Listener/a?zone=b&env=c"))
    with Sotw(product.port) as client:
        name = "xdstp://mesh/envoy.config.listener.v3.Listener/a?env=c&zone=b"
        assert names_of(client.ask(t.LISTENER, name)) == {"xdstp://mesh/envoy.config.listener.v3.Listener/a?zone=b&env=c"}


@pytest.mark.parametrize("client_of", [Delta, Sotw])
def test_a_collection_is_all_that_is_in_its_directory(product: Product, client_of: type[Delta] | type[Sotw]) -> None:
    """X8"""
    base = "xdstp://mesh/envoy.config.endpoint.v3.ClusterLoadAssignment"
    product.publish("a.yaml", *(assignment(f"{base}/{rest}") for rest in ("one/a", "one/b", "one/deep/c", "two/d", "one/e?x=y")))
    with client_of(product.port) as client:
        assert names_of(client.ask(t.ENDPOINTS, f"{base}/one/*")) == {f"{base}/one/a", f"{base}/one/b"}
        product.write("b.yaml", assignment(f"{base}/one/new"))
        assert names_of(client.next(t.ENDPOINTS)) == {f"{base}/one/new"}
        product.remove("b.yaml")
        if isinstance(client, Delta):
            assert list(client.next(t.ENDPOINTS).removed_resources) == [f"{base}/one/new"]


def test_endpoints_of_a_locality_are_a_collection(product: Product) -> None:
    """X7: an endpoint has no name of its own, so the wrapper gives it one."""
    base = "xdstp://mesh/envoy.config.endpoint.v3.LbEndpoint/c"
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}}}}
    product.publish("a.yaml", {"name": f"{base}/1", "resource": {"@type": t.LOCALITY_ENDPOINT, **endpoint}})
    with Delta(product.port) as client:
        assert [each.name for each in client.ask(t.LOCALITY_ENDPOINT, f"{base}/*").resources] == [f"{base}/1"]


MODULE = """
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment

def one():
    return Cluster(name="one")

def several(count=2):
    yield from (Cluster(name=f"n{index}") for index in range(count))

def wrapped():
    return {"resource": ClusterLoadAssignment(cluster_name="e"), "version": "5", "ttl": "60s"}

def _private():
    raise ValueError

def needs(something):
    raise ValueError
"""


def test_a_python_module_returns_resources(product: Product) -> None:
    product.publish("a.py", MODULE)
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"one", "n0", "n1"}
        assert versions_of([client.ask(t.ENDPOINTS, "e")]) == {"e": "5"}
        product.write("a.py", MODULE.replace('"one"', '"two"'))
        response = client.next(t.CLUSTER)
        seen = names_of(response), list(response.removed_resources)
        assert seen == ({"two"}, []) or seen == ({"two"}, ["one"])


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("def f(:\n", 1, "not Python"),
        ("\nimport nonsense_that_is_not_there\n", 2, "ModuleNotFoundError"),
        ("def f():\n    x = 1\n    raise ValueError(x)\n", 3, "ValueError: 1"),
        ("\n\ndef f():\n    return 5\n", 3, "a int is not a resource"),
        ("from envoy_data_plane.envoy.config.cluster.v3 import Cluster\n\ndef f():\n    return Cluster()\n", 3, "needs a name"),
        ("import sys\nsys.exit(1)\n", 2, "SystemExit"),
    ],
)
def test_a_python_module_that_fails_is_said_to_and_harms_only_itself(product: Product, text: str, line: int, problem: str) -> None:
    product.publish("a.py", text)
    product.publish("b.yaml", cluster("b"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"b"}
    assert problems(product)[-1].startswith(f"{product.directory}/a.py:{line}: ")
    assert problem in problems(product)[-1]


def test_resources_and_objects_are_served_together(tmp_path: Path) -> None:
    """--resources beside --files: of one name, what the mesh has counts; files for new nodes reach streams that are open."""
    objects, resources = tmp_path / "objects", tmp_path / "resources"
    objects.mkdir()
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "reviews", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.5", "ports": [{"port": 80, "name": "http"}]},
    }  # fmt: skip
    (objects / "service.yaml").write_text(json.dumps(service))
    node = {"id": "sidecar~10.0.0.1~a.default~default.svc.cluster.local", "metadata": {"NAMESPACE": "default"}}
    with (
        Product("--files", str(objects), "--resources", str(resources), directory=resources) as product,
        Delta(product.port, node=node) as client,
    ):
        assert "outbound|80||reviews.default.svc.cluster.local" in names_of(client.ask(t.CLUSTER))
        product.write("a.yaml", cluster("by-hand"))
        assert names_of(client.next(t.CLUSTER)) == {"by-hand"}
        product.write("b.yaml", {"resource": cluster("for-it"), "nodes": {"id": "sidecar~*"}})
        assert names_of(client.next(t.CLUSTER)) == {"for-it"}
        (objects / "service.yaml").write_text(json.dumps({**service, "metadata": {"name": "ratings", "namespace": "default"}}))
        seen: set[str] = set()
        while "outbound|80||ratings.default.svc.cluster.local" not in seen:
            response = client.next()
            seen |= names_of(response) if response.type_url == t.CLUSTER else set()
            assert not {"by-hand", "for-it"} & set(response.removed_resources)


def test_thousands_of_files_are_followed(product: Product) -> None:
    for index in range(500):
        product.write(f"f{index}.yaml", cluster(f"c{index}"))
    product.settle()
    with Delta(product.port) as client:
        assert len(client.ask(t.CLUSTER).resources) == 500
        product.write("f250.yaml", cluster("c250", timeout="9s"))
        assert names_of(client.next(t.CLUSTER)) == {"c250"}


def test_routes_of_the_reference_are_fine(product: Product) -> None:
    """What Envoy takes, the rules take: one of several fields is required only where it is chosen."""
    product.publish("a.yaml", routes("r"), listener("l"), assignment("e"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.ROUTE, "r")) == {"r"}
