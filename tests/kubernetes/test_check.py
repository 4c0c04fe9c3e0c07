"""`xds check` where there is no control plane yet. With one, on a whole node, it is tested in `tests/cluster`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kube import Kube

pytestmark = pytest.mark.kubernetes


def check(kubeconfig: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    return subprocess.run([sys.executable, "-m", "xds", "check", *options], env=environment, capture_output=True, text=True, check=False)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


def test_an_administrator_may_install(kube: Kube) -> None:
    done = check(kube.kubeconfig, "--pre", "-o", "json")
    assert {name: finding["status"] for name, finding in findings(done).items()} == {
        "kubernetes-version": "ok", "istio-kinds": "ok", "permissions": "ok",
    }  # fmt: skip
    assert done.returncode == 0


def test_who_may_not_install_is_told_what_is_missing(kube: Kube) -> None:
    done = check(kube.kubeconfig_of("reader"), "--pre", "-o", "json")
    finding = findings(done)["permissions"]
    assert (done.returncode, finding["status"], finding["hint"]) == (1, "failure", "install and upgrade as a cluster administrator")
    assert "create deployments.apps" in finding["details"]
    assert "create namespaces" in finding["details"]


def test_without_a_control_plane_every_check_that_needs_one_says_so(kube: Kube) -> None:
    done = check(kube.kubeconfig)
    assert done.returncode == 1
    title = "× the control plane's replicas are ready"
    assert f"{title}\n    no pod of revision default in istio-system\n    → install the chart\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_what_may_not_be_read_is_a_warning_of_that_check_alone(kube: Kube) -> None:
    done = check(kube.kubeconfig_of("reader"), "-o", "json")
    found = findings(done)["pods-without-proxy"]
    assert (found["status"], found["hint"]) == ("warning", "run it as somebody who may read this")
    assert "cannot list resource" in found["details"][0]


def test_a_namespace_that_chooses_no_revision_that_is_there_is_named(kube: Kube) -> None:
    lost, torn = kube.namespace(), kube.namespace()
    kube.kubectl("label", "namespace", lost, "istio.io/rev=absent")
    kube.kubectl("label", "namespace", torn, "istio.io/rev=absent", "istio-injection=enabled")
    found = findings(check(kube.kubeconfig, "-o", "json"))["namespaces"]
    assert found["status"] == "warning"
    assert f"{lost}: istio.io/rev=absent, and there is no such revision" in found["details"]
    assert f"{torn}: istio-injection=enabled rules, and istio.io/rev=absent is without effect" in found["details"]


def test_pods_that_cannot_be_made_are_told_with_the_reason(kube: Kube) -> None:
    namespace = kube.namespace()
    kube.kubectl("label", "namespace", namespace, "istio-injection=enabled")
    labels = {"matchLabels": {"app": "shop"}}
    template = {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [{"name": "shop", "image": "shop"}]}}
    replica_set = {"metadata": {"name": "shop"}, "spec": {"selector": labels, "template": template}}
    path = f"/apis/apps/v1/namespaces/{namespace}/replicasets"
    made = kube.request("POST", path, {"apiVersion": "apps/v1", "kind": "ReplicaSet", **replica_set})
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    kube.request("PUT", f"{path}/shop/status", {**made, "status": {"replicas": 0, "conditions": [condition]}})
    found = findings(check(kube.kubeconfig, "-o", "json"))["pods-refused"]
    assert (found["status"], found["details"]) == ("failure", [f"shop.{namespace}: exceeded quota"])
    assert "tried=again" in found["hint"]


@pytest.fixture
def by_node(kube: Kube) -> Iterator[str]:
    """A revision whose pods are captured by the nodes."""
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}))
    config = {"metadata": {"name": "istio-sidecar-injector-by-node"}, "data": {"settings.yaml": "cni: true"}}
    kube.request("POST", "/api/v1/namespaces/istio-system/configmaps", config)
    yield "by-node"
    kube.kubectl("-n", "istio-system", "delete", "configmap", "istio-sidecar-injector-by-node")
    kube.kubectl("-n", "istio-system", "delete", "pods", "-l", "app=xds-cni", "--force")


def place(kube: Kube, namespace: str, name: str, node: str, *, labels: dict[str, str], ready: bool = True) -> None:
    """Have a pod with a container `istio-proxy` run on `node`."""
    spec = {"nodeName": node, "containers": [{"name": "istio-proxy", "image": "proxy"}]}
    path = f"/api/v1/namespaces/{namespace}/pods"
    made = kube.request("POST", path, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    conditions = [{"type": "Ready", "status": str(ready)}]
    kube.request("PUT", f"{path}/{name}/status", {**made, "status": {"phase": "Running" if ready else "Pending", "conditions": conditions}})


def node_capture(kube: Kube, revision: str) -> dict[str, Any]:
    finding = findings(check(kube.kubeconfig, "--revision", revision, "-o", "json"))["node-capture"]
    assert isinstance(finding, dict)
    return finding


def test_nodes_that_are_to_capture_and_cannot_are_named(kube: Kube, by_node: str) -> None:
    shop, mesh, agent = kube.namespace(), {"istio.io/rev": by_node}, {"app": "xds-cni"}
    for number, node in enumerate(("first", "second", "second", "third")):
        place(kube, shop, f"shop-{number}", node, labels=mesh)
    place(kube, shop, "other", "fourth", labels={})
    found = node_capture(kube, by_node)
    assert found["details"] == ["no pod of the DaemonSet xds-cni in istio-system", "first", "second", "third"]
    assert (found["status"], "cni.enabled" in found["hint"]) == ("failure", True)
    place(kube, "istio-system", "xds-cni-1", "first", labels=agent)
    place(kube, "istio-system", "xds-cni-3", "third", labels=agent, ready=False)
    found = node_capture(kube, by_node)
    assert (found["status"], found["details"]) == (
        "failure",
        ["second (pods of the mesh: 2): no pod of xds-cni", "third (pods of the mesh: 1): xds-cni-3 is not ready"],
    )
    assert "daemonset xds-cni" in found["hint"]
    kube.kubectl("-n", shop, "delete", "pod", "shop-1", "shop-2", "shop-3", "--force")
    found = node_capture(kube, by_node)
    assert (found["status"], found["details"]) == ("ok", ["nodes with pods of the mesh: 1"])


def test_pods_that_still_rely_on_the_node_count_where_new_ones_do_not(kube: Kube, by_node: str) -> None:
    shop = kube.namespace()
    config = {"metadata": {"name": "istio-sidecar-injector-by-node"}, "data": {"settings.yaml": "cni: false"}}
    kube.request("PUT", "/api/v1/namespaces/istio-system/configmaps/istio-sidecar-injector-by-node", config)
    place(kube, shop, "new", "first", labels={"istio.io/rev": by_node})
    found = node_capture(kube, by_node)
    assert (found["status"], found["details"]) == ("ok", ["pods do it themselves"])
    place(kube, shop, "old", "second", labels={"istio.io/rev": by_node})
    kube.kubectl("-n", shop, "annotate", "pod", "old", 'sidecar.istio.io/status={"capture": "cni"}')
    found = node_capture(kube, by_node)
    assert (found["status"], found["details"]) == ("failure", ["no pod of the DaemonSet xds-cni in istio-system", "second"])


def test_settings_of_injection_that_cannot_be_read_are_told(kube: Kube, by_node: str) -> None:
    config = {"metadata": {"name": "istio-sidecar-injector-by-node"}, "data": {"settings.yaml": "cni: perhaps"}}
    kube.request("PUT", "/api/v1/namespaces/istio-system/configmaps/istio-sidecar-injector-by-node", config)
    found = node_capture(kube, by_node)
    assert found["status"] == "failure"
    assert "$.cni" in found["details"][0]


def test_a_cluster_that_does_not_answer_is_the_only_finding_with_its_address(tmp_path: Path, kube: Kube) -> None:
    done = check(kube.write_kubeconfig(tmp_path / "config", port=1), "-o", "json")
    (finding,) = json.loads(done.stdout)
    assert (done.returncode, finding["check"], finding["status"]) == (1, "kubernetes-version", "failure")
    assert "https://127.0.0.1:1" in finding["details"][0]
    assert "kubeconfig" in finding["hint"]
