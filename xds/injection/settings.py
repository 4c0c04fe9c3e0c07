"""What an operator sets for all injected pods: the file that `xds serve --injection` and `xds inject --config` read.

The chart writes it from its values. Unknown fields are errors: a setting that is not applied must not look as if it were.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from xds.errors import ConfigError
from xds.injection.templates import SIDECAR, chosen, read_templates
from xds.objects import MeshConfig
from xds.objects.meta import decode_hook
from xds.objects.schema import fit

REVISION = "default"
PLAIN_PORT = 15010


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kubernetes quantities by resource."""

    requests: dict[str, str] = msgspec.field(default_factory=lambda: {"cpu": "100m", "memory": "128Mi"})
    limits: dict[str, str] = msgspec.field(default_factory=lambda: {"cpu": "2000m", "memory": "1024Mi"})


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`native`: whether proxies are native sidecars (Kubernetes 1.33 and later have them for certain); None: as the cluster can.

    `cni`: whether the nodes capture traffic, so that pods need no init container with privileges for it.
    """

    image: str = "xds-proxy"
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    revision: str = REVISION
    native: bool | None = None
    cni: bool = False
    discovery_address: str = f"istiod.istio-system.svc:{PLAIN_PORT}"
    cluster_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    network: str = ""
    log_level: str = "warning"
    component_log_level: str = "misc:error"
    resources: Resources = Resources()
    include_ip_ranges: str = "*"
    exclude_ip_ranges: str = ""
    include_inbound_ports: str = "*"
    exclude_inbound_ports: str = ""
    include_outbound_ports: str = ""
    exclude_outbound_ports: str = ""
    templates: dict[str, dict[str, Any]] = {}
    default_templates: tuple[str, ...] = (SIDECAR,)


def decode(text: str | bytes, where: str) -> Settings:
    """The settings in this YAML. ConfigError at `where` for what does not fit."""
    try:
        value: Any = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
        value = {} if value is None else value
        templates = value.get("templates") if isinstance(value, dict) else None
        if isinstance(templates, dict):
            value["templates"] = read_templates(templates, f"{where}: $.templates")
        settings = msgspec.convert(value, Settings)
    except (yaml.YAMLError, msgspec.ValidationError) as e:
        raise ConfigError(where, str(e)) from e
    chosen({}, settings.templates, settings.default_templates)
    return settings


def read(path: Path) -> Settings:
    """The settings in this file. ConfigError where it cannot be read, or does not fit."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as e:
        raise ConfigError(str(path), e.strerror or str(e)) from e


def read_mesh_config(path: Path) -> MeshConfig:
    """The MeshConfig in this file. ConfigError where it cannot be read, or does not fit."""
    try:
        fitted, problems = fit(MeshConfig, yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError) as e:
        raise ConfigError(str(path), str(e)) from e
    if problems:
        raise ConfigError(str(path), "; ".join(map(str, problems)))
    return msgspec.convert(fitted, MeshConfig, dec_hook=decode_hook)
