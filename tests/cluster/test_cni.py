"""Capture by the node: pods without any privilege, in a namespace that allows none, behind proxies as all the others.

A real kubelet and containerd run the plugin. The mesh of the other modules is changed for this one, and changed back.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import bookinfo
from support.instructions import Instructions

pytestmark = [pytest.mark.kubernetes, pytest.mark.root, pytest.mark.slow]

Mesh = Any  # that of conftest.py
PRODUCTPAGE = "http://productpage.shop:9080/"


def configuration(mesh: Mesh) -> Path:
    """The node's CNI configuration."""
    (only,) = [path for path in (mesh.node.directory / "cni").iterdir() if path.suffix == ".conflist"]
    return only


def plugins(mesh: Mesh) -> list[str]:
    return [plugin["type"] for plugin in json.loads(configuration(mesh).read_text())["plugins"]]


@pytest.fixture(scope="module")
def by_node(mesh: Mesh, instructions: Instructions) -> Iterator[Mesh]:
    """The mesh, with capture by the node, as the documentation says; and, afterwards, without."""
    before = json.loads(configuration(mesh).read_text())
    commands = instructions.commands("Pods without privileges")
    back = next(i for i, command in enumerate(commands) if command.endswith("enforce-"))
    for command in commands[:back]:
        instructions.run(mesh.node, command)
    mesh.rolled_out()
    yield mesh
    for command in commands[back:-1]:
        instructions.run(mesh.node, command)
    mesh.node.until(lambda: captured_by_themselves(mesh), "no pod to rely on the node")
    instructions.run(mesh.node, commands[-1])
    mesh.node.until(mesh.synced, "all proxies to be SYNCED")
    mesh.node.until(lambda: json.loads(configuration(mesh).read_text()) == before, "the node's configuration to be as it was")
    mesh.node.until(lambda: not (mesh.node.directory / "cni-programs" / "xds-cni").exists(), "the plugin to be gone")


def captured_by_themselves(mesh: Mesh) -> bool:
    """Whether all pods have rules of their own. One that was made while replicas were replaced may not: it is made anew."""
    mesh.rolled_out()
    pods = mesh.node.get("pods", "-n", "shop", "-l", "app")["items"]
    if any(c["name"] == "istio-validation" for pod in pods for c in pod["spec"]["initContainers"]):
        mesh.node.kubectl("-n", "shop", "rollout", "restart", "deployment")
        return False
    return True


@pytest.fixture
def agent_away(by_node: Mesh) -> Iterator[Mesh]:
    """No agent runs, as while its image cannot be pulled; the plugin stays in its place."""
    select(by_node, {"nowhere": "true"})
    by_node.node.until(lambda: not by_node.node.get("pods", "-n", "istio-system", "-l", "app=xds-cni")["items"], "no agent")
    assert plugins(by_node) == ["bridge", "xds-cni"]
    yield by_node
    back(by_node)


def select(mesh: Mesh, labels: dict[str, str | None]) -> None:
    """Have the agent run on the nodes with these labels."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": labels}}}}
    mesh.node.kubectl("-n", "istio-system", "patch", "daemonset", "xds-cni", "--type=merge", "-p", json.dumps(patch))


def back(mesh: Mesh) -> None:
    """The agent runs again."""
    select(mesh, {"nowhere": None})
    mesh.node.kubectl("-n", "istio-system", "rollout", "status", "daemonset/xds-cni", "--timeout=180s")


def test_pods_have_no_privilege_and_their_proxies_are_in_sync(by_node: Mesh) -> None:
    pods = by_node.node.get("pods", "-n", "shop", "-l", "app")["items"]
    assert len(pods) >= 6
    for pod in pods:
        assert [c["name"] for c in pod["spec"]["initContainers"]] == ["istio-validation", "istio-proxy"]
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["runAsNonRoot"]
    by_node.node.until(by_node.synced, "all proxies to be SYNCED")


def test_traffic_goes_through_proxies_under_the_meshs_rules(by_node: Mesh) -> None:
    answers = by_node.call(PRODUCTPAGE, times=10, headers={"end-user": "jason"})
    assert {answer["called"][1]["version"] for answer in answers} == {"v2"}
    answers = by_node.call("http://reviews:9080/", times=10, headers={"end-user": "jason"}, inside="deployment/details-v1")
    assert {answer["version"] for answer in answers} == {"v2"}


def test_pods_outside_the_mesh_are_as_they_were(by_node: Mesh) -> None:
    by_node.node.apply(bookinfo.manifests(bookinfo.pod("outsider", "-Ic", bookinfo.program("idle"))))
    by_node.node.kubectl("wait", "pod/outsider", "--for=condition=Ready", "--timeout=180s")
    (answer,) = by_node.call("http://ratings.shop:9080/")
    assert answer["name"] == "ratings"
    by_node.node.kubectl("delete", "pod", "outsider", "--wait=false")


def test_another_program_may_write_the_nodes_configuration_anew(by_node: Mesh) -> None:
    file = configuration(by_node)
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "plugins": value["plugins"][:1]}))
    by_node.node.until(lambda: plugins(by_node) == ["bridge", "xds-cni"], "the plugin to be back")


def node_capture(mesh: Mesh) -> tuple[str, list[str]]:
    """The status and the details of what `xds check` finds of the agents."""
    findings = json.loads(mesh.xds("check", "-o", "json", check=False).stdout)
    (found,) = (finding for finding in findings if finding["check"] == "node-capture")
    return found["status"], found["details"]


def test_check_names_the_nodes_without_an_agent(agent_away: Mesh) -> None:
    (node,) = agent_away.node.get("nodes")["items"]
    lost = ["no pod of the DaemonSet xds-cni in istio-system", node["metadata"]["name"]]
    assert node_capture(agent_away) == ("failure", lost)
    back(agent_away)
    assert node_capture(agent_away) == ("ok", ["nodes with pods of the mesh: 1"])


def test_pods_wait_while_no_agent_answers_and_say_why(agent_away: Mesh) -> None:
    pod = bookinfo.pod("waiting", "-Ic", bookinfo.program("idle"))
    agent_away.apply(bookinfo.manifests(pod))
    mending = {**pod, "metadata": {"name": "mending", "namespace": "kube-system"}}
    agent_away.node.apply(bookinfo.manifests(mending))
    agent_away.node.kubectl("-n", "kube-system", "wait", "pod/mending", "--for=condition=Ready", "--timeout=180s")

    def reason() -> bool:
        events = agent_away.node.get("events", "-n", "shop", "--field-selector", "involvedObject.name=waiting")["items"]
        return any("DaemonSet xds-cni) does not answer" in event.get("message", "") for event in events)

    agent_away.node.until(reason, "an event that names the agent")
    assert not agent_away.node.get("pod", "-n", "shop", "waiting")["status"].get("containerStatuses", [{}])[0].get("ready", False)
    back(agent_away)
    agent_away.node.kubectl("-n", "shop", "wait", "pod/waiting", "--for=condition=Ready", "--timeout=180s")
    agent_away.node.kubectl("-n", "shop", "delete", "pod", "waiting", "--wait=false")
    agent_away.node.kubectl("-n", "kube-system", "delete", "pod", "mending", "--wait=false")


def test_pods_that_were_made_before_the_plugin_was_there_do_not_run_and_are_replaced(agent_away: Mesh) -> None:
    file = configuration(agent_away)
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "plugins": value["plugins"][:1]}))  # and nobody who would notice
    early = bookinfo.deployment("early", "v1")
    agent_away.apply(bookinfo.manifests(early))

    def failed() -> list[str]:
        """The early pods that found out that they are not captured."""
        return [
            pod["metadata"]["uid"]
            for pod in agent_away.node.get("pods", "-n", "shop", "-l", "app=early")["items"]
            for status in pod["status"].get("initContainerStatuses", ())
            for state in (status["state"], status.get("lastState", {}))
            if state.get("terminated", {}).get("exitCode") == 126
        ]

    (uncaptured,) = set(agent_away.node.until(failed, "a pod that is not captured to fail"))
    back(agent_away)
    agent_away.node.kubectl("-n", "shop", "rollout", "status", "deployment/early-v1", "--timeout=180s")

    def left() -> set[str]:
        return {pod["metadata"]["uid"] for pod in agent_away.node.get("pods", "-n", "shop", "-l", "app=early")["items"]}

    # A pod that is deleted is there until it has ended, while the one in its place may be ready.
    agent_away.node.until(lambda: uncaptured not in left(), "the pod that was not captured to be gone")
    agent_away.node.kubectl("-n", "shop", "delete", "deployment", "early-v1")
    agent_away.rolled_out()
