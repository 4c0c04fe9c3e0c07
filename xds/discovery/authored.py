"""Resources as people write them: YAML and JSON documents, and Python modules.

A document is a resource, or a list of them. A resource is in protobuf's JSON form with `@type`, or in a wrapper that says more about it:
`{resource: …, version: …, ttl: …, aliases: […], nodes: {id, cluster, metadata}}`. `version` replaces the content hash: then a change is
sent when the version changes.
`ttl` (`30s`) makes Delta clients drop the resource when they have not heard of us for so long. `aliases` are names that it may
be asked for by as well. `nodes` limits it to proxies whose `id` and `cluster` match (`*` stands for anything) and whose metadata has
`metadata`. `name` is for types that have no name of their own.

A module's public functions, those without parameters, return such things as dataclasses of envoy-data-plane: one, a wrapper around one
(`{"resource": Cluster(…), "ttl": "30s"}`), or several. The module runs in this process: its author is trusted as the operator is.

Each resource is held against the rules in Envoy's descriptors. What breaks one is not served, and said to be where it is: file and line.
"""

import dataclasses
import inspect
import json
import re
import sys
import traceback
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from xds import pb
from xds.discovery import names
from xds.discovery.resources import Assignable, Resource, content_hash
from xds.errors import Problem
from xds.objects.documents import Document, documents, parts
from xds.validation import check

SUFFIXES = (".yaml", ".yml", ".json", ".py")
SHORTEST_TTL = 1.0  # seconds; heartbeats come in time for this one

_WRAPPER = {"resource", "name", "version", "ttl", "aliases", "nodes"}
_NODES = {"id", "cluster", "metadata"}
_PLACE = re.compile(r'at "?\w+\.([\w.\[\]]+\w|\w)')  # in protobuf's complaints: `at "Cluster.load_assignment.endpoints[0]"`
_SECONDS = re.compile(r"(\d+(?:\.\d{1,9})?)s")


class Nodes(msgspec.Struct, frozen=True):
    """Which proxies a resource is for. What is empty matches all."""

    id: str = ""
    cluster: str = ""
    metadata: tuple[tuple[str, str], ...] = ()  # values as JSON

    def match(self, stream: Assignable) -> bool:
        """Whether the proxy of `stream` is one of them."""
        return (
            (not self.id or _pattern(self.id).fullmatch(stream.node.id) is not None)
            and (not self.cluster or _pattern(self.cluster).fullmatch(stream.node.cluster) is not None)
            and all(_json(stream.node_metadata.get(key)) == value for key, value in self.metadata)
        )


ALL = Nodes()


class Entry(msgspec.Struct, frozen=True):
    """A resource, for whom it is, and where it is written: `file:line`."""

    nodes: Nodes
    resource: Resource
    where: str

    @property
    def key(self) -> tuple[Nodes, str, str]:
        """What there is only one of."""
        return self.nodes, self.resource.type_url, self.resource.name


class Fault(Exception):  # noqa: N818 - it becomes a Problem
    """Something is wrong with the field at a path."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


class Parsed(msgspec.Struct):
    """What a file says. `parts` are the texts of its documents, each with the lines before it and what it says."""

    found: list[Entry | Problem] = []
    parts: dict[str, tuple[int, list[Entry | Problem]]] = {}


def parse(file: Path, before: Parsed | None = None) -> Parsed:
    """The resources of a file, and a problem, with file and line, for each document that is none. FileNotFoundError where it is gone.

    Documents that it had `before` are not read again.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as e:
        return Parsed([Problem("$", f"cannot be read: {e.strerror}", str(file))])
    except UnicodeDecodeError as e:
        return Parsed([Problem("$", f"not UTF-8: {e}", str(file))])
    if file.suffix == ".py":
        return Parsed(list(_module(file, text)))
    parsed = Parsed()
    for line, part in _json_parts(text) if file.suffix == ".json" else parts(text):
        if before is not None and part in before.parts:
            old_line, said = before.parts[part]
            said = [_moved(each, line - old_line) for each in said]
        else:
            said = list(_said(file, part, line))
        parsed.parts[part] = line, said
        parsed.found += said
    return parsed


def _said(file: Path, part: str, line: int) -> Iterator[Entry | Problem]:
    if file.suffix == ".json":  # it is YAML, but for tabs
        part = re.sub(r"(?m)^[ \t]+", lambda indent: " " * len(indent.group()), part)
    for document in documents(part, str(file), line):
        errors = [problem for problem in document.problems if not problem.warning]
        if errors:
            yield from errors
        elif document.value is not None:
            for at, item in _items(document):
                yield from _entries(item, at)


def _moved(said: Entry | Problem, lines: int) -> Entry | Problem:
    """The same, so many lines further down in its file."""
    if lines == 0:
        return said
    path, _, line = said.where.rpartition(":")
    where = f"{path}:{int(line) + lines}"
    return msgspec.structs.replace(said, where=where) if isinstance(said, Entry) else dataclasses.replace(said, where=where)


def _json_parts(text: str) -> Iterator[tuple[int, str]]:
    """The text of each JSON document, and how many lines are before it; what is not JSON to the end as one."""
    decoder = json.JSONDecoder()
    start = 0
    while (start := _skip(text, start)) < len(text):
        try:
            _, end = decoder.raw_decode(text, start)
        except ValueError:
            end = len(text)
        yield text.count("\n", 0, start), text[start:end]
        start = end


def _skip(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _items(document: Document) -> Iterator[tuple[str, Document]]:
    """What is in a document, with its path there: the items of a list, else itself."""
    if not isinstance(document.value, list):
        yield "$", document
        return
    for index, (value, node) in enumerate(zip(document.value, document.node.value, strict=True)):
        yield f"$[{index}]", msgspec.structs.replace(document, value=value, node=node)


def _entries(document: Document, within: str) -> Iterator[Entry | Problem]:
    """The resource of a document, which is `within` what is in its file, or what is wrong with it."""

    def problem(field: str, reason: str) -> Problem:
        return Problem(within + field.removeprefix("$"), reason, document.where(field))

    try:
        entry = _entry(document.value, document.where())
    except Fault as e:
        yield problem(e.field, e.reason)
        return
    at = "$" if "@type" in document.value else "$.resource"
    problems = [problem(v.path, v.reason) for v in check(_message(entry.resource), at)]
    yield from problems or (entry,)


def _entry(document: Any, where: str) -> Entry:
    if not isinstance(document, dict):
        raise Fault("$", "not a resource: an object with @type is needed")
    if "resource" not in document or "@type" in document:
        message = _from_json(document, "$")
        return Entry(ALL, _resource(message, {}, "$"), where)
    message = _from_json(document["resource"], "$.resource")
    return Entry(_nodes(document.get("nodes")), _resource(message, document, "$.resource"), where)


def _from_json(value: Any, at: str) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("@type"), str):
        raise Fault(at, "not a resource: an object with @type is needed")
    full_name = value["@type"].rpartition("/")[2]
    try:
        cls = pb.message_class(full_name)
    except KeyError:
        raise Fault(f"{at}.@type", f"{full_name} is no message of Envoy's API") from None
    try:
        return json_format.ParseDict({k: v for k, v in value.items() if k != "@type"}, cls(), descriptor_pool=pb.POOL)
    except json_format.ParseError as e:
        text = str(e).partition("\n")[0]
        place = _PLACE.search(text)
        raise Fault(f"{at}.{place.group(1)}" if place else at, text) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as e:  # json_format lets these through for some wrong types
        raise Fault(at, f"not a {full_name}: {e}") from None


def _resource(message: Message, wrapper: dict[str, Any], at: str) -> Resource:
    unknown = wrapper.keys() - _WRAPPER
    if unknown:
        raise Fault("$", f"unknown in a wrapper: {', '.join(map(str, sorted(unknown, key=str)))}; it has {', '.join(sorted(_WRAPPER))}")
    aliases = wrapper.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias for alias in aliases):
        raise Fault("$.aliases", "is a list of names")
    body = message.SerializeToString(deterministic=True)
    ttl_ms = _ttl_ms(wrapper.get("ttl"))
    own = wrapper.get("name") or getattr(message, "name", "") or getattr(message, "cluster_name", "")
    version = content_hash(body, *([str(ttl_ms).encode(), *(alias.encode() for alias in aliases)] if ttl_ms or aliases else ()))
    if wrapper.get("version") is not None:
        version = str(wrapper["version"])
    resource = Resource(names.normal(str(own)), pb.type_url(message), version, body, ttl_ms, tuple(map(names.normal, aliases)))
    if not resource.name:
        raise Fault(f"{at}.name", "a resource needs a name")
    return resource


def _ttl_ms(ttl: Any) -> int:
    if ttl is None:
        return 0
    match = _SECONDS.fullmatch(ttl) if isinstance(ttl, str) else None
    if match is None or float(match.group(1)) < SHORTEST_TTL:
        raise Fault("$.ttl", f"is a number of seconds such as 30s, at least {SHORTEST_TTL:g}s")
    return round(float(match.group(1)) * 1000)


def _nodes(value: Any) -> Nodes:
    value = {} if value is None else value
    if not isinstance(value, dict) or value.keys() - _NODES:
        raise Fault("$.nodes", "has id, cluster and metadata")
    metadata = value.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise Fault("$.nodes.metadata", "is an object")
    return Nodes(
        str(value.get("id") or ""),
        str(value.get("cluster") or ""),
        tuple(sorted((str(key), _json(item)) for key, item in metadata.items())),
    )


def _message(resource: Resource) -> Message:
    return pb.message_class(resource.type_url.rpartition("/")[2]).FromString(resource.body)


# Python modules


def _module(file: Path, text: str) -> Iterator[Entry | Problem]:
    """What a module's functions return. Its code runs once for each change of the file."""
    module = types.ModuleType(f"xds_resources_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses and the like look it up there
    try:
        exec(compile(text, str(file), "exec"), module.__dict__)  # noqa: S102 - what the file is for
    except SyntaxError as e:
        yield Problem("$", f"not Python: {e.msg}", f"{file}:{e.lineno or 1}")
        return
    except (Exception, SystemExit) as e:  # noqa: BLE001 - the author's code may raise anything
        yield _raised(e, file, 1)
        return
    finally:
        del sys.modules[module.__name__]
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_") and _callable(function):
            yield from _called(name, function, file)


def _callable(function: types.FunctionType) -> bool:
    """Whether it can be called without arguments."""
    parameters = inspect.signature(function).parameters.values()
    return all(p.default is not p.empty or p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in parameters)


def _called(name: str, function: types.FunctionType, file: Path) -> Iterator[Entry | Problem]:
    line = function.__code__.co_firstlineno
    where = f"{file}:{line}"
    try:
        returned = function()
        several = isinstance(returned, Iterable) and not isinstance(returned, (dict, str, bytes))
        values = list(returned) if several else [returned]
    except (Exception, SystemExit) as e:  # noqa: BLE001 - the author's code may raise anything
        yield _raised(e, file, line)
        return
    for index, value in enumerate(values):
        at = f"{name}()[{index}]" if several else f"{name}()"
        try:
            entry = _authored(value, where)
        except Fault as e:
            yield Problem(f"{at}{e.field.removeprefix('$')}", e.reason, where)
            continue
        problems = [Problem(f"{at}{v.path.removeprefix('$')}", v.reason, where) for v in check(_message(entry.resource))]
        yield from problems or (entry,)


def _authored(value: Any, where: str) -> Entry:
    wrapper = value if isinstance(value, dict) else {}
    message = _converted(wrapper.get("resource") if wrapper else value)
    return Entry(_nodes(wrapper.get("nodes")), _resource(message, wrapper, "$"), where)


def _converted(value: Any) -> Message:
    """A dataclass of envoy-data-plane as a message of ours. Both speak the same bytes."""
    from betterproto2 import Message as Dataclass
    from envoy_data_plane.message_pool import default_message_pool

    if isinstance(value, Message):
        full_name, raw = value.DESCRIPTOR.full_name, value.SerializeToString()
    elif isinstance(value, Dataclass) and type(value) in default_message_pool.type_to_url:
        full_name, raw = default_message_pool.type_to_url[type(value)].rpartition("/")[2], bytes(value)
    else:
        raise Fault("$", f"a {type(value).__name__} is not a resource: return dataclasses of envoy_data_plane")
    try:
        return pb.message_class(full_name).FromString(raw)
    except KeyError:
        raise Fault("$", f"{full_name} is no message of Envoy's API") from None
    except DecodeError as e:
        raise Fault("$", f"not a {full_name}: {e}") from None


def _raised(error: BaseException, file: Path, line: int) -> Problem:
    """The innermost line of the file itself is where the author looks first."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file) and frame.lineno]
    return Problem("$", f"{type(error).__name__}: {error}", f"{file}:{lines[-1] if lines else line}")


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def _json(value: Any) -> str:
    """Metadata knows no integers: 1 and 1.0 are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    elif isinstance(value, dict):
        return f"{{{','.join(f'{_json(str(key))}:{_json(value[key])}' for key in sorted(value, key=str))}}}"
    return msgspec.json.encode(value, order="deterministic").decode()
