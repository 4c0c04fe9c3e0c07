"""`xds inject`: workloads in files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKLOADS = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


def workload(kind: str, pod: dict[str, Any], name: str = "web") -> dict[str, Any]:
    value: dict[str, Any] = pod
    for step in reversed(WORKLOADS[kind]):
        value = {step: value}
    metadata = {**value.get("metadata", {}), "name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": kind, **value, "metadata": metadata}


def run(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xds", "inject", *options], input=text, capture_output=True, text=True, check=False)


def inject(*documents: Any, options: tuple[str, ...] = ()) -> list[Any]:
    done = run("\n---\n".join(map(json.dumps, documents)), *options)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"labels": {"app": "web"}, **metadata}, "spec": {"containers": [{"name": "web", "image": "web:1"}]}}


@pytest.mark.parametrize("kind", WORKLOADS)
def test_every_workload_that_makes_pods_gets_a_proxy(kind: str) -> None:
    (result,) = inject(workload(kind, pod()))
    for step in WORKLOADS[kind]:
        result = result[step]
    assert [c["name"] for c in result["spec"]["initContainers"]] == ["istio-init", "istio-proxy"]
    assert "ownerReferences" not in result["metadata"]


def test_documents_without_pods_stay_as_they_are() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    own = {"apiVersion": "example.com/v1", "kind": "Widget", "when": "12:30:00", "yes": "on", "short": "y", "mode": "0o644"}
    assert inject(service, own) == [service, own]


def test_items_of_a_list_are_workloads_too() -> None:
    (result,) = inject({"apiVersion": "v1", "kind": "List", "items": [workload("Pod", pod())]})
    assert "initContainers" in result["spec"]


def test_what_is_left_alone_is_named() -> None:
    opted_out = workload("Deployment", pod(annotations={"sidecar.istio.io/inject": "false"}))
    done = run(yaml.safe_dump(opted_out))
    assert yaml.safe_load(done.stdout) == opted_out
    assert done.stderr == "xds: Deployment web.shop: not injected: sidecar.istio.io/inject says no\n"


def test_doing_it_twice_is_doing_it_once() -> None:
    once = inject(workload("Deployment", pod()))
    assert inject(*once) == once


def test_settings_come_from_options_and_files(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("{image: 'a:1', revision: canary, resources: {limits: {cpu: '1'}}}")
    (tmp_path / "mesh.yaml").write_text("defaultConfig: {interceptionMode: NONE, concurrency: 3}")
    options = ("--config", str(tmp_path / "settings.yaml"), "--mesh-config", str(tmp_path / "mesh.yaml"), "--image", "b:2", "--classic")
    (result,) = inject(workload("Pod", pod()), options=options)
    assert "initContainers" not in result["spec"]
    proxy = result["spec"]["containers"][1]
    assert (proxy["image"], proxy["resources"]["limits"]) == ("b:2", {"cpu": "1"})
    assert proxy["args"][proxy["args"].index("--concurrency") + 1] == "3"
    assert result["metadata"]["labels"]["istio.io/rev"] == "canary"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: b\nc: [", "xds: <stdin>:3: not YAML: "),
        (
            json.dumps(workload("Deployment", pod(annotations={"proxy.istio.io/config": "concurrency: x"}))),
            "xds: <stdin>:1: Deployment web.shop: proxy.istio.io/config: $.concurrency: must be a whole number; it is `x`\n",
        ),
    ],
)
def test_what_cannot_be_followed_is_an_error_with_its_place(text: str, reason: str) -> None:
    done = run(text)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(reason)
