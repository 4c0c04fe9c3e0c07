"""YAML files as documents: JSON values that know the line of each of their fields.

YAML is read as Kubernetes' tools read it: 1.1 with `yes` and `on` as booleans, but timestamps and `12:30:00` are strings.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xds.errors import Problem
from xds.objects.paths import below, steps

MAX_DEPTH = 100
MAX_NODES = 1_000_000  # of one document, with what its aliases repeat

_SEPARATOR = re.compile(r"^---(?=\s|$)|^\.\.\.(?=\s|$)", re.MULTILINE)
_NOTHING = re.compile(r"(\s|#.*|%.*)*")
_CORE = "tag:yaml.org,2002:"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves plain scalars as the YAML library of Kubernetes does, where PyYAML differs from it."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


class Document(msgspec.Struct, frozen=True):
    """One document, or one item of a document that is a List. Where it is not YAML, `problems` say so and there is no `node`."""

    value: Any
    problems: tuple[Problem, ...]
    path: str
    node: Any = None
    offset: int = 0

    def where(self, field: str = "$") -> str:
        """`file:line` of the field at this JSON path, of what it is in where it is absent itself."""
        if self.node is None:
            return self.problems[0].where
        node: Node = self.node
        line = node.start_mark.line
        for step in steps(field):
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return f"{self.path}:{line + self.offset + 1}"


def documents(text: str, path: str, line: int = 0) -> Iterator[Document]:
    """The documents of a file, or of its part behind `line` lines.

    One that is not YAML harms only itself; items of a List come as documents of their own.
    """
    for offset, part in parts(text):
        yield from _read(part, path, line + offset)


def parts(text: str) -> Iterator[tuple[int, str]]:
    """The text of each document of a file, and how many lines are before it. Those with nothing in them are left out."""
    start = line = 0
    for end in [*(match.start() for match in _SEPARATOR.finditer(text)), len(text)]:
        part = text[start:end]
        if not _NOTHING.fullmatch(part.removeprefix("---").removeprefix("...")):
            yield line, part
        start = end
        line += part.count("\n")


def _read(text: str, path: str, offset: int) -> Iterator[Document]:
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            for node in _items(root):
                value, duplicates = _Values(loader).read(node)
                document = Document(value, (), path, node, offset)
                problems = (Problem(f, "given twice; the last one counts", document.where(f), warning=True) for f in duplicates)
                yield msgspec.structs.replace(document, problems=tuple(problems))
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = offset + 1 + (mark.line if mark is not None else 0)
        reason = ": ".join(part for part in (e.context, e.problem) if part)
        yield Document(None, (Problem("$", f"not YAML: {reason}", f"{path}:{line}"),), path)
    except yaml.YAMLError as e:
        yield Document(None, (Problem("$", f"not YAML: {e}", f"{path}:{offset + 1}"),), path)
    finally:
        if loader is not None:
            loader.dispose()


def _items(root: Node) -> list[Node]:
    """The objects of a document: the items of a List, else itself."""
    kind, items = _child(root, "kind"), _child(root, "items")
    if kind is not None and items is not None and str(kind[1].value).endswith("List") and isinstance(items[1], SequenceNode):
        nodes: list[Node] = items[1].value
        return nodes
    return [root]


def _child(node: Node, step: str | int) -> tuple[int, Node] | None:
    """The line at which `node` names its part `step`, and that part."""
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        part = node.value[step]
        return part.start_mark.line, part
    if isinstance(node, MappingNode):
        for key, part in reversed(node.value):
            if key.value == step:
                return key.start_mark.line, part
    return None


class _Values:
    """Makes JSON values of nodes."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._nodes = 0
        self._steps: list[str | int] = []
        self._duplicates: list[str] = []

    def read(self, node: Node) -> tuple[Any, list[str]]:
        """The value of `node`, and the JSON paths of the keys that are in it twice."""
        return self._value(node), self._duplicates

    def _value(self, node: Node) -> Any:
        self._nodes += 1
        if len(self._steps) > MAX_DEPTH or self._nodes > MAX_NODES:
            problem = "nested too deeply, or too long with what its aliases repeat"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, ScalarNode):
            return _scalar(node)
        steps = self._steps
        if isinstance(node, SequenceNode):
            values = []
            for i, part in enumerate(node.value):
                steps.append(i)
                values.append(self._value(part))
                steps.pop()
            return values
        keys = [key.value for key, _ in node.value if key.tag != _CORE + "merge"]
        if len(keys) < len(node.value):
            self._loader.flatten_mapping(node)
        mapping = {}
        for key, part in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a string", problem_mark=key.start_mark)
            steps.append(key.value)
            mapping[key.value] = self._value(part)
            steps.pop()
        if len(mapping) < len(keys):
            twice = {key for key in keys if keys.count(key) > 1}
            self._duplicates += [functools.reduce(below, [*steps, key], "$") for key in sorted(twice)]
        return mapping


def _scalar(node: ScalarNode) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_CORE):
        case "null":
            return None
        case "bool":
            return text.lower() in ("yes", "true", "on")
        case "int":
            digits = text.replace("_", "").lower()
            base = 8 if re.match(r"[-+]?0\d", digits) else 0
            return int(digits, base)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    return text
