"""What a pod's annotations ask of its proxy.

Everything here is Istio's (https://istio.io/latest/docs/reference/config/annotations/). What cannot be read refuses the pod with the
annotation's name: a pod that starts with half of what it asked for is found out much later. What has no meaning without an agent
is warned of.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import yaml

from xds.errors import ConfigError
from xds.injection import capture
from xds.injection.capture import PROXY_ID, Capture
from xds.injection.settings import Settings
from xds.mesh.model import Mode
from xds.objects import ProxyConfig
from xds.objects.meta import decode_hook
from xds.objects.schema import fit

PROXY_CONFIG = "proxy.istio.io/config"
_TRAFFIC = "traffic.sidecar.istio.io/"
_SIDECAR = "sidecar.istio.io/"
INTERCEPTION_MODE = _SIDECAR + "interceptionMode"
DNS_CAPTURE = "ISTIO_META_DNS_CAPTURE"
_READINESS = "readiness.status.sidecar.istio.io/"
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?", re.ASCII)
_RESOURCES = (  # annotation, requests or limits, resource
    ("proxyCPU", "requests", "cpu"),
    ("proxyMemory", "requests", "memory"),
    ("proxyCPULimit", "limits", "cpu"),
    ("proxyMemoryLimit", "limits", "memory"),
)
_WITHOUT_AGENT = (
    "sidecar.istio.io/agentLogLevel",
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/extraStatTags",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/statsCompression",
    "sidecar.istio.io/statsEvictionInterval",
    "sidecar.istio.io/statsFlushInterval",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/statsInclusionSuffixes",
    "readiness.status.sidecar.istio.io/applicationPorts",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "istio.io/reroute-virtual-interfaces",
)


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod's annotations, the mesh's `defaultConfig` and the operator's settings amount to."""

    config: ProxyConfig
    capture: Capture | None  # None: nothing is captured
    image: str
    native: bool
    log_level: str
    component_log_level: str
    requests: Mapping[str, str]
    limits: Mapping[str, str]
    statistics: tuple[str, ...] = ()  # prefixes that are kept beside our own
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    initial_delay_seconds: int = 0
    period_seconds: int = 15
    failure_threshold: int = 4
    probed: bool = True
    rewrites_probes: bool = True  # TCP probes of the application
    warnings: tuple[str, ...] = ()


def wishes(annotations: Mapping[str, str], settings: Settings, defaults: ProxyConfig, *, native: bool) -> Wishes:
    """What is wished for. `native` is the cluster's way, unless the pod says otherwise. ConfigError names a bad annotation."""
    warnings: list[str] = []
    config = _proxy_config(annotations, settings, defaults, warnings)
    warnings += [f"{key} has no effect: there is no agent beside the proxy" for key in _WITHOUT_AGENT if key in annotations]
    mode = interception_mode(annotations, INTERCEPTION_MODE, config.interception_mode)
    requests, limits = _resources(annotations, settings)
    prefixes = annotations.get(_SIDECAR + "statsInclusionPrefixes", "")
    matcher = config.proxy_stats_matcher
    return Wishes(
        config=config,
        capture=None if mode is Mode.NONE else captured(annotations, settings, mode, dns=takes_names(config.proxy_metadata)),
        image=annotations.get(_SIDECAR + "proxyImage") or settings.image,
        native=_boolean(annotations, _SIDECAR + "nativeSidecar", native),
        log_level=annotations.get(_SIDECAR + "logLevel") or settings.log_level,
        component_log_level=annotations.get(_SIDECAR + "componentLogLevel") or settings.component_log_level,
        requests=requests,
        limits=limits,
        statistics=(*(matcher.inclusion_prefixes if matcher else ()), *(p.strip() for p in prefixes.split(",") if p.strip())),
        volumes=tuple(_named_objects(annotations, _SIDECAR + "userVolume")),
        mounts=tuple(_named_objects(annotations, _SIDECAR + "userVolumeMount")),
        initial_delay_seconds=_number(annotations, _READINESS + "initialDelaySeconds", 0),
        period_seconds=_number(annotations, _READINESS + "periodSeconds", 15),
        failure_threshold=_number(annotations, _READINESS + "failureThreshold", 4),
        probed=_status_port(annotations, warnings),
        rewrites_probes=_boolean(annotations, _SIDECAR + "rewriteAppHTTPProbers", True),
        warnings=tuple(warnings),
    )


def _proxy_config(annotations: Mapping[str, str], settings: Settings, defaults: ProxyConfig, warnings: list[str]) -> ProxyConfig:
    """The mesh's defaults with the pod's own fields over them. A map is merged; any other field is replaced."""
    config = defaults
    text = annotations.get(PROXY_CONFIG, "")
    try:
        value = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    except yaml.YAMLError as e:
        raise ConfigError(PROXY_CONFIG, f"not YAML: {e}") from e
    if value is not None:
        fitted, problems = fit(ProxyConfig, value)
        if errors := [problem for problem in problems if not problem.warning]:
            raise ConfigError(PROXY_CONFIG, "; ".join(map(str, errors)))
        warnings += [f"{PROXY_CONFIG}: {problem}" for problem in problems]
        own = msgspec.convert(fitted, ProxyConfig, dec_hook=decode_hook)
        changes = {f.name: getattr(own, f.name) for f in msgspec.structs.fields(ProxyConfig) if f.encode_name in fitted}
        for key in ("proxy_metadata", "runtime_values"):
            if key in changes:
                changes[key] = {**getattr(defaults, key), **changes[key]}
        config = msgspec.structs.replace(config, **changes)
    address = annotations.get(_SIDECAR + "discoveryAddress")
    if address:
        return msgspec.structs.replace(config, discovery_address=address)
    if config.discovery_address == ProxyConfig().discovery_address:  # Istio's default has TLS, and a certificate for each proxy
        return msgspec.structs.replace(config, discovery_address=settings.discovery_address)
    return config


def takes_names(variables: Mapping[str, str]) -> bool:
    """Whether DNS queries are captured, by the variables of a proxy's environment (Istio: `proxyMetadata`)."""
    return variables.get(DNS_CAPTURE, "").lower() in ("1", "true")


def interception_mode(annotations: Mapping[str, str], key: str, default: str) -> Mode:
    """How a pod's traffic is captured, if at all."""
    mode = Mode.__members__.get(annotations.get(key, default))
    if mode is None:
        raise ConfigError(key, "must be REDIRECT, TPROXY or NONE")
    return mode


def captured(
    annotations: Mapping[str, str], settings: Settings, mode: Mode, *, dns: bool = False,
    users: tuple[int, ...] = (PROXY_ID,), groups: tuple[int, ...] = (PROXY_ID,),
) -> Capture:  # fmt: skip
    """What is captured, as the annotations say, or else the settings. `users` and `groups` are the proxy's."""

    def text(name: str, default: str) -> tuple[str, str]:
        return annotations.get(_TRAFFIC + name, default), _TRAFFIC + name

    return Capture(
        mode=mode,
        inbound_ports=capture.parse_ports(*text("includeInboundPorts", settings.include_inbound_ports)),
        excluded_inbound_ports=capture.parse_some_ports(*text("excludeInboundPorts", settings.exclude_inbound_ports)),
        outbound_ports=capture.parse_some_ports(*text("includeOutboundPorts", settings.include_outbound_ports)),
        excluded_outbound_ports=capture.parse_some_ports(*text("excludeOutboundPorts", settings.exclude_outbound_ports)),
        outbound_ranges=capture.parse_ranges(*text("includeOutboundIPRanges", settings.include_ip_ranges)),
        excluded_outbound_ranges=capture.parse_some_ranges(*text("excludeOutboundIPRanges", settings.exclude_ip_ranges)),
        excluded_interfaces=capture.parse_interfaces(*text("excludeInterfaces", "")),
        dns=dns,
        users=users,
        groups=groups,
    )


def capture_annotations(wanted: Capture) -> dict[str, str]:
    """The annotations that `captured` reads as this. What is not in annotations (users, groups, DNS) is seen at the proxy."""

    def text(values: Iterable[object] | None) -> str:
        return "*" if values is None else ",".join(map(str, values))

    return {
        INTERCEPTION_MODE: wanted.mode.name,
        _TRAFFIC + "includeInboundPorts": text(wanted.inbound_ports),
        _TRAFFIC + "excludeInboundPorts": text(wanted.excluded_inbound_ports),
        _TRAFFIC + "includeOutboundPorts": text(wanted.outbound_ports),
        _TRAFFIC + "excludeOutboundPorts": text(wanted.excluded_outbound_ports),
        _TRAFFIC + "includeOutboundIPRanges": text(wanted.outbound_ranges),
        _TRAFFIC + "excludeOutboundIPRanges": text(wanted.excluded_outbound_ranges),
        _TRAFFIC + "excludeInterfaces": text(wanted.excluded_interfaces),
    }


def _resources(annotations: Mapping[str, str], settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """Where one annotation speaks of resources, they alone count (Istio: the same)."""
    if not any(_SIDECAR + name in annotations for name, _, _ in _RESOURCES):
        return dict(settings.resources.requests), dict(settings.resources.limits)
    found: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for name, kind, resource in _RESOURCES:
        if value := annotations.get(_SIDECAR + name):
            if not _QUANTITY.fullmatch(value):
                raise ConfigError(_SIDECAR + name, f"{value!r} is no quantity: write 100m, 0.5, 128Mi or 1Gi")
            found[kind][resource] = value
    return found["requests"], found["limits"]


def _status_port(annotations: Mapping[str, str], warnings: list[str]) -> bool:
    """Whether the proxy is probed. Its port is always the same."""
    key = "status.sidecar.istio.io/port"
    if key in annotations and annotations[key] != "0":
        warnings.append(f"{key} has no effect, but for 0: readiness is at port 15021")
    return annotations.get(key) != "0"


def _boolean(annotations: Mapping[str, str], key: str, default: bool) -> bool:
    value = annotations.get(key, "").lower()
    if value not in ("", "true", "false"):
        raise ConfigError(key, f"must be true or false; it is {value!r}")
    return value == "true" if value else default


def _number(annotations: Mapping[str, str], key: str, default: int) -> int:
    value = annotations.get(key, str(default))
    if not value.isascii() or not value.isdecimal():
        raise ConfigError(key, f"must be a whole number; it is {value!r}")
    return int(value)


def _named_objects(annotations: Mapping[str, str], key: str) -> list[dict[str, Any]]:
    """Istio's JSON of volumes or their mounts: an object by name, or a list of objects with their names."""
    if not (text := annotations.get(key)):
        return []
    try:
        value = json.loads(text)
    except ValueError as e:
        raise ConfigError(key, f"not JSON: {e}") from e
    if isinstance(value, dict):
        value = [{"name": name, **part} if isinstance(part, dict) else part for name, part in value.items()]
    if not isinstance(value, list) or not all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in value):
        raise ConfigError(key, 'must be JSON of objects by name: {"my-volume": {…}}')
    return value
