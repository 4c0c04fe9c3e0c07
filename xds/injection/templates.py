"""Templates: what a pod is given, by name.

Istio: "Sidecar injection", *Custom templates*: a pod names the templates that it wants in `inject.istio.io/templates`; the operator says
which are meant where it names none. `sidecar`, `gateway` and `grpc-simple` are built in, and of these a pod has one at most. The others are
the operator's: parts of a pod in YAML, laid over it in their order, as `kubectl patch --type=strategic` would.

Istio's are programs for Go's text templates, which nothing here could run. One that is written as such is refused when the settings are
read, as is every other thing that would not do what it looks like.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from xds.errors import ConfigError

TEMPLATES = "inject.istio.io/templates"
SIDECAR, GATEWAY, GRPC = "sidecar", "gateway", "grpc-simple"
AUTO = "auto"  # an image that stands for the one that is injected
BUILT_IN = (SIDECAR, GATEWAY, GRPC)
# Lists whose items are told apart by a key (Kubernetes: `patchMergeKey` of the pod's types). Other lists are replaced whole.
KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "schedulingGates": "name",
    "resourceClaims": "name",
}
_LISTS = ("initContainers", "containers")


def chosen(annotations: Mapping[str, str], known: Mapping[str, Any], default: Sequence[str]) -> tuple[str, list[str]]:
    """The built-in template for a pod, empty where it has none, and the others in their order. ConfigError for what there is not."""
    text = annotations.get(TEMPLATES, "")
    names = [name for part in text.split(",") if (name := part.strip())] or list(default)
    for name in names:
        if name not in BUILT_IN and name not in known:
            raise ConfigError(TEMPLATES, f"there is no template {name!r}: there are {', '.join((*BUILT_IN, *sorted(known)))}")
    own = [name for name in names if name in BUILT_IN]
    if len(set(own)) > 1:
        raise ConfigError(TEMPLATES, f"a pod is one of them only: {', '.join(own)}")
    return (own[0] if own else ""), [name for name in dict.fromkeys(names) if name not in BUILT_IN]


def merge(value: Any, patch: Any) -> Any:
    """`value` with `patch` over it: maps by key, keyed lists by their items' keys, all else replaced; null removes."""
    if not isinstance(value, dict) or not isinstance(patch, dict):
        return patch
    merged = dict(value)
    for key, part in patch.items():
        mine = merged.get(key)
        if part is None:
            merged.pop(key, None)
        elif key in KEYS and isinstance(mine, list):
            merged[key] = _merged_lists(mine, part, key)
        else:
            merged[key] = merge(mine, part)
    return merged


def _merged_lists(items: list[Any], others: list[Any], name: str) -> list[Any]:
    key = KEYS[name]
    merged = {item.get(key): item for item in items}
    for other in others:
        known = merged.get(other.get(key))
        # A variable has one of two sources: half of each would be none.
        merged[other.get(key)] = other if known is None or name == "env" else merge(known, other)
    return list(merged.values())


def overlaid(pod: Mapping[str, Any], template: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """`pod` with `template` over it. What a container says itself, in the pod as it was `before`, stays as the container says.

    A container is told by its name, in whichever list it is: a template need not know whether the proxy is a native sidecar.
    """
    spec = template.get("spec") or {}
    rest = {key: part for key, part in spec.items() if key not in _LISTS}
    merged: dict[str, Any] = merge(dict(pod), {"metadata": template.get("metadata") or {}, "spec": rest})
    own = {c["name"]: c for key in _LISTS for c in (before.get("spec") or {}).get(key) or ()}
    found = {key: {c["name"]: c for c in merged["spec"].get(key) or ()} for key in _LISTS}
    for key in _LISTS:
        for part in spec.get(key) or ():
            name = part["name"]
            place = found[next((k for k in _LISTS if name in found[k]), key)]
            if name not in place:
                place[name] = part
            elif name not in own:
                place[name] = merge(place[name], part)
            elif own[name].get("image") == AUTO:
                place[name] = merge(merge(place[name], part), customisation(own[name]))
            else:
                place[name] = merge(part, place[name])
    merged["spec"] |= {key: list(containers.values()) for key, containers in found.items() if containers}
    return merged


def customisation(container: Mapping[str, Any]) -> dict[str, Any]:
    """What a pod's own container says of the injected one whose name it has.

    When its image is to be that of the injected one, so is how that is pulled: the API server has filled in `Always`, as for all images
    without a tag.
    """
    left = ("image", "imagePullPolicy") if container.get("image") == AUTO else ()
    return {key: value for key, value in container.items() if key not in left}


def read_templates(templates: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The operator's templates, which may be text or YAML by themselves. ConfigError at `where` for one that cannot be followed."""
    return {name: _read(name, value, f"{where}.{name}") for name, value in templates.items()}


def _read(name: str, value: Any, where: str) -> dict[str, Any]:
    if name in BUILT_IN:
        raise ConfigError(where, "this template is built in: give yours another name, and name both where both are meant")
    if isinstance(value, str):
        if "{{" in value:
            raise ConfigError(where, "templates are plain YAML here: {{…}} of Go is not run")
        try:
            value = yaml.load(value, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
        except yaml.YAMLError as e:
            raise ConfigError(where, f"not YAML: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(where, "must be a part of a pod: metadata and spec")
    for key, part in value.items():
        if key not in ("metadata", "spec"):
            raise ConfigError(f"{where}.{key}", "must be metadata or spec")
        if not isinstance(part, dict):
            raise ConfigError(f"{where}.{key}", "must be a map")
    for key, part in (value.get("metadata") or {}).items():
        if key not in ("labels", "annotations"):
            raise ConfigError(f"{where}.metadata.{key}", "must be labels or annotations")
        if not isinstance(part, dict) or not all(isinstance(text, str) or text is None for text in part.values()):
            raise ConfigError(f"{where}.metadata.{key}", "must be a map of strings")
    _check(value, where)
    return value


def _check(value: Any, where: str) -> None:
    """ConfigError where merging would not do what it looks like."""
    if isinstance(value, dict):
        for key, part in value.items():
            here = f"{where}.{key}"
            if isinstance(key, str) and key.startswith("$"):
                raise ConfigError(here, "directives are not understood: write null to remove a field")
            if key in KEYS and not (isinstance(part, list) and all(isinstance(p, dict) and KEYS[key] in p for p in part)):
                raise ConfigError(here, f"must be a list of maps, each with its {KEYS[key]}")
            _check(part, here)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _check(part, f"{where}[{i}]")
