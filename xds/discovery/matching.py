"""Which nodes a client of CSDS means: `envoy.type.matcher.v3.NodeMatcher`.

A matcher is made into a function once, and asked for each node. What must hold of a value is what Envoy makes of these messages; where
its implementation and the comments of the messages differ, the comments count: a struct is never matched.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import re2

from xds.errors import ProtocolError

NodeTest = Callable[[str, dict[str, Any]], bool]  # of a node's id and its metadata
ValueTest = Callable[[Any], bool]

REGEX_PROGRAM_MAX: Final = 32768  # instructions, as in a proxy
DEPTH_MAX: Final = 16  # of matchers within matchers

_MISSING: Final = object()
_options = re2.Options()
_options.log_errors = False


def nodes(matchers: Iterable[Any]) -> NodeTest:
    """Whether any of the NodeMatchers matches; all nodes where there are none. ProtocolError where one cannot be understood."""
    tests = [_node(matcher) for matcher in matchers]
    return lambda node_id, metadata: not tests or any(test(node_id, metadata) for test in tests)


def _node(matcher: Any) -> NodeTest:
    id_test = _string(matcher.node_id) if matcher.HasField("node_id") else lambda _: True
    metadata_tests = [_struct(each) for each in matcher.node_metadatas]
    return lambda node_id, metadata: id_test(node_id) and all(test(metadata) for test in metadata_tests)


def _struct(matcher: Any) -> ValueTest:
    if not matcher.path:
        raise _invalid("a path is needed")
    path = [segment.key for segment in matcher.path]
    if not all(path):
        raise _invalid("a segment of a path is a key")
    test = _value(matcher.value)
    return lambda metadata: test(_at(metadata, path))


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def _value(matcher: Any, depth: int = 0) -> ValueTest:
    if depth > DEPTH_MAX:
        raise _invalid(f"matchers in matchers, more than {DEPTH_MAX} deep")
    match matcher.WhichOneof("match_pattern"):
        case "null_match":
            return lambda value: value is None
        case "double_match":
            number = _double(matcher.double_match)
            return lambda value: isinstance(value, float) and number(value)
        case "string_match":
            text = _string(matcher.string_match)
            return lambda value: isinstance(value, str) and text(value)
        case "bool_match":
            wanted: bool = matcher.bool_match
            return lambda value: value is wanted
        case "present_match":
            present: bool = matcher.present_match  # that something is absent cannot be asked for
            return lambda value: present and value is not _MISSING and not isinstance(value, (dict, list))
        case "list_match":
            if matcher.list_match.WhichOneof("match_pattern") is None:
                raise _invalid("a list matcher without pattern")
            element = _value(matcher.list_match.one_of, depth + 1)
            return lambda value: isinstance(value, list) and any(map(element, value))
        case "or_match":
            tests = [_value(each, depth + 1) for each in matcher.or_match.value_matchers]
            return lambda value: any(test(value) for test in tests)
    raise _invalid("a value matcher without pattern")


def _double(matcher: Any) -> Callable[[float], bool]:
    match matcher.WhichOneof("match_pattern"):
        case "exact":
            exact: float = matcher.exact
            return lambda value: value == exact
        case "range":
            start, end = matcher.range.start, matcher.range.end
            return lambda value: start <= value < end
    raise _invalid("a double matcher without pattern")


def _string(matcher: Any) -> Callable[[str], bool]:
    kind = matcher.WhichOneof("match_pattern")
    if kind == "safe_regex":
        regex = _regex(matcher.safe_regex.regex)
        return lambda value: regex.fullmatch(value) is not None
    tests: dict[str | None, Callable[[str, str], bool]] = {
        "exact": str.__eq__, "prefix": str.startswith, "suffix": str.endswith, "contains": str.__contains__,
    }  # fmt: skip
    if kind not in tests:
        raise _invalid("a string matcher without pattern" if kind is None else f"strings are not matched by {kind}")
    fold = str.lower if matcher.ignore_case else str
    test, wanted = tests[kind], fold(getattr(matcher, kind))
    return lambda value: test(fold(value), wanted)


def _regex(text: str) -> Any:
    try:
        regex = re2.compile(text, _options)
    except re2.error as e:
        reason = e.args[0]
        raise _invalid(f"not a regular expression (RE2): {reason.decode() if isinstance(reason, bytes) else reason}") from None
    if regex.programsize > REGEX_PROGRAM_MAX:
        raise _invalid(f"too large a regular expression: {regex.programsize} instructions")
    return regex


def _invalid(reason: str) -> ProtocolError:
    return ProtocolError("INVALID_ARGUMENT", f"node matcher: {reason}")
