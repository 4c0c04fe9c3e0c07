"""The example, from files: what `xds dump` prints is what Envoy has, and the demo ends well."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from support.commands import xds
from support.pod import Namespace, available, run
from support.serving import NUMBERS, Node, Proxy, eventually, serving

from xds import pb

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.root,
    pytest.mark.skipif(not available(), reason="needs root, and the commands ip, nft and setpriv"),
]

EXAMPLE = Path(__file__).parents[2] / "examples/bookinfo"
WORKLOAD = "productpage-v1.default"


def dump(kind: str, *arguments: str) -> list[dict[str, Any]]:
    """What `xds dump --files examples/bookinfo --as productpage-v1.default KIND -o yaml` prints."""
    ran = xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, kind, "-o", "yaml", *arguments)
    assert ran.code == 0, ran.err
    return list(yaml.safe_load_all(ran.out))


def parsed(resource: dict[str, Any]) -> Message:
    """A resource in protobuf's JSON form as a message."""
    kind = pb.message_class(resource["@type"].rpartition("/")[2])
    fields = {key: value for key, value in resource.items() if key != "@type"}
    return json_format.ParseDict(fields, kind(), descriptor_pool=pb.POOL)


def named(resources: list[dict[str, Any]]) -> dict[str, Message]:
    return {resource.get("name") or resource["cluster_name"]: parsed(resource) for resource in resources}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with serving("--files", EXAMPLE) as node:
        yield node


@pytest.fixture(scope="module")
def proxy(node: Node) -> Proxy:
    labels = ("--label", "app=productpage", "--label", "version=v1")
    proxy = node.proxy(WORKLOAD, "--address", "127.0.1.1", *labels, "--interception", "NONE")
    eventually(proxy.ready, "Envoy to have its first configuration")
    return proxy


class TestDumpIsWhatEnvoyHas:
    def test_clusters(self, proxy: Proxy) -> None:
        assert named(dump("clusters")) == named([each["cluster"] for each in proxy.config("dynamic_active_clusters")])

    def test_listeners(self, proxy: Proxy) -> None:
        found = [each["active_state"]["listener"] for each in proxy.config("dynamic_listeners")]
        assert named(dump("listeners")) == named(found)

    def test_routes(self, proxy: Proxy) -> None:
        assert named(dump("routes")) == named([each["route_config"] for each in proxy.config("dynamic_route_configs")])

    def test_endpoints(self, proxy: Proxy) -> None:
        """Envoy shows its own account of them: addresses, localities, health, weights and metadata, with its defaults filled in."""

        def account(assignment: Any) -> list[tuple[Any, ...]]:
            return sorted(
                (
                    group.locality.SerializeToString(), group.priority, endpoint.endpoint.address.SerializeToString(),
                    endpoint.load_balancing_weight.value or 1, max(endpoint.health_status, 1),
                    endpoint.metadata.SerializeToString(deterministic=True),
                )
                for group in assignment.endpoints
                for endpoint in group.lb_endpoints
            )  # fmt: skip

        configs = json.loads(proxy.admin("/config_dump?include_eds")[1])["configs"]
        (shown,) = (each for each in configs if each["@type"].endswith(".EndpointsConfigDump"))
        theirs = named([each["endpoint_config"] for each in shown["dynamic_endpoint_configs"]])
        ours = named(dump("endpoints"))
        assert ours
        assert {name: account(ours[name]) for name in ours} == {name: account(theirs[name]) for name in ours}

    def test_a_running_server_says_the_same_as_its_files(self, node: Node) -> None:
        for kind in ("clusters", "endpoints", "listeners", "routes"):
            asked = xds("dump", "--server", f"127.0.0.1:{node.serve.grpc}", "--as", WORKLOAD, kind, "-o", "yaml")
            assert list(yaml.safe_load_all(asked.out)) == dump(kind)


def test_proxies_shows_it_in_sync(node: Node, proxy: Proxy) -> None:
    server = ("--server", f"http://127.0.0.1:{node.serve.http}")
    ran = xds("proxies", *server)
    assert ran.code == 0
    (line,) = [line.split() for line in ran.out.splitlines() if "productpage" in line]
    assert line[:2] == ["sidecar~127.0.1.1~productpage-v1.default~default.svc.cluster.local", "productpage-v1.default"]
    assert line[2:8] == ["envoy", "1.40.0"] + ["SYNCED"] * 4
    (found,) = json.loads(xds("proxies", *server, "-o", "json").out)
    assert (found["variant"], found["types"]["cds"]["status"]) == ("delta", "SYNCED")


class TestWhy:
    """`--why` names the objects that decide a resource, and no others."""

    def why(self, kind: str, name: str) -> set[str]:
        (found,) = dump(kind, "--name", name, "--why")
        return set(found["why"])

    def test_a_cluster(self) -> None:
        found = self.why("clusters", "outbound|9080|v2|reviews.default.svc.cluster.local")
        assert {"Service reviews.default", "DestinationRule reviews.default"} <= found
        assert not {name for name in found if "ratings" in name or "details" in name}

    def test_endpoints(self) -> None:
        found = self.why("endpoints", "outbound|9080|v2|reviews.default.svc.cluster.local")
        assert {"Service reviews.default", "DestinationRule reviews.default"} <= found
        assert {"EndpointSlice reviews-1.default", "Pod reviews-v2.default"} <= found
        assert not {name for name in found if "ratings" in name or "details" in name}

    def test_a_route_table(self) -> None:
        found = self.why("routes", "127.0.2.1:9080")
        assert {"VirtualService reviews.default", "Service reviews.default", "Service details.default"} <= found

    def test_an_inbound_listener(self) -> None:
        assert self.why("listeners", "127.0.1.1_9080") == {
            "EndpointSlice productpage-1.default", "Pod productpage-v1.default", "Service productpage.default",
            "Sidecar productpage-v1.default",
        }  # fmt: skip


@pytest.mark.slow
def test_the_demo_runs_checks_itself_and_says_so() -> None:
    namespace = Namespace(f"demo-{next(NUMBERS)}")
    run("ip", "netns", "add", namespace.name)
    try:
        namespace.ip("link set lo up")
        command = ["ip", "netns", "exec", namespace.name, sys.executable, "-I", "-m", "xds", "demo", "--once", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    finally:
        run("ip", "netns", "del", namespace.name)
    steps = json.loads(done.stdout)
    assert [step["weights"] for step in steps] == [{"v1": 90, "v2": 10}, {"v1": 0, "v2": 100}]
    assert done.returncode == (0 if all(step["followed"] for step in steps) else 1), done.stderr
    first, second = (step["answers"] for step in steps)
    assert 840 < first["v1"] < 960, "six standard deviations from 900"
    assert (first["v1"] + first["v2"], second) == (1000, {"v2": 1000}), "none failed, none went astray"
    assert steps[1]["visible_seconds"] > 0
