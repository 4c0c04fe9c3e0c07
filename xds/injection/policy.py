"""Whether a pod gets a proxy.

The API server asks only about pods that the webhook's selectors choose; the answer here is the same for those, and holds for `xds
inject` too, which asks nobody. Istio: "Automatic sidecar injection": the pod's label wins, then its annotation, then its namespace.
"""

from collections.abc import Mapping
from typing import Any

INJECT = "sidecar.istio.io/inject"
INJECTION = "istio-injection"
REVISION_LABEL = "istio.io/rev"
STATUS = "sidecar.istio.io/status"
NEVER = ("kube-system", "kube-public", "kube-node-lease", "local-path-storage")
PROXY, INIT, VALIDATION = "istio-proxy", "istio-init", "istio-validation"


def reason_against(pod: Mapping[str, Any], namespace: str) -> str:
    """Why this pod, which is to be considered, gets no proxy; empty where it does get one."""
    spec, metadata = pod.get("spec") or {}, pod.get("metadata") or {}
    if spec.get("hostNetwork"):
        return "it uses the node's own network"
    if namespace in NEVER:
        return f"it is in {namespace}"
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    if STATUS in annotations:
        return "it has been injected already"
    if not wanted(labels, annotations):
        return f"{INJECT} says no"
    return ""


def wanted(labels: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    """What the pod itself says; yes where it says nothing."""
    value = labels.get(INJECT) or annotations.get(INJECT) or ""
    return value.lower() in ("", "y", "yes", "true", "on")


def selected(namespace: Mapping[str, str], pod: Mapping[str, str], revision: str, *, default: bool = True) -> bool:
    """Whether the webhook of `revision` is asked about a pod, by the labels of its namespace and its own.

    Kubernetes applies the selectors of `deploy/`; this is the same rule, for `xds check`. `default` revisions also take what
    names no revision.
    """
    if pod.get(INJECT) == "false":
        return False
    if INJECTION in namespace:
        return default and namespace[INJECTION] == "enabled"
    if REVISION_LABEL in namespace:
        return namespace[REVISION_LABEL] == revision
    if REVISION_LABEL in pod:
        return pod[REVISION_LABEL] == revision
    return default and pod.get(INJECT) == "true"
