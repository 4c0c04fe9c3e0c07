"""Workloads in files: what `xds inject -f` does to each document."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from xds.errors import ConfigError
from xds.injection.pods import inject
from xds.injection.policy import reason_against
from xds.injection.settings import Settings
from xds.objects import ProxyConfig
from xds.objects.documents import documents

# Where a workload has its pods' template.
_TEMPLATES = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
_OWNERS = {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "Job": "batch/v1", "CronJob": "batch/v1"}


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes the strings that PyYAML takes for strings, but some readers of Kubernetes' YAML do not; repeats what is there twice."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


_AMBIGUOUS = re.compile(r"[yYnN]|[-+]?0o[0-7]+", re.ASCII)
Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _AMBIGUOUS.fullmatch(text) else None)
)


def inject_documents(text: str, where: str, settings: Settings, defaults: ProxyConfig, *, native: bool) -> Iterator[tuple[Any, list[str]]]:
    """Each object in `text`, with proxies in its pods, and notes on it. What has no pods comes as it is.

    ConfigError says at which line of `where` something is not YAML, or an annotation cannot be followed.
    """
    for document in documents(text, where):
        if document.node is None:
            raise ConfigError(document.where(), document.problems[0].reason)
        notes: list[str] = []
        yield _inject(document.value, document.where(), settings, defaults, native, notes), notes


def _inject(workload: Any, where: str, settings: Settings, defaults: ProxyConfig, native: bool, notes: list[str]) -> Any:
    if not isinstance(workload, dict) or workload.get("kind") not in _TEMPLATES:
        return workload
    kind = workload["kind"]
    metadata = workload.get("metadata") or {}
    name, namespace = str(metadata.get("name", "")), str(metadata.get("namespace") or "default")
    steps = _TEMPLATES[kind]
    pod = workload
    for step in steps:
        pod = pod.get(step) or {}
    if reason := reason_against(pod, namespace):
        notes.append(f"{kind} {name}.{namespace}: not injected: {reason}")
        return workload
    shown = pod
    if kind in _OWNERS:  # as its pods will be once they are made
        owner = {"kind": kind, "name": name, "apiVersion": _OWNERS[kind], "controller": True}
        shown = {**pod, "metadata": {**(pod.get("metadata") or {}), "ownerReferences": [owner]}}
    try:
        injected = inject(shown, namespace, settings, defaults, native=native)
    except ConfigError as e:
        raise ConfigError(f"{where}: {kind} {name}.{namespace}: {e.path}", e.reason) from e
    notes += [f"{kind} {name}.{namespace}: {warning}" for warning in injected.warnings]
    if kind in _OWNERS:
        injected.pod["metadata"].pop("ownerReferences")
    return _with(workload, steps, injected.pod)


def _with(value: dict[str, Any], steps: tuple[str, ...], part: dict[str, Any]) -> dict[str, Any]:
    """`value` with `part` at the end of these steps."""
    if not steps:
        return part
    return {**value, steps[0]: _with(value[steps[0]], steps[1:], part)}
