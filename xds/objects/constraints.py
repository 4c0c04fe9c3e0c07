"""What must hold for a message wherever it stands, by JSON path: durations, fields that exclude one another, ports, labels, header
values, regular expressions.

Some of it is in the schemas of Istio's CRDs, and an API server has checked it; objects from files are held to the same. The rest is
what Envoy would refuse, with all else that is in the same resource: one rule's bad expression would take a whole route table away.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import cache
from typing import Any, get_args, get_origin

import msgspec
import re2

from xds.errors import Problem
from xds.objects.destination_rule import (
    LoadBalancerSettings,
    MatchLabelsSelector,
    OutlierDetection,
    RetryBudget,
    WarmupConfiguration,
    ZoneAwareLoadBalancerSetting,
)
from xds.objects.formats import format_problem
from xds.objects.meta import Duration, Message
from xds.objects.paths import below
from xds.objects.routing_rules import ROUTING_RULES
from xds.objects.schema import options
from xds.objects.service_entry import EntryPort, WorkloadEntrySpec, WorkloadSelector
from xds.objects.sidecar import ServerTLSSettings
from xds.objects.virtual_service import (
    Abort,
    Delay,
    HeaderOperations,
    HTTPBody,
    HTTPRedirect,
    Percent,
    RegexRewrite,
    StringMatch,
)

_EXCLUSIVE: dict[type[Message], tuple[tuple[str, ...], ...]] = {
    StringMatch: (("exact", "prefix", "regex"),),
    HTTPBody: (("string", "bytes"),),
    HTTPRedirect: (("port", "derive_port"),),
    Abort: (("http_status", "grpc_status", "http2_error"),),
    Delay: (("fixed_delay", "exponential_delay"),),
    LoadBalancerSettings: (("simple", "consistent_hash"),),
    ServerTLSSettings: (("credential_name", "credential_names", "tls_certificates"),),
}
_RANGES: dict[type[Message], dict[str, tuple[float, float]]] = {
    Percent: {"value": (0, 100)},
    OutlierDetection: {
        "max_ejection_percent": (0, 100),
        "min_health_percent": (0, 100),
        "outlier_detection_http_error_codes": (100, 599),
    },
    WarmupConfiguration: {"minimum_percent": (0, 100), "aggression": (0, float("inf"))},
    RetryBudget: {"percent": (0, 100)},
    ZoneAwareLoadBalancerSetting: {"min_cluster_size": (1, 2**32 - 1)},
    EntryPort: {"number": (1, 65535), "target_port": (1, 65535)},
    WorkloadEntrySpec: {"ports": (1, 65535)},
}
_REGEX: dict[type[Message], str] = {StringMatch: "regex", RegexRewrite: "match"}
MAX_PROGRAM_SIZE = 32768  # of a regular expression; as the proxy's bootstrap has it

_HEADER_NAME = re.compile(r"[0-9A-Za-z!#$%&'*+\-.^_|~`]+", re.ASCII)
_PSEUDO_HEADER = re.compile(r":[a-z]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\n-\x1f\x7f]")
_PORT_NAME = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,60}[a-zA-Z0-9])?", re.ASCII)
_options = re2.Options()
_options.log_errors = False


class _Plan(msgspec.Struct, frozen=True):
    """What to look at in messages of one class: attributes with the names that they have in JSON."""

    durations: tuple[tuple[str, str], ...]
    messages: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, str], ...]
    maps: tuple[tuple[str, str], ...]
    names: dict[str, str]


def check(path: str, message: Message) -> Iterator[Problem]:
    """What is wrong with `message` at `path`, and with those in it."""
    kind = type(message)
    plan = _plan(kind)
    yield from _own(path, message, plan)
    for name, key in plan.durations:
        yield from _duration(below(path, key), getattr(message, name))
    for name, key in plan.messages:
        if (part := getattr(message, name)) is not None:
            yield from check(below(path, key), part)
    for name, key in plan.lists:
        for i, part in enumerate(getattr(message, name)):
            yield from check(f"{path}.{key}[{i}]", part)
    for name, key in plan.maps:
        for step, part in getattr(message, name).items():
            yield from check(below(below(path, key), step), part)


@cache
def _plan(kind: type[Message]) -> _Plan:
    found: dict[str, list[tuple[str, str]]] = {"durations": [], "messages": [], "lists": [], "maps": []}
    for field in msgspec.structs.fields(kind):
        bare = options(field.type)[0]
        inner = bare if get_origin(bare) is None else options(get_args(bare)[-1 if get_origin(bare) is dict else 0])[0]
        where = {tuple: "lists", dict: "maps"}.get(get_origin(bare), "messages")
        if bare is Duration:
            found["durations"].append((field.name, field.encode_name))
        elif isinstance(inner, type) and issubclass(inner, Message):
            found[where].append((field.name, field.encode_name))
    names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
    return _Plan(**{what: tuple(fields) for what, fields in found.items()}, names=names)


def _own(path: str, message: Message, plan: _Plan) -> Iterator[Problem]:
    kind = type(message)
    for fields in _EXCLUSIVE.get(kind, ()):
        given = [plan.names[name] for name in fields if getattr(message, name) not in (None, ())]
        if len(given) > 1:
            yield Problem(path, f"{' and '.join(given)} exclude one another: give one of them")
    for name, (low, high) in _RANGES.get(kind, {}).items():
        yield from _range(f"{path}.{plan.names[name]}", getattr(message, name), low, high)
    if (name := _REGEX.get(kind, "")) and (regex := getattr(message, name)):
        yield from _regex(f"{path}.{plan.names[name]}", regex)
    if (rule := _RULES.get(kind)) is not None:
        yield from rule(path, message)


def _duration(at: str, value: timedelta | None) -> Iterator[Problem]:
    """Zero is taken too, for "none at all", though an API server refuses it."""
    if value is not None and timedelta() != value < timedelta(milliseconds=1):
        yield Problem(at, "a duration must be 1ms or more")


def _range(at: str, value: Any, low: float, high: float) -> Iterator[Problem]:
    numbers: Iterable[tuple[str, float]]
    match value:
        case None:
            return
        case tuple():
            numbers = ((f"{at}[{i}]", number) for i, number in enumerate(value))
        case dict():
            numbers = ((below(at, key), number) for key, number in value.items())
        case _:
            numbers = ((at, value),)
    for where, number in numbers:
        if not low <= number <= high:
            yield Problem(where, f"{number} is not {f'from {low} to {high}' if high < float('inf') else f'{low} or more'}")


def _regex(at: str, regex: str) -> Iterator[Problem]:
    if regex == "*":
        return  # Istio: matches anything
    try:
        size = re2.compile(regex, _options).programsize
    except re2.error as e:
        reason = e.args[0]
        yield Problem(at, f"not a regular expression (RE2): {reason.decode() if isinstance(reason, bytes) else reason}")
    else:
        if size > MAX_PROGRAM_SIZE:
            yield Problem(at, f"too large a regular expression: {size} instructions, of which a proxy takes {MAX_PROGRAM_SIZE}")


def _headers(path: str, operations: HeaderOperations) -> Iterator[Problem]:
    for part, values in (("set", operations.set), ("add", operations.add)):
        for name, value in values.items():
            at = below(f"{path}.{part}", name)
            if not _HEADER_NAME.fullmatch(name) and not _PSEUDO_HEADER.fullmatch(name):
                yield Problem(at, f"{name!r} is not a header's name")
            if _CONTROL.search(value):
                yield Problem(at, "a header's value has no control characters")
            elif problem := format_problem(value):
                yield Problem(at, problem)
    for i, name in enumerate(operations.remove):
        if not _HEADER_NAME.fullmatch(name) and not _PSEUDO_HEADER.fullmatch(name):
            yield Problem(f"{path}.remove[{i}]", f"{name!r} is not a header's name")


def _selector(path: str, labels: dict[str, str]) -> Iterator[Problem]:
    for key, value in labels.items():
        if not key:
            yield Problem(path, "a label's name is empty")
        elif "*" in key or "*" in value:
            yield Problem(below(path, key), "a selector's labels are matched as they are: no wildcards")
        elif len(value) > 63:
            yield Problem(below(path, key), "a label's value has 63 characters at most")


def _workload(path: str, workload: WorkloadEntrySpec) -> Iterator[Problem]:
    address = workload.address or ""
    if not address and not workload.network:
        yield Problem(f"{path}.address", "an address is needed, or the network that it is in")
    if address.startswith("unix://"):
        if address[7:8] not in ("/", "@") or address.endswith("/"):
            yield Problem(f"{path}.address", "a socket is an absolute path (unix:///path) or abstract (unix://@name)")
        if workload.ports:
            yield Problem(f"{path}.ports", "a Unix socket has no ports")
    for name in workload.ports:
        if not _PORT_NAME.fullmatch(name):
            yield Problem(below(f"{path}.ports", name), f"{name!r} is not a port's name")


_RULES: dict[type[Message], Callable[[str, Any], Iterator[Problem]]] = {
    HeaderOperations: _headers,
    MatchLabelsSelector: lambda path, selector: _selector(f"{path}.matchLabels", selector.match_labels),
    WorkloadSelector: lambda path, selector: _selector(f"{path}.labels", selector.labels),
    WorkloadEntrySpec: _workload,
    **ROUTING_RULES,
}
