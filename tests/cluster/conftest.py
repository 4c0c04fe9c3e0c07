"""One node a session, with the images loaded, and the mesh that is installed on it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import bookinfo
from support import node as support
from support.instructions import Instructions
from support.node import Node

DOCUMENT = Path(__file__).parents[2] / "docs" / "cluster.md"
NAMESPACE = "shop"
CALL = """
import json, sys, urllib.error, urllib.request
url, times, headers = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
answers = []
for _ in range(times):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as response:
            answers.append(json.load(response))
    except urllib.error.HTTPError as e:
        answers.append(e.code)
print(json.dumps(answers))
"""


class Mesh:
    """A node with the chart installed, bookinfo in a labelled namespace, and a client outside the mesh."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def xds(self, *arguments: str, check: bool = True) -> Any:
        """`xds`, run as an administrator does: what it printed, and its exit status, which must be 0 where `check`."""
        environment = ("env", f"KUBECONFIG={self.node.kubeconfig}", "COLUMNS=300")
        return self.node.inside(*environment, sys.executable, "-m", "xds", *arguments, check=check)

    def proxies(self) -> list[dict[str, Any]]:
        """What `xds proxies` says."""
        found: list[dict[str, Any]] = json.loads(self.xds("proxies", "-o", "json").stdout)
        return found

    def synced(self) -> bool:
        """Whether each pod with a proxy is connected to one replica and has all it asked for."""
        proxies = self.proxies()
        pods = self.node.get("pods", "-n", NAMESPACE)["items"]
        connected = sorted(proxy["node"].split("~")[2] for proxy in proxies)
        wanted = sorted(f"{pod['metadata']['name']}.{NAMESPACE}" for pod in pods if not pod["metadata"].get("deletionTimestamp"))
        return connected == wanted and all(kind["status"] == "SYNCED" for proxy in proxies for kind in proxy["types"].values())

    def call(self, url: str, times: int = 1, headers: dict[str, str] | None = None, inside: str = "") -> list[Any]:
        """What `url` answers the client outside the mesh, or the pod or Deployment `inside` it; an error's status for an error."""
        where = ("-n", NAMESPACE, inside) if inside else ("-n", "default", "pod/client")
        arguments = ("python3.11", "-I", "-", url, str(times), json.dumps(headers or {}))
        found: list[Any] = json.loads(self.node.kubectl("exec", "-i", *where, "--", *arguments, stdin=CALL))
        return found

    def apply(self, manifest: str) -> None:
        self.node.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=manifest)

    def rolled_out(self, namespace: str = NAMESPACE) -> None:
        """Wait until all Deployments are as they are to be, and no pod of before is left."""
        for deployment in self.node.get("deployments", "-n", namespace)["items"]:
            self.node.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment['metadata']['name']}", "--timeout=175s")
        self.node.until(lambda: not any(self.ending(namespace)), "pods that are replaced to be gone")

    def ending(self, namespace: str) -> Iterator[str]:
        for pod in self.node.get("pods", "-n", namespace)["items"]:
            if pod["metadata"].get("deletionTimestamp"):
                yield pod["metadata"]["name"]


@pytest.fixture(scope="session")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Instructions:
    """What the documentation says of clusters."""
    return Instructions(DOCUMENT, tmp_path_factory.mktemp("instructions"))


@pytest.fixture(scope="session")
def node(instructions: Instructions) -> Iterator[Node]:
    """A node that knows our images, made as the documentation says."""
    if not support.available():
        pytest.skip(f"needs root and Debian's packages {support.PACKAGES}")
    (build,) = instructions.commands("Images")
    subprocess.run(build, shell=True, cwd=instructions.directory, env=os.environ | instructions.environment(), check=True)
    with support.running() as running:
        for archive in sorted((instructions.directory / "dist").glob("*.tar")):
            running.load(archive)
            archive.unlink()
        yield running


@pytest.fixture(scope="session")
def mesh(node: Node, instructions: Instructions) -> Mesh:
    mesh = Mesh(node)
    node.kubectl("create", "namespace", NAMESPACE)
    mesh.apply(bookinfo.bookinfo())
    node.apply(bookinfo.manifests(bookinfo.pod("client", "-Ic", bookinfo.program("idle"))))
    instructions.follow(node, "Install")
    mesh.apply(bookinfo.RULES)
    instructions.follow(node, "A namespace joins")
    mesh.rolled_out()
    node.kubectl("wait", "pod/client", "--for=condition=Ready", "--timeout=180s")
    return mesh
