"""Envoy resources written by hand: files in which every document is a resource, or a wrapper that says more about one.

A resource is protobuf's JSON form with `@type`, in YAML or JSON. A wrapper is `{resource: …, version: …, nodes: …}`: `version` replaces the
content hash; `nodes` limits it to proxies whose `id` and `cluster` match (`*` stands for anything) and whose metadata has `metadata`.
Files are followed one by one: a bad document harms only itself, and what it was before stays.
"""

import asyncio
import fnmatch
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
import yaml
from google.protobuf import json_format
from watchfiles import awatch

from xds import pb
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignable, Assignment, Group, Resource
from xds.errors import ConfigError, Problem

log = structlog.get_logger()

SUFFIXES = (".yaml", ".yml", ".json")
KNOWN = (
    t.CLUSTER, t.ENDPOINTS, t.LOCALITY_ENDPOINT, t.LISTENER, t.SCOPED_ROUTE, t.ROUTE, t.VIRTUAL_HOST, t.SECRET, t.EXTENSION, t.RUNTIME,
)  # fmt: skip
_WRAPPER = {"resource", "version", "nodes"}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Nodes(msgspec.Struct, frozen=True):
    """Which proxies a resource is for. What is empty matches all."""

    id: str = ""
    cluster: str = ""
    metadata: tuple[tuple[str, str], ...] = ()  # values as JSON

    def match(self, stream: Assignable) -> bool:
        """Whether the proxy of `stream` is one of them."""
        return (
            (not self.id or fnmatch.fnmatchcase(stream.node.id, self.id))
            and (not self.cluster or fnmatch.fnmatchcase(stream.node.cluster, self.cluster))
            and all(_json(stream.node_metadata.get(key)) == value for key, value in self.metadata)
        )


ALL = Nodes()
Entry = tuple[Nodes, Resource]


class RawResources:
    """The resources in files, as groups that follow them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._files: dict[str, list[Entry]] = {}
        self._groups: dict[tuple[str, Nodes], Group] = {(url, ALL): Group(url, "resources") for url in KNOWN}
        self._streams: set[Assignable] = set()

    def load(self) -> None:
        """Read everything. ConfigError where one of the paths does not exist."""
        for path in self._paths:
            if not path.exists():
                raise ConfigError(str(path), "does not exist")
        for file in self._present():
            self._read(file)
        self._publish()

    async def follow(self) -> None:
        """Read what changes, until cancelled."""
        async for changed in _changes(self._paths):
            for name in changed:
                self._look(Path(name))
            self._publish()

    def open(self, stream: Assignable) -> Assignment:
        """What a new stream gets of these resources."""
        self._streams.add(stream)
        return self.assignment(stream)

    def close(self, stream: Assignable) -> None:
        """The stream has ended."""
        self._streams.discard(stream)

    def assignment(self, stream: Assignable) -> Assignment:
        """The groups of the node behind `stream`, by type."""
        groups: dict[str, tuple[Group, ...]] = {}
        for (url, nodes), group in self._groups.items():
            if nodes.match(stream):
                groups[url] = (*groups.get(url, ()), group)
        return Assignment("resources", groups)

    def _present(self) -> Iterator[Path]:
        for path in self._paths:
            if path.is_file():
                yield path
            else:
                yield from sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())

    def _look(self, file: Path) -> None:
        """Something happened to `file`."""
        if file.is_file() and file.suffix in SUFFIXES:
            self._read(file)
        else:
            self._files.pop(str(file.resolve()), None)

    def _read(self, file: Path) -> None:
        """Take a file as it is now; of a document that is bad, what it was before stays."""
        before = {(nodes, r.type_url, r.name): r for nodes, r in self._files.get(str(file.resolve()), ())}
        entries: list[Entry] = []
        bad = False
        for found in parse(file):
            if isinstance(found, Problem):
                bad = True
                log.warning("resource.invalid", problem=str(found))
            else:
                entries.append(found)
        if bad:  # which of the old ones a broken document was cannot be told: all that are not there anew stay
            have = {(nodes, r.type_url, r.name) for nodes, r in entries}
            entries += [(nodes, r) for (nodes, url, name), r in before.items() if (nodes, url, name) not in have]
        self._files[str(file.resolve())] = entries

    def _publish(self) -> None:
        wanted: dict[tuple[str, Nodes], dict[str, Resource]] = {}
        for file in sorted(self._files):
            for nodes, resource in self._files[file]:
                held = wanted.setdefault((resource.type_url, nodes), {})
                if resource.name in held:
                    log.warning("resource.duplicate", file=file, type=resource.type_url, name=resource.name)
                held.setdefault(resource.name, resource)
        fresh = wanted.keys() - self._groups.keys()
        for key in fresh:
            self._groups[key] = Group(key[0], f"resources {key[1].id or key[1].cluster}".strip())
        for key, group in self._groups.items():
            now = wanted.get(key, {})
            group.update({name: now.get(name) for name in now.keys() | group.resources.keys()})
        if fresh:
            for stream in self._streams:
                stream.assign(self.assignment(stream))


async def _changes(paths: Sequence[Path]) -> AsyncIterator[set[str]]:
    while True:
        async for changes in awatch(*paths, debounce=50, step=10, recursive=True):
            yield {path for _, path in changes}
        await asyncio.sleep(0.5)


def parse(file: Path) -> Iterator[Entry | Problem]:
    """The resources of a file, and a problem, with file and line, for each document that is none."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as e:
        yield Problem("$", str(e), str(file))
        return
    loader = _LOADER(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            where = f"{file}:{node.start_mark.line + 1}"
            document = loader.construct_document(node)
            if document is not None:
                yield _entry(document, where)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark is not None else 1
        yield Problem("$", f"not YAML: {e.problem}", f"{file}:{line}")
    finally:
        loader.dispose()


def _entry(document: Any, where: str) -> Entry | Problem:
    if not isinstance(document, dict):
        return Problem("$", "not a resource: an object with @type is needed", where)
    if "resource" not in document or "@type" in document:
        return _resource(document, "$", where, ALL)
    unknown = document.keys() - _WRAPPER
    if unknown:
        return Problem("$", f"unknown in a wrapper: {', '.join(sorted(unknown))}; it has resource, version and nodes", where)
    nodes = document.get("nodes") or {}
    if not isinstance(nodes, dict) or nodes.keys() - {"id", "cluster", "metadata"}:
        return Problem("$.nodes", "has id, cluster and metadata", where)
    metadata = tuple(sorted((str(k), _json(v)) for k, v in (nodes.get("metadata") or {}).items()))
    for_nodes = Nodes(str(nodes.get("id", "")), str(nodes.get("cluster", "")), metadata)
    found = _resource(document["resource"], "$.resource", where, for_nodes)
    if isinstance(found, Problem) or document.get("version") is None:
        return found
    resource = found[1]
    return for_nodes, Resource(resource.name, resource.type_url, str(document["version"]), resource.body)


def _resource(value: Any, at: str, where: str, nodes: Nodes) -> Entry | Problem:
    if not isinstance(value, dict) or not isinstance(value.get("@type"), str):
        return Problem(at, "not a resource: an object with @type is needed", where)
    full_name = value["@type"].rpartition("/")[2]
    try:
        cls = pb.message_class(full_name)
    except KeyError:
        return Problem(f"{at}.@type", f"{full_name} is no message of Envoy's API", where)
    try:
        message = json_format.ParseDict({k: v for k, v in value.items() if k != "@type"}, cls(), descriptor_pool=pb.POOL)
    except json_format.ParseError as e:
        return Problem(at, str(e).partition("\n")[0], where)
    resource = Resource.of(message)
    if not resource.name:
        return Problem(f"{at}.name", "a resource needs a name", where)
    return nodes, resource


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
