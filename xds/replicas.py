"""The replicas of the control plane in a cluster, asked one by one by way of the API server: nothing needs to be forwarded."""

import asyncio
from typing import Any

import msgspec

from xds.errors import KubeError
from xds.objects.mesh_config import ROOT_NAMESPACE
from xds.sources.kube_client import KubeClient

SELECTOR = "app=istiod"
HTTP_PORT = 15014


async def running(client: KubeClient) -> list[str]:
    """The names of the pods that run the control plane and are ready, sorted."""
    path = f"/api/v1/namespaces/{ROOT_NAMESPACE}/pods"
    body = msgspec.json.decode(await client.request("GET", path, {"labelSelector": SELECTOR}))
    return sorted(pod["metadata"]["name"] for pod in body["items"] if ready(pod) and not pod["metadata"].get("deletionTimestamp"))


def ready(pod: dict[str, Any]) -> bool:
    """Whether the condition `Ready` of a pod, as JSON, is true."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


async def ask_all(client: KubeClient, path: str) -> list[dict[str, Any]]:
    """What the replicas answer at `path` of their HTTP ports, lists made one; each item says its `replica`.

    KubeError where one does not answer, or none is there.
    """
    names = await running(client)
    if not names:
        raise KubeError(404, f"no control plane is ready in {ROOT_NAMESPACE}")
    answers = await asyncio.gather(*(_ask(client, name, path) for name in names))
    return [{**item, "replica": name} for name, found in zip(names, answers, strict=True) for item in found]


async def ask_one(client: KubeClient, path: str) -> Any:
    """What some replica answers, where all would answer alike. KubeError as for `ask_all`."""
    names = await running(client)
    if not names:
        raise KubeError(404, f"no control plane is ready in {ROOT_NAMESPACE}")
    return await _ask(client, names[0], path)


async def _ask(client: KubeClient, pod: str, path: str) -> Any:
    return msgspec.json.decode(await client.request("GET", f"/api/v1/namespaces/{ROOT_NAMESPACE}/pods/{pod}:{HTTP_PORT}/proxy{path}"))
