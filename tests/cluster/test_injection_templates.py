"""Pods that ask for another template than the sidecar's, on a real node."""

import json
from typing import Any

import pytest
from support import bookinfo

pytestmark = [pytest.mark.kubernetes, pytest.mark.root, pytest.mark.slow]

Mesh = Any  # that of conftest.py
TEMPLATES = "inject.istio.io/templates"
CONNECT = """
import grpc
with grpc.insecure_channel("xds:///istiod.istio-system.svc.cluster.local:15010") as channel:
    grpc.channel_ready_future(channel).result(60)
print("connected")
"""


def made(mesh: Mesh, pod: dict[str, Any], template: str) -> dict[str, Any]:
    """A pod of the mesh's namespace with this template, ready."""
    name = pod["metadata"]["name"]
    pod["metadata"]["annotations"] = {TEMPLATES: template}
    mesh.apply(bookinfo.manifests(pod))
    mesh.node.kubectl("-n", "shop", "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=90s")
    found: dict[str, Any] = mesh.node.get("pod", "-n", "shop", name)
    return found


def removed(mesh: Mesh, name: str) -> None:
    mesh.node.kubectl("-n", "shop", "delete", "pod", name, "--timeout=60s")


def test_a_grpc_client_finds_services_by_the_bootstrap_it_was_given(mesh: Mesh) -> None:
    pod = made(mesh, bookinfo.pod("grpc-client", "-Ic", bookinfo.program("idle")), "grpc-simple")
    inside = ("-n", "shop", "exec", "-i", "grpc-client", "--")
    node = json.loads(mesh.node.kubectl(*inside, "python3.11", "-Ic", "print(open('/var/lib/grpc/data/bootstrap.json').read())"))["node"]
    assert node["id"] == f"sidecar~{pod['status']['podIP']}~grpc-client.shop~shop.svc.cluster.local"
    assert mesh.node.kubectl(*inside, "python3.11", "-I", "-", stdin=CONNECT) == "connected\n"
    removed(mesh, "grpc-client")


def test_a_gateways_pod_is_a_proxy_that_is_ready_and_in_sync(mesh: Mesh) -> None:
    pod = bookinfo.pod("gateway", labels={"app": "gateway"})
    pod["spec"]["containers"] = [{"name": "istio-proxy", "image": "auto"}]
    made(mesh, pod, "gateway")
    kinds = {proxy["node"].split("~")[2]: proxy["node"].split("~")[0] for proxy in mesh.proxies()}
    assert kinds["gateway.shop"] == "router"
    mesh.node.until(mesh.synced, "all proxies to be SYNCED")
    removed(mesh, "gateway")
    mesh.node.until(mesh.synced, "the gateway to be gone")
