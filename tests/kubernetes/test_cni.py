"""The CNI plugin and its agent, with a real API server and real network namespaces: what a container runtime would see.

The plugin is the program that is installed on nodes, but that it asks a socket of the test's. The agent has the permissions that the
chart gives it.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import pod
from support.kube import Kube, binary
from support.pod import Namespace
from support.recorder import asynchronous

from xds.errors import Forbidden
from xds.injection.capture import Capture, clean_up_script, script
from xds.injection.cni import agent
from xds.injection.cni.agent import Agent
from xds.injection.cni.chain import Chain
from xds.injection.cni.repair import repair
from xds.injection.pods import inject
from xds.injection.settings import Settings
from xds.objects import ProxyConfig
from xds.sources.kube_client import KubeClient

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEM = "istio-system"
SETTINGS = Settings(image="localhost/xds-proxy:1", cni=True)
NETWORK = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}
RESULT = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.1.2.3/24"}], "dns": {}}
RULES = "nft list ruleset"

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.root,
    pytest.mark.skipif(not pod.available() or shutil.which("gcc") is None, reason="needs root, nft, network namespaces and gcc"),
]


@pytest.fixture(scope="module")
def account(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of the agent's account, as the chart makes it."""
    chart = [
        binary("helm"),
        "template",
        "xds",
        str(DEPLOY / "helm" / "xds"),
        "--namespace",
        SYSTEM,
        "--kube-version",
        "1.34.0",
        "--set",
        "cni.enabled=true",
    ]
    made = [o for o in yaml.safe_load_all(subprocess.check_output(chart, text=True)) if o and o["metadata"]["name"].startswith("xds-cni")]
    text = yaml.safe_dump_all([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}, *made])
    kube.apply(text)
    token = kube.request("POST", f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/xds-cni/token", {"spec": {}})["status"]["token"]
    yield kube.write_kubeconfig(tmp_path_factory.mktemp("account") / "config", "xds-cni", token=token)
    kube.kubectl("delete", "--wait=false", "-f", "-", stdin=yaml.safe_dump_all(made))


class Node:
    """A node's directories, and the plugin, which asks the agent at `socket`."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "run" / "agent.sock"
        self.chain = Chain(directory / "net.d", directory / "bin", directory / "xds-cni")
        for made in (self.chain.configurations, self.chain.programs):
            made.mkdir()
        source = DEPLOY / "cni" / "xds-cni.c"
        subprocess.run(["gcc", "-Wall", "-Werror", f'-DSOCKET="{self.socket}"', "-o", self.chain.program, source], check=True)

    async def run(
        self, command: str, where: Namespace | None = None, who: tuple[str, str] | None = None, uid: str = "", **configuration: Any
    ) -> tuple[int, Any]:
        """The plugin's exit status, and the JSON that it prints."""
        environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": str(self.chain.programs)}
        if where is not None:
            environment["CNI_NETNS"] = f"/run/netns/{where.name}"
        if who is not None:
            parts = ["IgnoreUnknown=1", f"K8S_POD_NAMESPACE={who[0]}", f"K8S_POD_NAME={who[1]}", "K8S_POD_INFRA_CONTAINER_ID=c1"]
            environment["CNI_ARGS"] = ";".join([*parts, *([f"K8S_POD_UID={uid}"] if uid else [])])
        given = json.dumps({"cniVersion": "1.0.0", "name": "pods", "type": "xds-cni", "prevResult": RESULT} | configuration)
        process = await asyncio.create_subprocess_exec(
            self.chain.program, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate(given.encode())
        assert process.returncode is not None
        return process.returncode, json.loads(said) if said else None

    @asynccontextmanager
    async def agent(self, kubeconfig: Path) -> AsyncIterator[Agent]:
        """A running agent."""
        async with KubeClient(kubeconfig) as client, asyncio.TaskGroup() as tasks:
            agent = Agent(client, self.chain, self.socket)
            running = tasks.create_task(agent.run())
            await until(self.socket.exists)
            try:
                yield agent
            finally:
                running.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Returns when `condition` holds; the test has a minute in all."""
    while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - another process makes it hold
        await asyncio.sleep(0.02)


def chained(node: Node) -> bool:
    """Whether the plugin is in the node's configuration."""
    plugins = json.loads((node.chain.configurations / "10-pods.conflist").read_text())["plugins"]
    return [plugin["type"] for plugin in plugins] == ["bridge", "xds-cni"]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def network() -> Iterator[Namespace]:
    """A pod's network namespace, as the plugins before have made it."""
    with pod.running("") as running:
        yield running.pod


def rules_of(capture: Capture) -> str:
    """The rules that the init container would have made."""
    with pod.running(script(capture)) as running:
        return running.pod.sh(RULES)


async def made(
    kube: Kube, annotations: dict[str, str] | None = None, *, injected: bool = True, node: str = "", **metadata: Any
) -> dict[str, Any]:
    """A pod, as the API server has it: with its proxy, unless `injected` is false."""
    where = await asyncio.to_thread(kube.namespace)
    body: dict[str, Any] = {"metadata": {"name": "web", "annotations": annotations or {}, **metadata}}
    body["spec"] = {"containers": [{"name": "web", "image": "web"}], **({"nodeName": node} if node else {})}
    if injected:
        body = inject(body, where, SETTINGS, ProxyConfig(), native=True).pod
    found: dict[str, Any] = await asyncio.to_thread(kube.request, "POST", f"/api/v1/namespaces/{where}/pods", body)
    return found


def name_of(found: dict[str, Any]) -> tuple[str, str]:
    return found["metadata"]["namespace"], found["metadata"]["name"]


class TestAdd:
    @asynchronous
    async def test_a_pod_with_a_proxy_is_captured_as_by_its_own_init_container(
        self, kube: Kube, account: Path, node: Node, network: Namespace
    ) -> None:
        found = await made(kube)
        async with node.agent(account):
            done = await node.run("ADD", network, name_of(found), found["metadata"]["uid"])
        assert done == (0, RESULT)
        assert network.sh(RULES) == rules_of(Capture())

    @asynchronous
    async def test_doing_it_again_changes_nothing(self, kube: Kube, account: Path, node: Node, network: Namespace) -> None:
        found = await made(kube)
        async with node.agent(account):
            await node.run("ADD", network, name_of(found))
            before = network.sh(RULES)
            assert await node.run("ADD", network, name_of(found)) == (0, RESULT)
        assert network.sh(RULES) == before

    @asynchronous
    async def test_annotations_are_followed(self, kube: Kube, account: Path, node: Node, network: Namespace) -> None:
        annotations = {
            "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.96.0.0/16,fd96::/64",
            "traffic.sidecar.istio.io/excludeInboundPorts": "9100",
        }
        found = await made(kube, annotations)
        async with node.agent(account):
            assert await node.run("ADD", network, name_of(found)) == (0, RESULT)
        expected = Capture(excluded_outbound_ports=(3306,), outbound_ranges=("10.96.0.0/16", "fd96::/64"), excluded_inbound_ports=(9100,))
        assert network.sh(RULES) == rules_of(expected)

    @pytest.mark.parametrize(
        "annotations",
        [
            {"sidecar.istio.io/interceptionMode": "NONE"},
            {"sidecar.istio.io/status": '{"initContainers": ["istio-validation"], "containers": ["istio-proxy"]}'},
        ],
        ids=["no capture", "another's proxy"],
    )
    @asynchronous
    async def test_what_is_not_to_be_captured_is_left_alone(
        self, kube: Kube, account: Path, node: Node, network: Namespace, annotations: dict[str, str]
    ) -> None:
        found = await made(kube, annotations, injected="sidecar.istio.io/status" not in annotations)
        async with node.agent(account):
            assert await node.run("ADD", network, name_of(found)) == (0, RESULT)
        assert network.sh(RULES) == ""

    @asynchronous
    async def test_pods_without_a_proxy_and_other_containers_are_left_alone(
        self, kube: Kube, account: Path, node: Node, network: Namespace
    ) -> None:
        found = await made(kube, injected=False)
        async with node.agent(account):
            assert await node.run("ADD", network, name_of(found)) == (0, RESULT)
            assert await node.run("ADD", network) == (0, RESULT)  # not of Kubernetes
        assert network.sh(RULES) == ""

    @asynchronous
    async def test_a_pod_that_is_not_there_yet_is_waited_for(
        self, kube: Kube, account: Path, node: Node, network: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "POD_SECONDS", 60.0)
        where = await asyncio.to_thread(kube.namespace)
        body = inject(
            {"metadata": {"name": "late"}, "spec": {"containers": [{"name": "a", "image": "a"}]}},
            where,
            SETTINGS,
            ProxyConfig(),
            native=True,
        )
        async with node.agent(account), asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(node.run("ADD", network, (where, "late")))
            await asyncio.sleep(0)
            await asyncio.to_thread(kube.request, "POST", f"/api/v1/namespaces/{where}/pods", body.pod)
        assert asked.result() == (0, RESULT)
        assert network.sh(RULES) == rules_of(Capture())

    @asynchronous
    async def test_a_pod_that_has_been_replaced_is_not_taken_for_the_one_that_is_made(
        self, kube: Kube, account: Path, node: Node, network: Namespace
    ) -> None:
        found = await made(kube)
        async with node.agent(account):
            status, error = await node.run("ADD", network, name_of(found), "11111111-2222-3333-4444-555555555555")
        assert (status, error["code"]) == (1, 11)
        assert found["metadata"]["uid"] in error["details"]
        assert network.sh(RULES) == ""

    @asynchronous
    async def test_a_pod_that_the_node_has_made_itself_is_known_by_the_nodes_name_for_it(
        self, kube: Kube, account: Path, node: Node, network: Namespace
    ) -> None:
        found = await made(kube, {"kubernetes.io/config.mirror": "0123456789abcdef"}, injected=False, node="node-1")
        async with node.agent(account):
            assert await node.run("ADD", network, name_of(found), "0123456789abcdef") == (0, RESULT)

    @asynchronous
    async def test_an_annotation_that_cannot_be_followed_fails_the_pod_and_is_named(
        self, kube: Kube, account: Path, node: Node, network: Namespace
    ) -> None:
        found = await made(kube)
        patched = found["metadata"]["annotations"] | {"traffic.sidecar.istio.io/excludeInboundPorts": "http"}
        await asyncio.to_thread(kube.request, "PUT", "/api/v1/namespaces/{}/pods/{}".format(*name_of(found)),
                                found | {"metadata": found["metadata"] | {"annotations": patched}})  # fmt: skip
        async with node.agent(account):
            status, error = await node.run("ADD", network, name_of(found))
        assert (status, error["code"]) == (1, 100)
        assert "excludeInboundPorts" in error["details"]

    @asynchronous
    async def test_rules_that_the_kernel_refuses_fail_the_pod(self, kube: Kube, account: Path, node: Node, network: Namespace) -> None:
        found = await made(kube)
        async with node.agent(account):
            before = os.environ["PATH"]
            os.environ["PATH"] = str(fake_nft(node))
            try:
                status, error = await node.run("ADD", network, name_of(found))
            finally:
                os.environ["PATH"] = before
        assert (status, error["code"]) == (1, 101)
        assert "no rules today" in error["details"]
        assert network.sh(RULES) == ""

    @asynchronous
    async def test_without_an_agent_the_pod_fails_and_what_mends_a_cluster_does_not(self, node: Node, network: Namespace) -> None:
        status, error = await node.run("ADD", network, ("shop", "web"))
        assert (status, error["code"]) == (1, 11)
        assert "DaemonSet xds-cni" in error["msg"]
        assert await node.run("ADD", network, ("kube-system", "coredns")) == (0, RESULT)

    @asynchronous
    async def test_the_nodes_own_network_is_never_touched(self, kube: Kube, account: Path, node: Node) -> None:
        found = await made(kube)
        here = Namespace("../../proc/self/ns/net")
        async with node.agent(account):
            status, error = await node.run("ADD", here, name_of(found))
        assert (status, error["code"]) == (1, 4)


def fake_nft(node: Node) -> Path:
    """A directory for PATH, whose `nft` fails."""
    directory = node.chain.program.parent / "programs"
    directory.mkdir()
    (directory / "nft").write_text("#!/bin/sh\necho no rules today\nexit 1\n")
    (directory / "nft").chmod(0o755)
    for name in ("nsenter", "sh", "ip", "cat"):
        (directory / name).symlink_to(shutil.which(name) or "")
    return directory


class TestOtherOperations:
    @asynchronous
    async def test_check_finds_out_whether_the_rules_are_there(self, kube: Kube, account: Path, node: Node, network: Namespace) -> None:
        found = await made(kube)
        async with node.agent(account):
            await node.run("ADD", network, name_of(found))
            assert await node.run("CHECK", network, name_of(found)) == (0, None)
            network.sh(clean_up_script())
            status, error = await node.run("CHECK", network, name_of(found))
        assert (status, error["code"]) == (1, 101)

    @asynchronous
    async def test_deleting_and_collecting_need_no_agent(self, node: Node, network: Namespace) -> None:
        assert await node.run("DEL", network, ("shop", "web")) == (0, None)
        assert await node.run("DEL") == (0, None)
        assert await node.run("GC") == (0, None)

    @asynchronous
    async def test_version_says_what_is_spoken(self, node: Node) -> None:
        from xds.injection.cni.protocol import VERSIONS

        status, said = await node.run("VERSION")
        assert (status, said) == (0, {"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)})

    @asynchronous
    async def test_status_says_whether_pods_can_be_made(self, account: Path, node: Node) -> None:
        status, error = await node.run("STATUS", cniVersion="1.1.0")
        assert (status, error["code"]) == (1, 50)
        async with node.agent(account):
            status, error = await node.run("STATUS", cniVersion="1.1.0")  # the node has no network yet
            assert (status, error["code"]) == (1, 50)
            (node.chain.configurations / "10-pods.conflist").write_text(json.dumps(NETWORK))
            await until(lambda: chained(node))
            assert await node.run("STATUS", cniVersion="1.1.0") == (0, None)

    @pytest.mark.parametrize(
        ("command", "configuration", "code"),
        [
            ("ADD", {"cniVersion": "0.1.0"}, 1),
            ("ADD", {"cniVersion": "9.0.0"}, 1),
            ("ADD", {"prevResult": None}, 7),
            ("DANCE", {}, 4),
        ],
    )
    @asynchronous
    async def test_what_is_asked_wrongly_is_refused_with_the_specifications_code(
        self, account: Path, node: Node, network: Namespace, command: str, configuration: dict[str, Any], code: int
    ) -> None:
        async with node.agent(account):
            status, error = await node.run(command, network, ("shop", "web"), **configuration)
        assert (status, error["code"]) == (1, code)


class TestChain:
    @asynchronous
    async def test_the_plugin_is_put_back_when_another_writes_the_configuration_anew(self, account: Path, node: Node) -> None:
        file = node.chain.configurations / "10-pods.conflist"
        async with node.agent(account):
            for _ in range(3):
                file.write_text(json.dumps(NETWORK))
                await until(lambda: chained(node))

    @asynchronous
    async def test_the_program_is_put_back_when_it_is_removed(self, account: Path, node: Node) -> None:
        program = node.chain.programs / "xds-cni"
        async with node.agent(account):
            await until(program.exists)
            program.unlink()
            await until(program.exists)
        assert program.read_bytes() == node.chain.program.read_bytes()
        assert program.stat().st_mode & 0o777 == 0o755


class TestRepair:
    @asynchronous
    async def test_a_pod_that_was_made_before_the_plugin_is_deleted_where_it_will_be_made_again(
        self, kube: Kube, account: Path, node: Node
    ) -> None:
        (node.chain.configurations / "10-pods.conflist").write_text(json.dumps(NETWORK))
        owner = [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "1", "controller": True}]
        name = f"node-{os.getpid()}"
        pods = {
            "before": await failed(kube, name, ownerReferences=owner),
            "bare": await failed(kube, name),
            "after": await failed(kube, name, began=datetime.now(UTC) + timedelta(hours=1), ownerReferences=owner),
            "elsewhere": await failed(kube, "other", ownerReferences=owner),
        }
        async with node.agent(account) as agent, KubeClient(account) as client, asyncio.TaskGroup() as tasks:
            repairing = tasks.create_task(repair(client, agent, name, look_seconds=0.05))
            await until(lambda: not exists(kube, pods["before"]))
            repairing.cancel()
        assert [key for key, found in pods.items() if exists(kube, found)] == ["bare", "after", "elsewhere"]


async def failed(kube: Kube, node: str, began: datetime | None = None, **metadata: Any) -> dict[str, Any]:
    """A pod on `node` whose validation has failed."""
    found = await made(kube, node=node, **metadata)
    terminated = {"terminated": {"exitCode": 126}}
    validation = {"name": "istio-validation", "image": "i", "imageID": "", "ready": False, "restartCount": 1, "state": terminated}
    started = (began or datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {"phase": "Pending", "startTime": started, "initContainerStatuses": [validation]}
    path = "/api/v1/namespaces/{}/pods/{}/status".format(*name_of(found))
    await asyncio.to_thread(kube.request, "PUT", path, found | {"status": status})
    return found


def exists(kube: Kube, found: dict[str, Any]) -> bool:
    """Whether the pod is there, and is to stay. There is no kubelet that would end it."""
    try:
        pod = kube.request("GET", "/api/v1/namespaces/{}/pods/{}".format(*name_of(found)))
    except AssertionError as e:
        if " 404 " in str(e):
            return False
        raise
    return "deletionTimestamp" not in pod["metadata"]


@asynchronous
async def test_the_chart_allows_what_is_asked_for_and_nothing_else(account: Path) -> None:
    allowed = ["/api/v1/pods", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/xds-cni"]
    forbidden = ["/api/v1/secrets", "/api/v1/nodes", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets", "/api/v1/configmaps"]
    async with KubeClient(account) as client:
        for path in allowed:
            await client.request("GET", path)
        for path in forbidden:
            with pytest.raises(Forbidden):
                await client.request("GET", path)
