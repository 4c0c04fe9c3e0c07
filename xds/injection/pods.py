"""A pod with its proxy: a function of the pod, its namespace and the settings, and nothing else.

Pods are plain JSON here. Whatever a newer Kubernetes has in a pod stays as it is.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from xds.errors import ConfigError
from xds.injection.annotations import Wishes, capture_annotations, wishes
from xds.injection.cni.pods import BY_NODE, proxy_ids
from xds.injection.policy import INIT, PROXY, REVISION_LABEL, STATUS, VALIDATION
from xds.injection.probes import rewritten
from xds.injection.proxyless import add_bootstrap
from xds.injection.settings import Settings
from xds.injection.sidecar import Identity, capture_container, proxy_container
from xds.injection.templates import AUTO, GATEWAY, GRPC, SIDECAR, TEMPLATES, chosen, customisation, merge, overlaid
from xds.objects import ProxyConfig

NATIVE_SINCE = (1, 33)  # every kubelet that may be with it has native sidecars, and has them switched on
_LOW_PORTS = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
_HASH = re.compile(r"-[a-z0-9]{1,10}$")


class Injected(msgspec.Struct, frozen=True):
    """A pod with its proxy, and what of its annotations has no effect."""

    pod: dict[str, Any]
    warnings: tuple[str, ...] = ()


def inject(
    pod: Mapping[str, Any],
    namespace: str,
    settings: Settings,
    defaults: ProxyConfig,
    *,
    native: bool,
    metrics: bool = True,
) -> Injected:
    """`pod`, which is left as it is, with a proxy.

    `defaults` is the mesh's `defaultConfig`; `native`: whether the cluster has native sidecars; `metrics`: whether the pod's
    scrape annotations point to the proxy, where it has none of its own. ConfigError names an annotation that cannot be followed.
    """
    injected: dict[str, Any] = copy.deepcopy(dict(pod))
    metadata = injected.setdefault("metadata", {})
    spec = injected.setdefault("spec", {})
    annotations: dict[str, str] = metadata.get("annotations") or {}
    labels: dict[str, str] = metadata.get("labels") or {}
    template, others = chosen(annotations, settings.templates, settings.default_templates)
    wanted = wishes(annotations, settings, defaults, native=native if settings.native is None else settings.native)
    if spec.get("dnsPolicy") == "None":
        full = _in_full(wanted.config.discovery_address, settings.cluster_domain)
        wanted = msgspec.structs.replace(wanted, config=msgspec.structs.replace(wanted.config, discovery_address=full))
    identity = _identity(metadata, labels, namespace)
    own_labels = _labels(labels, identity.workload or metadata.get("name") or "", settings)
    identity = msgspec.structs.replace(identity, labels={**labels, **own_labels})
    by_node: dict[str, str] = {}
    added: dict[str, list[str]] = {}
    if template == SIDECAR:
        added = _add_containers(spec, wanted, settings, identity)
        if settings.cni and wanted.capture is not None:
            by_node = capture_annotations(wanted.capture)
    elif template == GATEWAY:
        added = _become_gateway(spec, wanted, settings, identity)
    elif template == GRPC:
        added = add_bootstrap(spec, wanted, settings)
    if template:
        pull = [{"name": name} for name in settings.image_pull_secrets]
        for key, items in (("volumes", list(wanted.volumes)), ("imagePullSecrets", pull)):
            if items:
                spec[key] = merge({key: spec.get(key) or []}, {key: items})[key]
        metadata["labels"] = {**labels, **own_labels}
    shown = _annotations(annotations, spec, added, settings, by_node=bool(by_node))
    scraping = _scraping(annotations, metrics) if template in (SIDECAR, GATEWAY) else {}
    metadata["annotations"] = {**scraping, **by_node, **annotations, **shown}
    for name in others:
        injected = overlaid(injected, settings.templates[name], pod)
    return Injected(injected, wanted.warnings)


def _in_full(address: str, domain: str) -> str:
    """The address of a service for pods that do not have the cluster's search domains.

    Having them is not enough: without the `ndots` of Kubernetes a name with dots is tried as it is, and one refusal ends the search.
    """
    host, _, port = address.rpartition(":")
    return f"{host}.{domain}:{port}" if host.endswith(".svc") else address


def _identity(metadata: Mapping[str, Any], labels: Mapping[str, str], namespace: str) -> Identity:
    """The pod's workload. A ReplicaSet with a template's hash in its name belongs to the Deployment of the rest of the name."""
    owners: Sequence[Mapping[str, Any]] = metadata.get("ownerReferences") or []
    owner = next((owner for owner in owners if owner.get("controller")), None)
    if owner is None:
        return Identity(namespace=namespace, labels=labels, workload=labels.get("service.istio.io/workload-name", ""))
    kind, name, api_version = str(owner.get("kind")), str(owner.get("name")), str(owner.get("apiVersion"))
    if kind == "ReplicaSet" and "pod-template-hash" in labels:
        kind, name = "Deployment", _HASH.sub("", name)
    path = f"kubernetes://apis/{api_version}/namespaces/{namespace}/{kind.lower()}s/{name}"
    return Identity(namespace=namespace, labels=labels, workload=labels.get("service.istio.io/workload-name", name), owner=path)


def _labels(labels: Mapping[str, str], workload: str, settings: Settings) -> dict[str, str]:
    """How telemetry names the workload, where its own labels do not say so already."""
    name = labels.get("service.istio.io/canonical-name") or labels.get("app.kubernetes.io/name") or labels.get("app") or workload
    revision = labels.get("service.istio.io/canonical-revision") or labels.get("app.kubernetes.io/version") or labels.get("version")
    return {
        **({"service.istio.io/canonical-name": name[:63].rstrip("-_.")} if name else {}),
        "service.istio.io/canonical-revision": revision or "latest",
        REVISION_LABEL: settings.revision,
    }


def _add_containers(spec: dict[str, Any], wanted: Wishes, settings: Settings, identity: Identity) -> dict[str, list[str]]:
    """Put the proxy and its init container into `spec`; what was added, by where.

    A native proxy comes before the pod's own init containers, so that these are in the mesh. One of the classic kind does not run
    yet when they do: there, traffic is captured last.
    """
    containers, inits = list(spec.get("containers") or []), list(spec.get("initContainers") or [])
    own = _take(containers, PROXY) or _take(inits, PROXY)
    tried: dict[str, int] = {}
    if wanted.capture is not None and wanted.rewrites_probes:
        containers, tried = rewritten(containers, wanted.capture)
    proxy = _customised(proxy_container(wanted, settings, identity, tried), own)
    customs = {name: _take(inits, name) for name in (INIT, VALIDATION)}
    first = []
    if wanted.capture is not None:
        users, groups = proxy_ids(proxy)
        capture = capture_container(msgspec.structs.replace(wanted.capture, users=users, groups=groups), wanted.image, settings)
        first = [_customised(capture, customs[capture["name"]])]
    if wanted.native:
        inits = [*first, proxy, *inits]
    else:
        inits = [*inits, *first]
        containers = [proxy, *containers] if wanted.config.hold_application_until_proxy_starts else [*containers, proxy]
    spec["containers"] = containers
    if inits:
        spec["initContainers"] = inits
    names = [container["name"] for container in first]
    return {
        "initContainers": [*names, PROXY] if wanted.native else names,
        "containers": [] if wanted.native else [PROXY],
    }


def _become_gateway(spec: dict[str, Any], wanted: Wishes, settings: Settings, identity: Identity) -> dict[str, list[str]]:
    """Make the pod's container `istio-proxy` a gateway's proxy: nothing is captured, and low ports are open to its user.

    Istio: "Installing Gateways": the pod's author writes the container, with the image `auto`, and what it is to have besides.
    """
    for i, own in enumerate(spec.get("containers") or ()):
        if own.get("name") == PROXY:
            wanted = msgspec.structs.replace(wanted, capture=None, native=False)
            router = msgspec.structs.replace(identity, kind="router")
            spec["containers"][i] = _customised(proxy_container(wanted, settings, router, {}), own)
            break
    else:
        raise ConfigError(TEMPLATES, f"a gateway's pod has a container {PROXY!r}, with the image {AUTO!r}")
    security = spec.setdefault("securityContext", {})
    sysctls = security.get("sysctls") or []
    if not any(sysctl.get("name") == _LOW_PORTS["name"] for sysctl in sysctls):
        security["sysctls"] = [*sysctls, _LOW_PORTS]
    return {"initContainers": [], "containers": [PROXY]}


def _take(containers: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Remove the container `name`, if it is there, and return it."""
    for i, container in enumerate(containers):
        if container.get("name") == name:
            return containers.pop(i)
    return None


def _customised(container: dict[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """`container` with what the pod itself says of a container of this name (Istio: "Customizing injection")."""
    merged: dict[str, Any] = container if own is None else merge(container, customisation(own))
    return merged


def _scraping(annotations: Mapping[str, str], metrics: bool) -> dict[str, str]:
    """Where Prometheus finds the proxy's metrics, unless the pod says where it finds the application's."""
    if not metrics or any(key.startswith("prometheus.io/") for key in annotations):
        return {}
    if annotations.get("prometheus.istio.io/merge-metrics", "").lower() == "false":
        return {}
    return {"prometheus.io/scrape": "true", "prometheus.io/port": "15090", "prometheus.io/path": "/stats/prometheus"}


def _annotations(
    annotations: Mapping[str, str], spec: Mapping[str, Any], added: Mapping[str, list[str]], settings: Settings, *, by_node: bool
) -> dict[str, str]:
    """What tells people and tools what was done. `kubectl logs` and `exec` go on to mean the application."""
    names = [c["name"] for c in spec["containers"]]
    application = next((name for name in names if name != PROXY), names[0] if names else "")
    shown = {f"kubectl.kubernetes.io/default-{what}": application for what in ("container", "logs-container") if application}
    status = {**added, "volumes": None, "imagePullSecrets": list(settings.image_pull_secrets) or None, "revision": settings.revision}
    if by_node:
        status["capture"] = BY_NODE
    return {
        **{key: value for key, value in shown.items() if key not in annotations},
        "istio.io/rev": settings.revision,
        STATUS: json.dumps(status, separators=(",", ":")),
    }


def json_patch(before: Any, after: Any, path: str = "") -> list[dict[str, Any]]:
    """The operations that make `after` of `before` (RFC 6902). A list that differs is replaced."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        operations = [{"op": "remove", "path": f"{path}/{_pointer(key)}"} for key in before if key not in after]
        for key, value in after.items():
            here = f"{path}/{_pointer(key)}"
            operations += json_patch(before[key], value, here) if key in before else [{"op": "add", "path": here, "value": value}]
        return operations
    return [{"op": "replace", "path": path, "value": after}]


def _pointer(key: str) -> str:
    """A step of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
