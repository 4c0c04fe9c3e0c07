"""The plugin on the node: its program among the others, and its place in the configuration of the network.

The runtime takes the first configuration of its directory, by name; so do we, and put the plugin at the end of its chain. Files are
replaced in one step, and only where they differ, so that looking again costs nothing and another writer is never raced for long.
Taking the plugin out leaves whatever else has been written there meanwhile.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

log = structlog.get_logger()

PLUGIN = "xds-cni"
SUFFIXES = (".conf", ".conflist", ".json")  # libcni: `ConfFiles`
_ASIDE = f".before-{PLUGIN}"  # a configuration of one plugin, while a list has its place


class Chain(msgspec.Struct, frozen=True):
    """The node's two directories, and the plugin's program as the image has it."""

    configurations: Path
    programs: Path
    program: Path

    def install(self) -> bool:
        """Put in place what is missing. Whether the plugin is in force now: not so where the node has no network yet.

        OSError where the directories cannot be written.
        """
        self._install_program()
        path = next(self._readable(), None)
        if path is None:
            return False
        configuration = _read(path)
        assert configuration is not None
        if _names_us(configuration):
            return True
        _write(path.with_suffix(".conflist"), chained(configuration), like=path)
        if path.suffix != ".conflist":
            path.rename(path.with_name(path.name + _ASIDE))
        log.info("plugin.chained", file=str(path))
        return True

    def remove(self) -> None:
        """Leave nothing behind."""
        for path in self._readable():
            configuration = _read(path)
            if configuration is None or not _names_us(configuration):
                continue
            aside = [path.with_name(path.stem + suffix + _ASIDE) for suffix in SUFFIXES]
            single = next((before for before in aside if before.exists()), None)
            if single is None:
                _write(path, unchained(configuration), like=path)
            else:
                single.rename(single.with_name(single.name.removesuffix(_ASIDE)))
                path.unlink()
            log.info("plugin.unchained", file=str(path))
        (self.programs / PLUGIN).unlink(missing_ok=True)

    def since(self) -> float:
        """When the configuration in force was written, by the node's clock: pods of before may not be captured. 0 where there is none."""
        path = next(self._readable(), None)
        return 0.0 if path is None else path.stat().st_mtime

    def _install_program(self) -> None:
        wanted, place = self.program.read_bytes(), self.programs / PLUGIN
        if place.exists() and place.read_bytes() == wanted and place.stat().st_mode & 0o777 == 0o755:
            return
        fresh = place.with_name(f".{PLUGIN}")
        fresh.write_bytes(wanted)
        fresh.chmod(0o755)
        fresh.rename(place)
        log.info("plugin.installed", file=str(place))

    def _readable(self) -> Iterator[Path]:
        """Configurations, the one that is in force first."""
        for path in sorted(self.configurations.iterdir()):
            if path.suffix in SUFFIXES and _read(path) is not None:
                yield path


def chained(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A list with our plugin at its end. A configuration of one plugin becomes a list (CNI specification: "Configuration format")."""
    entry = {"type": PLUGIN}
    if "plugins" in configuration:
        return {**configuration, "plugins": [*configuration["plugins"], entry]}
    own = {key: value for key, value in configuration.items() if key not in ("cniVersion", "name")}
    named = {key: configuration[key] for key in ("cniVersion", "name") if key in configuration}
    return {**named, "plugins": [own, entry]}


def unchained(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A list without our plugin."""
    return {**configuration, "plugins": [p for p in configuration["plugins"] if p.get("type") != PLUGIN]}


def _names_us(configuration: Mapping[str, Any]) -> bool:
    return any(plugin.get("type") == PLUGIN for plugin in configuration.get("plugins", ()))


def _read(path: Path) -> dict[str, Any] | None:
    """A configuration that a runtime would take; None for anything else, such as one that is still being written."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict):
        return None
    plugins = value.get("plugins")
    if isinstance(plugins, list) and plugins and all(isinstance(plugin, dict) for plugin in plugins):
        return value
    return value if plugins is None and isinstance(value.get("type"), str) else None


def _write(path: Path, configuration: Mapping[str, Any], *, like: Path) -> None:
    """Replace `path` in one step. The name in between is none that a runtime would read."""
    fresh = path.with_name(f".{path.name}.{PLUGIN}")
    fresh.write_text(json.dumps(configuration, indent=2) + "\n")
    shutil.copymode(like, fresh)
    fresh.rename(path)
