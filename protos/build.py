"""Builds what `xds.pb` loads: `envoy.binpb`, and its type stub. The wheel build runs it; so may you, by hand.

Needs `xds-protos` where it runs: a build requirement, never a runtime one.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PROTOS = Path(__file__).resolve().parent


def load(name: str, path: Path) -> ModuleType:
    """The module in the file `path`, whatever else on `sys.path` shares its name."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def replace(path: Path, content: bytes) -> None:
    """Make `content` the file's, in one step: an editable install may be in use while it is built again."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def main(root: Path = PROTOS.parent) -> None:
    """Writes `xds/pb/envoy.binpb` and `xds/pb/__init__.pyi` under `root`."""
    package = root / "xds/pb"
    collect = load("_xds_protos_collect", PROTOS / "collect.py")
    files = collect.serialized_files()
    wanted = collect.roots((PROTOS / "roots.txt").read_text(), files)
    descriptors = collect.closure(wanted, files)
    replace(package / "envoy.binpb", descriptors.SerializeToString(deterministic=True))
    pb = load("_xds_pb", package / "__init__.py")
    stubs = load("_xds_protos_stubs", PROTOS / "stubs.py")
    replace(package / "__init__.pyi", stubs.stub(pb.NAMES, pb.POOL).encode())
    print(f"xds.pb: {len(descriptors.file)} proto files, {len(pb.NAMES)} messages named")


if __name__ == "__main__":
    main()
