"""What the server speaks besides streams of resources: status for operators, load reports, single answers, and REST."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from support.product import ADS, Delta, Product, Sotw, Stream, assignment, cluster, names_of, secret, until

from xds import pb
from xds.discovery import csds, load
from xds.discovery.protocol import types as t


def ask(product: Product, method: str, request: Any, response: Any) -> Any:
    """A unary call."""
    with grpc.insecure_channel(f"127.0.0.1:{product.port}") as channel:
        call = channel.unary_unary(
            f"/{method}", request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
        )
        return call(request, timeout=60, wait_for_ready=True)


def statuses(product: Product, **fields: Any) -> dict[str, dict[str, str]]:
    """By node, status by name, or by short type."""
    answer = ask(product, f"{csds.SERVICE}/FetchClientStatus", csds.Request(**fields), csds.Response)
    name = csds.Response.DESCRIPTOR.file.enum_types_by_name["ConfigStatus"].values_by_number
    return {
        config.node.id: {
            each.name or t.rules_of(each.type_url).short: name[each.config_status].name for each in config.generic_xds_configs
        }
        for config in answer.config
    }


def test_operators_see_how_far_each_proxy_is(product: Product) -> None:
    """X12"""
    product.publish("a.yaml", cluster("a"), cluster("b"), assignment("e"))
    with Delta(product.port, node={"id": "one"}) as one, Sotw(product.port, node={"id": "two"}) as two:
        one.ask(t.CLUSTER)
        one.subscribe(t.ENDPOINTS, "e")
        unanswered = one.receive()
        two.subscribe(t.CLUSTER)
        two.nack(two.receive(), "Error adding/updating cluster(s) a: no")
        two.next()
        two.between()
        seen = statuses(product)
        assert seen["one"] == {"cds": "SYNCED", "eds": "STALE"}
        assert seen["two"]["cds"] == "ERROR"
        one.ack(unanswered)
        one.between()
        assert statuses(product)["one"]["eds"] == "SYNCED"


def test_operators_see_each_resource_of_a_node_they_name(product: Product) -> None:
    """X12"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port, node={"id": "one"}) as one, Delta(product.port, node={"id": "two"}) as two:
        one.subscribe(t.CLUSTER)
        one.nack(one.receive(), "Error adding/updating cluster(s) a: no")
        one.next()
        one.between()
        two.ask(t.CLUSTER)
        assert statuses(product, node_matchers=[{"node_id": {"exact": "one"}}]) == {"one": {"a": "ERROR", "b": "SYNCED"}}


def test_operators_name_nodes_by_what_their_metadata_hold(product: Product) -> None:
    """X12"""
    product.publish("a.yaml", cluster("a"))
    nodes = {"one": {"canary": True, "labels": {"version": "v1"}}, "two": {"labels": {"version": "v2"}, "weight": 3}}
    version = [{"key": "labels"}, {"key": "version"}]
    with (
        Delta(product.port, node={"id": "one", "metadata": nodes["one"]}) as one,
        Sotw(product.port, node={"id": "two", "metadata": nodes["two"]}) as two,
    ):
        for client in (one, two):
            client.ask(t.CLUSTER)
            client.between()

        def means(*matchers: Any) -> set[str]:
            return set(statuses(product, node_matchers=matchers))

        assert means({"node_metadatas": [{"path": version, "value": {"string_match": {"prefix": "v"}}}]}) == {"one", "two"}
        assert means({"node_metadatas": [{"path": version, "value": {"string_match": {"exact": "v2"}}}]}) == {"two"}
        assert means({"node_metadatas": [{"path": [{"key": "canary"}], "value": {"bool_match": True}}]}) == {"one"}
        heavy = {"path": [{"key": "weight"}], "value": {"double_match": {"range": {"start": 2, "end": 4}}}}
        assert means({"node_metadatas": [heavy], "node_id": {"exact": "one"}}) == set()
        assert means({"node_metadatas": [heavy]}, {"node_id": {"exact": "one"}}) == {"one", "two"}


def test_operators_may_leave_out_what_resources_say(product: Product) -> None:
    """X12"""
    product.publish("a.yaml", cluster("a", timeout="7s"))
    with Delta(product.port, node={"id": "one"}) as one:
        one.ask(t.CLUSTER)
        one.between()
        for left_out in (False, True):
            request = csds.Request(node_matchers=[{"node_id": {"exact": "one"}}], exclude_resource_contents=left_out)
            (config,) = ask(product, f"{csds.SERVICE}/FetchClientStatus", request, csds.Response).config
            (line,) = (each for each in config.generic_xds_configs if each.type_url == t.CLUSTER)
            assert (line.name, bool(line.version_info)) == ("a", True)
            assert line.HasField("xds_config") is not left_out


def test_operators_are_not_shown_secrets(product: Product) -> None:
    product.publish("a.yaml", secret("s", "hidden-words"))
    with Delta(product.port, node={"id": "one"}) as one:
        one.ask(t.SECRET, "s")
        request = csds.Request(node_matchers=[{"node_id": {"prefix": "o"}}])
        answer = ask(product, f"{csds.SERVICE}/FetchClientStatus", request, csds.Response)
        (config,) = answer.config
        assert [each.name for each in config.generic_xds_configs] == ["s"]
        assert b"hidden-words" not in answer.SerializeToString()


def test_the_status_stream_answers_each_request(product: Product) -> None:
    class Statuses(Stream):
        request, response = csds.Request, csds.Response

    with Delta(product.port, node={"id": "one"}) as one, Statuses(product.port, f"{csds.SERVICE}/StreamClientStatus", node=None) as status:
        one.ask(t.CLUSTER)
        one.between()
        for _ in range(2):
            status.send()
            assert [config.node.id for config in status.receive().config] == ["one"]
        status.send(node_matchers=[{"node_metadatas": [{}]}])
        assert status.end() == ("INVALID_ARGUMENT", "node matcher: a path is needed")


def metrics(product: Product) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{product.http}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_load_reports_become_metrics(product: Product) -> None:
    """X10"""

    class Loads(Stream):
        request, response = load.Request, load.Response

    counts = {"total_successful_requests": 3, "total_error_requests": 1, "total_issued_requests": 5, "total_requests_in_progress": 2}
    near, far = {"region": "eu", "zone": "a"}, {"region": "eu", "zone": "b", "sub_zone": "rack"}
    report = {
        "cluster_name": "reviews",
        "upstream_locality_stats": [{**counts, "locality": near}, {**counts, "locality": far}, {**counts, "locality": far, "priority": 1}],
        "dropped_requests": [{"category": "lb", "dropped_count": 4}],
        "total_dropped_requests": 5,
    }
    with Loads(product.port, f"{load.SERVICE}/StreamLoadStats", node={"id": "one"}) as proxy:
        proxy.send()
        answer = proxy.receive()
        assert answer.send_all_clusters
        assert answer.load_reporting_interval.seconds > 0
        for _ in range(2):
            proxy.send(cluster_stats=[report])
        issued = 'xds_load_requests_issued_total{cluster="reviews",locality="eu/a"}'
        until(lambda: metrics(product).get(issued) == 10, lambda: metrics(product))
        seen = metrics(product)
        assert seen['xds_load_requests_issued_total{cluster="reviews",locality="eu/b/rack"}'] == 20
        assert seen['xds_load_requests_total{cluster="reviews",locality="eu/a",result="success"}'] == 6
        assert seen['xds_load_requests_total{cluster="reviews",locality="eu/b/rack",result="error"}'] == 4
        assert seen['xds_load_requests_dropped_total{category="lb",cluster="reviews"}'] == 8
        assert seen['xds_load_requests_dropped_total{category="",cluster="reviews"}'] == 2
        assert seen['xds_load_requests_in_progress{cluster="reviews",locality="eu/b/rack"}'] == 4
    progress = 'xds_load_requests_in_progress{cluster="reviews",locality="eu/b/rack"}'
    until(lambda: metrics(product)[progress] == 0, lambda: metrics(product))


def post(product: Product, kind: str, request: Any) -> tuple[int, Any]:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    call = urllib.request.Request(f"http://127.0.0.1:{product.http}/v3/discovery:{kind}", body)
    try:
        with urllib.request.urlopen(call, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_rest_answers_with_what_a_stream_would_send(product: Product) -> None:
    """X13"""
    product.publish("a.yaml", cluster("a"), cluster("b"), assignment("a"), assignment("b"))
    status, answer = post(product, "clusters", {"node": {"id": "one"}})
    assert status == 200
    assert [each["name"] for each in answer["resources"]] == ["a", "b"]
    status, endpoints = post(product, "endpoints", {"node": {"id": "one"}, "resource_names": ["b"]})
    assert [each["clusterName"] for each in endpoints["resources"]] == ["b"]
    with Sotw(product.port) as client:
        assert client.ask(t.CLUSTER).version_info == answer["versionInfo"]


def test_rest_tells_a_client_that_has_this_version(product: Product) -> None:
    """X13"""
    product.publish("a.yaml", cluster("a"))
    _, answer = post(product, "clusters", {"node": {"id": "one"}})
    assert post(product, "clusters", {"node": {"id": "one"}, "versionInfo": answer["versionInfo"]})[0] == 304
    product.publish("a.yaml", cluster("a", timeout="9s"))
    assert post(product, "clusters", {"node": {"id": "one"}, "versionInfo": answer["versionInfo"]})[0] == 200


def test_rest_says_what_is_wrong_with_a_request(product: Product) -> None:
    assert post(product, "clusters", {"node": {}}) == (400, "the first request of a stream must hold a node with an id\n")
    assert post(product, "clusters", b"{")[0] == 400
    assert post(product, "clusters", b"\xff")[0] == 400
    assert post(product, "clusters", {"node": {"id": "one"}, "typeUrl": t.LISTENER})[0] == 400
    assert post(product, "nonsense", {"node": {"id": "one"}})[0] == 404


def test_a_single_call_answers_with_what_a_stream_would_send(product: Product) -> None:
    product.publish("a.yaml", cluster("a"))
    method = "envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
    answer = ask(product, method, pb.DiscoveryRequest(node={"id": "one"}), pb.DiscoveryResponse)
    assert names_of(answer) == {"a"}
    again = ask(product, method, pb.DiscoveryRequest(node={"id": "one"}, version_info=answer.version_info), pb.DiscoveryResponse)
    assert (again.version_info, len(again.resources)) == (answer.version_info, 0)
    with pytest.raises(grpc.RpcError) as failure:
        ask(product, method, pb.DiscoveryRequest(), pb.DiscoveryResponse)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def proxies(product: Product, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xds", "proxies", "--server", f"http://127.0.0.1:{product.http}", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"COLUMNS": "300", "PATH": ""})


def test_the_table_of_proxies_tells_who_rejected_what(product: Product) -> None:
    product.publish("a.yaml", cluster("a"), cluster("b"))
    version = {"major_number": 1, "minor_number": 40, "patch": 0}
    envoy = {"user_agent_name": "envoy", "user_agent_build_version": {"version": version}}
    with (
        Delta(product.port, node={"id": "good", **envoy}) as good,
        Delta(product.port, node={"id": "fine", **envoy}) as fine,
        Delta(product.port, node={"id": "bad", "user_agent_name": "grpc", "user_agent_version": "1.80"}) as bad,
    ):
        good.ask(t.CLUSTER)
        good.between()
        fine.ask(t.CLUSTER)
        fine.between()
        assert proxies(product).returncode == 0
        bad.subscribe(t.CLUSTER)
        bad.nack(bad.receive(), "Error adding/updating cluster(s) a: [brackets] do not matter")
        bad.next()
        bad.between()
        shown = proxies(product)
    assert shown.returncode == 1, shown
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line.split()}
    assert "SYNCED" in rows["good"]
    assert "envoy 1.40.0" in rows["good"]
    assert "NACK" in rows["bad"]
    assert "grpc 1.80 (most: envoy 1.40.0)" in rows["bad"]
    assert "cds: Error adding/updating cluster(s) a: [brackets] do not matter" in rows["bad"]


def test_the_status_of_a_stream_tells_the_rejected_resources(product: Product) -> None:
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port, f"{ADS}/DeltaAggregatedResources", node={"id": "bad"}) as bad:
        bad.subscribe(t.CLUSTER)
        bad.nack(bad.receive(), "Error adding/updating cluster(s) a: no")
        bad.next()
        bad.between()
        (status,) = product.ask("/debug/syncz")
        assert status["types"]["cds"]["status"] == "NACK"
        assert status["types"]["cds"]["withheld"] == ["a"]
        assert metrics(product)['pilot_total_xds_rejects{type="cds"}'] >= 1
        (event,) = [e for e in product.events("push.rejected") if e["proxy"] == "bad"][-1:]
        assert event["resources"] == ["a"]
