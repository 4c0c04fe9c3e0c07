"""What the build collects: the closure of the listed protos, each after what it imports."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2

PROTOS = Path(__file__).parents[3] / "protos"


@pytest.fixture
def collect(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROTOS))
    import build

    loaded = build.load("_collect", PROTOS / "collect.py")
    monkeypatch.delitem(sys.modules, "build")
    monkeypatch.delitem(sys.modules, "_collect")
    return loaded


def file(name: str, *imports: str) -> tuple[str, bytes]:
    return name, descriptor_pb2.FileDescriptorProto(name=name, dependency=imports).SerializeToString()


FILES = dict([
    file("envoy/a/v3/a.proto", "envoy/b/v3/b.proto", "google/protobuf/any.proto"),
    file("envoy/b/v3/b.proto", "envoy/c.proto"),
    file("envoy/c.proto"),
    file("envoy/a/v2/old.proto"),
    file("other/v3/d.proto"),
])  # fmt: skip


def test_what_is_imported_comes_first(collect: ModuleType) -> None:
    closure = collect.closure(["envoy/a/v3/a.proto"], FILES)
    assert [f.name for f in closure.file] == ["envoy/c.proto", "envoy/b/v3/b.proto", "google/protobuf/any.proto", "envoy/a/v3/a.proto"]


def test_a_root_that_is_not_there_is_named(collect: ModuleType) -> None:
    with pytest.raises(KeyError, match="envoy/none"):
        collect.closure(["envoy/none.proto"], FILES)


def test_folders_mean_their_v3_files(collect: ModuleType) -> None:
    assert collect.roots("# all\n\nenvoy/a/\nother/v3/d.proto\n", FILES) == ["envoy/a/v3/a.proto", "other/v3/d.proto"]
