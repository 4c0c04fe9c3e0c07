"""`xds check` where there is no control plane yet. With one, on a whole node, it is tested in `tests/cluster`."""

import json
import os
import subprocess
import sys
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


def test_a_cluster_that_does_not_answer_is_the_only_finding_with_its_address(tmp_path: Path, kube: Kube) -> None:
    done = check(kube.write_kubeconfig(tmp_path / "config", port=1), "-o", "json")
    (finding,) = json.loads(done.stdout)
    assert (done.returncode, finding["check"], finding["status"]) == (1, "kubernetes-version", "failure")
    assert "https://127.0.0.1:1" in finding["details"][0]
    assert "kubeconfig" in finding["hint"]
