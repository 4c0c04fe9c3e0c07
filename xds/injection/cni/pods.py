"""What the node captures of a pod's traffic: read from the pod as the webhook has left it.

The webhook writes all that it has decided into Istio's annotations, so nothing here depends on the mesh's settings, and a pod whose
containers start again years later is captured as it was made.
"""

import json
from collections.abc import Mapping
from typing import Any

from xds.injection.annotations import INTERCEPTION_MODE, captured, interception_mode, takes_names
from xds.injection.capture import PROXY_ID, Capture
from xds.injection.policy import INIT, PROXY, STATUS, wanted
from xds.injection.settings import Settings
from xds.mesh.model import Mode

BY_NODE = "cni"  # the value of `capture` in the annotation `sidecar.istio.io/status`


def capture_of(pod: Mapping[str, Any]) -> Capture | None:
    """What is to be captured; None for pods that have no proxy of ours, or one that captures for itself. ConfigError as `wishes`."""
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    annotations: dict[str, str] = metadata.get("annotations") or {}
    if not wanted(metadata.get("labels") or {}, annotations) or not awaits_node(annotations):
        return None
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    proxy = next((c for c in containers if c.get("name") == PROXY), None)
    if proxy is None or any(c.get("name") == INIT for c in containers):
        return None
    mode = interception_mode(annotations, INTERCEPTION_MODE, Mode.REDIRECT.name)
    if mode is Mode.NONE:
        return None
    users, groups = proxy_ids(proxy)
    return captured(annotations, Settings(), mode, dns=takes_names(_environment(proxy)), users=users, groups=groups)


def awaits_node(annotations: Mapping[str, str]) -> bool:
    """Whether the webhook has left capture to the node."""
    try:
        status = json.loads(annotations.get(STATUS, ""))
    except ValueError:
        return False
    return isinstance(status, dict) and status.get("capture") == BY_NODE


def proxy_ids(proxy: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The users and the groups whose calls are the proxy's. Root is never exempt: an application may be root."""
    security = proxy.get("securityContext") or {}
    user, group = (security.get(key) or PROXY_ID for key in ("runAsUser", "runAsGroup"))
    return (user,), (group,)


def _environment(container: Mapping[str, Any]) -> dict[str, str]:
    return {variable.get("name", ""): variable.get("value", "") for variable in container.get("env") or ()}
