"""The build hook: makes the descriptors and the stub of `xds.pb`, and puts them into the wheel."""

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DescriptorsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs `protos/build.py` before a wheel, plain or editable, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("_xds_protos_build", root / "protos/build.py")
        assert spec is not None and spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        build.main(root)
        build_data["artifacts"] += ["xds/pb/envoy.binpb", "xds/pb/__init__.pyi"]
