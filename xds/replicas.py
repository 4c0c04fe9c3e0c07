"""The replicas of the control plane in a cluster, asked one by one by way of the API server: nothing needs to be forwarded."""

import asyncio
from typing import Any

import msgspec

from xds.errors import KubeError
from xds.injection.policy import REVISION_LABEL
from xds.objects.mesh_config import ROOT_NAMESPACE
from xds.sources.kube_client import KubeClient

SELECTOR = "app.kubernetes.io/name=xds"  # not `app=istiod`: an Istio beside us has that too
HTTP_PORT = 15014


class Absent(KubeError):  # noqa: N818
    """No replica is ready. `status` is 404."""

    def __init__(self, revision: str) -> None:
        of = f" of revision {revision}" if revision else ""
        super().__init__(404, f"no control plane{of} is ready in {ROOT_NAMESPACE}")


async def pods(client: KubeClient, revision: str = "") -> list[dict[str, Any]]:
    """The pods that run the control plane, those of a `revision` if one is given, as JSON."""
    path = f"/api/v1/namespaces/{ROOT_NAMESPACE}/pods"
    selector = f"{SELECTOR},{REVISION_LABEL}={revision}" if revision else SELECTOR
    found: list[dict[str, Any]] = msgspec.json.decode(await client.request("GET", path, {"labelSelector": selector}))["items"]
    return found


async def running(client: KubeClient, revision: str = "") -> list[str]:
    """The names of the pods that run the control plane and are ready, sorted. `Absent` where there is none."""
    found = await pods(client, revision)
    names = sorted(pod["metadata"]["name"] for pod in found if ready(pod) and not pod["metadata"].get("deletionTimestamp"))
    if not names:
        raise Absent(revision)
    return names


def ready(pod: dict[str, Any]) -> bool:
    """Whether the condition `Ready` of a pod, as JSON, is true."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


async def ask_all(client: KubeClient, path: str, revision: str = "") -> list[dict[str, Any]]:
    """What the replicas answer at `path` of their HTTP ports, lists made one; each item says its `replica`.

    KubeError where one does not answer, `Absent` where none is there.
    """
    names = await running(client, revision)
    answers = await asyncio.gather(*(_ask(client, name, path) for name in names))
    return [{**item, "replica": name} for name, found in zip(names, answers, strict=True) for item in found]


async def ask_one(client: KubeClient, path: str, revision: str = "") -> Any:
    """What some replica answers, where all would answer alike. KubeError as for `ask_all`."""
    names = await running(client, revision)
    return await _ask(client, names[0], path)


async def _ask(client: KubeClient, pod: str, path: str) -> Any:
    return msgspec.json.decode(await client.request("GET", f"/api/v1/namespaces/{ROOT_NAMESPACE}/pods/{pod}:{HTTP_PORT}/proxy{path}"))
