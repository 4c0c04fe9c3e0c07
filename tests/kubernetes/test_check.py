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
    assert (done.returncode, finding["status"], finding["hint"]) == (1, "failure", "install as a cluster administrator")
    assert "create deployments.apps" in finding["details"]
    assert "create namespaces" in finding["details"]


def test_without_a_control_plane_every_check_that_needs_one_says_so(kube: Kube) -> None:
    done = check(kube.kubeconfig)
    assert done.returncode == 1
    assert "× the control plane's replicas are ready\n    no pod in istio-system\n    → install the chart\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_what_may_not_be_read_is_a_warning_of_that_check_alone(kube: Kube) -> None:
    done = check(kube.kubeconfig_of("reader"), "-o", "json")
    found = findings(done)["pods-without-proxy"]
    assert (found["status"], found["hint"]) == ("warning", "run it as somebody who may read this")
    assert "cannot list resource" in found["details"][0]


def test_a_cluster_that_does_not_answer_is_a_failure_with_its_address(tmp_path: Path, kube: Kube) -> None:
    done = check(kube.write_kubeconfig(tmp_path / "config", port=1), "--pre", "-o", "json")
    finding = findings(done)["kubernetes-version"]
    assert done.returncode == 1
    assert "https://127.0.0.1:1" in finding["details"][0]
