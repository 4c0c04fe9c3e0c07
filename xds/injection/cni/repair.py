"""Pods of this node that were made before the plugin was there: their init container finds that they are not captured, and fails.

Their containers cannot be captured by starting again: that does not make a new network. So such a pod is deleted, where a controller
makes another in its place. One that nobody would make again is left, and says itself what is wrong.

This is not done to pods that began afterwards: it would not help them, and would go on for ever.
"""

import asyncio
import json
import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import structlog

from xds.errors import KubeError
from xds.injection.capture import NOT_CAPTURED
from xds.injection.cni.agent import Agent
from xds.injection.cni.pods import awaits_node
from xds.injection.policy import VALIDATION
from xds.sources.kube_client import KubeClient

log = structlog.get_logger()

LOOK_SECONDS = 15.0  # the API server answers from memory, and mostly with nothing
SLACK_SECONDS = 10.0  # the runtime takes a new configuration a moment after it is written


async def repair(client: KubeClient, agent: Agent, node: str, look_seconds: float = LOOK_SECONDS) -> None:
    """Look for such pods on `node`, and delete them, until cancelled."""
    while True:
        if agent.in_force:
            try:
                await _look(client, agent.chain.since() + SLACK_SECONDS, node)
            except (KubeError, OSError) as e:
                log.warning("repair.failed", error=str(e))
        await asyncio.sleep(look_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - only spreads requests


async def _look(client: KubeClient, before: float, node: str) -> None:
    selector = f"spec.nodeName={node},status.phase=Pending"
    found = json.loads(await client.request("GET", "/api/v1/pods", {"fieldSelector": selector, "resourceVersion": "0"}))
    for pod in found["items"] or ():
        if is_repaired_by_deletion(pod, before):
            metadata = pod["metadata"]
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": metadata["uid"]}}
            try:
                await client.request("DELETE", path, body=options)
            except KubeError as e:
                if e.status not in (404, 409):  # gone already, or another pod of its name
                    raise
            else:
                log.info("pod.deleted", pod=f"{metadata['name']}.{metadata['namespace']}", reason="made before the plugin was there")


def is_repaired_by_deletion(pod: Mapping[str, Any], before: float) -> bool:
    """Whether the pod found that it is not captured, began `before` (seconds of the node's clock), and will be made again."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    if metadata.get("deletionTimestamp") or not awaits_node(metadata.get("annotations") or {}):
        return False
    if not any(owner.get("controller") for owner in metadata.get("ownerReferences") or ()):
        return False
    began = status.get("startTime")
    if began is None or datetime.fromisoformat(began).timestamp() > before:
        return False
    states = [
        state.get("terminated") or {}
        for container in status.get("initContainerStatuses") or ()
        if container.get("name") == VALIDATION
        for state in (container.get("state") or {}, container.get("lastState") or {})
    ]
    return any(state.get("exitCode") == NOT_CAPTURED for state in states)
