"""What must hold for a message wherever it stands, by JSON path: durations, fields that exclude one another, ports, labels, header
values, regular expressions.

Some of it is in the schemas of Istio's CRDs, and an API server has checked it; objects from files are held to the same. The rest is
what Envoy would refuse, with all else that is in the same resource: one rule's bad expression would take a whole route table away.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import cache, lru_cache
from math import isqrt
from typing import Any, get_args, get_origin

import msgspec
import re2

from xds.errors import Problem
from xds.objects.destination_rule import (
    ClientTLSSettings,
    ConnectionKeepalive,
    ConsistentHashLB,
    HTTPCookie,
    HTTPSettings,
    LoadBalancerSettings,
    LocalityLoadBalancerSetting,
    MagLev,
    MatchLabelsSelector,
    OutlierDetection,
    RetryBudget,
    RingHash,
    TcpKeepalive,
    TCPSettings,
    TunnelSettings,
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
    ConsistentHashLB: (
        ("http_header_name", "http_cookie", "use_source_ip", "http_query_parameter_name"),
        ("ring_hash", "maglev"),
    ),
    ServerTLSSettings: (("credential_name", "credential_names", "tls_certificates"),),
}
# Durations of which Envoy takes no zero.
_POSITIVE: dict[type[Message], tuple[str, ...]] = {
    TCPSettings: ("connect_timeout", "max_connection_duration"),
    TcpKeepalive: ("time", "interval"),
    ConnectionKeepalive: ("interval", "timeout"),
    OutlierDetection: ("interval", "base_ejection_time"),
    WarmupConfiguration: ("duration",),
}
_COUNT = (0, 2**31 - 1)
MAX_RING_SIZE = 8 * 1024 * 1024  # of Envoy's hash ring
MAX_TABLE_SIZE = 5_000_011  # of Maglev
_RANGES: dict[type[Message], dict[str, tuple[float, float]]] = {
    Percent: {"value": (0, 100)},
    OutlierDetection: {
        "max_ejection_percent": (0, 100),
        "min_health_percent": (0, 100),
        "outlier_detection_http_error_codes": (100, 599),
    },
    WarmupConfiguration: {"minimum_percent": (0, 100), "aggression": (0, float("inf"))},
    RetryBudget: {"percent": (0, 100)},
    RingHash: {"minimum_ring_size": (0, MAX_RING_SIZE)},
    ConsistentHashLB: {"minimum_ring_size": (0, MAX_RING_SIZE)},
    TCPSettings: {"max_connections": _COUNT},
    HTTPSettings: dict.fromkeys(
        (
            *("http1_max_pending_requests", "http2_max_requests", "max_requests_per_connection", "max_retries"),
            "max_concurrent_streams",
        ),
        _COUNT,
    ),
    TunnelSettings: {"target_port": (1, 65535)},
    ZoneAwareLoadBalancerSetting: {"min_cluster_size": (1, 2**32 - 1)},
    EntryPort: {"number": (1, 65535), "target_port": (1, 65535)},
    WorkloadEntrySpec: {"ports": (1, 65535)},
}
_REGEX: dict[type[Message], str] = {StringMatch: "regex", RegexRewrite: "match"}
MAX_PROGRAM_SIZE = 32768  # of a regular expression; as the proxy's bootstrap has it

_HEADER_NAME = re.compile(r"[0-9A-Za-z!#$%&'*+\-.^_|~`]+", re.ASCII)
_PSEUDO_HEADER = re.compile(r":[a-z]+", re.ASCII)
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\n-\x1f\x7f]")
_TOPOLOGY = {"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}
MAX_SNI = 255
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
    has_rules: bool


def check(path: str, message: Message) -> list[Problem]:
    """What is wrong with `message` at `path`, and with those in it."""
    problems: list[Problem] = []
    _collect(path, message, problems)
    return problems


def _collect(path: str, message: Message, problems: list[Problem]) -> None:
    kind = type(message)
    plan = _plan(kind)
    if plan.has_rules:
        problems += _own(path, message, plan)
    for name, key in plan.durations:
        if (value := getattr(message, name)) is not None:
            problems += _duration(below(path, key), value)
    for name, key in plan.messages:
        if (part := getattr(message, name)) is not None:
            _collect(f"{path}.{key}", part, problems)
    for name, key in plan.lists:
        if parts := getattr(message, name):
            for i, part in enumerate(parts):
                _collect(f"{path}.{key}[{i}]", part, problems)
    for name, key in plan.maps:
        if items := getattr(message, name):
            for step, part in items.items():
                _collect(below(f"{path}.{key}", step), part, problems)


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
    has_rules = any(kind in rules for rules in (_EXCLUSIVE, _POSITIVE, _RANGES, _REGEX, _RULES))
    return _Plan(**{what: tuple(fields) for what, fields in found.items()}, names=names, has_rules=has_rules)


def _own(path: str, message: Message, plan: _Plan) -> Iterator[Problem]:
    kind = type(message)
    for fields in _EXCLUSIVE.get(kind, ()):
        given = [plan.names[name] for name in fields if getattr(message, name) not in (None, ())]
        if len(given) > 1:
            yield Problem(path, f"{' and '.join(given)} exclude one another: give one of them")
    for name in _POSITIVE.get(kind, ()):
        if getattr(message, name) == timedelta():
            yield Problem(f"{path}.{plan.names[name]}", "a duration must be 1ms or more; leave it out for the default")
    for name, (low, high) in _RANGES.get(kind, {}).items():
        yield from _range(f"{path}.{plan.names[name]}", getattr(message, name), low, high)
    if (name := _REGEX.get(kind, "")) and (regex := getattr(message, name)):
        yield from _regex(f"{path}.{plan.names[name]}", regex)
    if (rule := _RULES.get(kind)) is not None:
        yield from rule(path, message)


def _duration(at: str, value: timedelta) -> Iterator[Problem]:
    """Zero is taken too, for "none at all", though an API server refuses it."""
    if timedelta() != value < timedelta(milliseconds=1):
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
    if problem := _regex_problem(regex):
        yield Problem(at, problem)


@lru_cache(maxsize=4096)
def program_size(regex: str) -> int:
    """How many instructions `regex` is. re2.error where it is no regular expression."""
    size: int = re2.compile(regex, _options).programsize
    return size


def _regex_problem(regex: str) -> str | None:
    """Why a proxy would not take `regex`; None where it would. `*` matches anything (Istio)."""
    if regex == "*":
        return None
    try:
        size = program_size(regex)
    except re2.error as e:
        reason = e.args[0]
        return f"not a regular expression (RE2): {reason.decode() if isinstance(reason, bytes) else reason}"
    if size > MAX_PROGRAM_SIZE:
        return f"too large a regular expression: {size} instructions, of which a proxy takes {MAX_PROGRAM_SIZE}"
    return None


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


def _hashing(path: str, hashing: ConsistentHashLB) -> Iterator[Problem]:
    header = hashing.http_header_name
    if header and not _HEADER_NAME.fullmatch(header) and not _PSEUDO_HEADER.fullmatch(header):
        yield Problem(f"{path}.httpHeaderName", f"{header!r} is not a header's name")
    if not (header or hashing.http_cookie or hashing.use_source_ip or hashing.http_query_parameter_name):
        yield Problem(path, "nothing to hash by, so calls are spread: write httpHeaderName, httpCookie, or another", warning=True)


def _cookie(path: str, cookie: HTTPCookie) -> Iterator[Problem]:
    if not cookie.name:
        yield Problem(f"{path}.name", "a cookie has a name")
    for name, value in (("name", cookie.name), ("path", cookie.path or "")):
        if _CONTROL.search(value):
            yield Problem(f"{path}.{name}", "a cookie has no control characters")
    for i, attribute in enumerate(cookie.attributes):
        for name, value in (("name", attribute.name), ("value", attribute.value or "")):
            if _CONTROL.search(value) or (name == "name" and not value):
                yield Problem(f"{path}.attributes[{i}].{name}", "a cookie's attribute has a name, and no control characters")


def _table(path: str, maglev: MagLev) -> Iterator[Problem]:
    size = maglev.table_size
    if size and (size > MAX_TABLE_SIZE or size < 2 or not all(size % n for n in range(2, isqrt(size) + 1))):
        yield Problem(f"{path}.tableSize", f"{size} is not a prime number up to {MAX_TABLE_SIZE}")


def _localities(path: str, setting: LocalityLoadBalancerSetting) -> Iterator[Problem]:
    if setting.distribute and (setting.failover or setting.failover_priority):
        yield Problem(path, "distribute and failover exclude one another: give one of them")
    elif setting.failover and _TOPOLOGY.intersection(label.partition("=")[0] for label in setting.failover_priority):
        yield Problem(path, "failover and a failoverPriority by region, zone or subzone exclude one another: give one of them")
    for i, share in enumerate(setting.distribute):
        at = f"{path}.distribute[{i}]"
        if not share.from_:
            yield Problem(f"{at}.from", "whose load is distributed must be said: a locality, as in region/zone/*, or *")
        if (total := sum(share.to.values())) != 100:
            yield Problem(f"{at}.to", f"shares add up to 100; here to {total}")
        for place, where in ((share.from_ or "", f"{at}.from"), *((place, below(f"{at}.to", place)) for place in share.to)):
            if "*" in place.removesuffix("*") or not ("*" not in place or place == "*" or place.endswith("/*")):
                yield Problem(where, f"{place!r} has a wildcard that is not its last part")
    for i, failover in enumerate(setting.failover):
        at = f"{path}.failover[{i}]"
        if failover.from_ == failover.to:
            yield Problem(at, "a region that fails over to itself")
        for name, region in (("from", failover.from_), ("to", failover.to)):
            if not region or "/" in region or "*" in region:
                yield Problem(f"{at}.{name}", f"{region or ''!r} is not the name of a region; zones fail over by themselves")


def _client_tls(path: str, tls: ClientTLSSettings) -> Iterator[Problem]:
    own = [
        name
        for name, value in (
            ("clientCertificate", tls.client_certificate), ("privateKey", tls.private_key),
            ("caCertificates", tls.ca_certificates), ("caCrl", tls.ca_crl),
        )
        if value
    ]  # fmt: skip
    if tls.mode in ("SIMPLE", "MUTUAL") and tls.credential_name and own:
        yield Problem(path, f"credentialName and {' and '.join(own)} exclude one another")
    elif tls.mode == "MUTUAL" and not tls.credential_name and not (tls.client_certificate and tls.private_key):
        yield Problem(path, "mode MUTUAL needs clientCertificate and privateKey, or credentialName")
    elif tls.mode == "ISTIO_MUTUAL" and (own or tls.credential_name):
        fields = " and ".join([*own, *(["credentialName"] if tls.credential_name else [])])
        yield Problem(path, f"mode ISTIO_MUTUAL takes the mesh's certificates: {fields} should be empty", warning=True)
    if len(tls.sni or "") > MAX_SNI:
        yield Problem(f"{path}.sni", f"a server name has {MAX_SNI} characters at most")
    for i, name in enumerate(tls.subject_alt_names):
        if not name:
            yield Problem(f"{path}.subjectAltNames[{i}]", "a name is empty")


def _tunnel(path: str, tunnel: TunnelSettings) -> Iterator[Problem]:
    if tunnel.protocol not in (None, "", "CONNECT", "POST"):
        yield Problem(f"{path}.protocol", f"{tunnel.protocol!r} is neither CONNECT nor POST")
    if not tunnel.target_host or "*" in tunnel.target_host or not _VISIBLE.fullmatch(tunnel.target_host):
        yield Problem(f"{path}.targetHost", f"{tunnel.target_host!r} is no full name of a host, and no address")


def _warmup(path: str, settings: LoadBalancerSettings) -> Iterator[Problem]:
    given = settings.warmup or settings.warmup_duration_secs
    if given and (settings.consistent_hash is not None or settings.simple in ("RANDOM", "PASSTHROUGH")):
        name = "warmup" if settings.warmup else "warmupDurationSecs"
        yield Problem(f"{path}.{name}", "only ROUND_ROBIN and LEAST_REQUEST warm endpoints up; it has no effect", warning=True)


def _outliers(path: str, detection: OutlierDetection) -> Iterator[Problem]:
    if detection.consecutive_errors is not None:
        reason = "deprecated, and has no effect; write consecutiveGatewayErrors or consecutive5xxErrors"
        yield Problem(f"{path}.consecutiveErrors", reason, warning=True)
    if detection.consecutive_local_origin_failures and not detection.split_external_local_origin_errors:
        reason = "has no effect without splitExternalLocalOriginErrors"
        yield Problem(f"{path}.consecutiveLocalOriginFailures", reason, warning=True)


def _budget(path: str, budget: RetryBudget) -> Iterator[Problem]:
    if budget.budget_interval:
        yield Problem(f"{path}.budgetInterval", "Envoy has no such setting yet; requests under way now are counted", warning=True)


_RULES: dict[type[Message], Callable[[str, Any], Iterator[Problem]]] = {
    ClientTLSSettings: _client_tls,
    ConsistentHashLB: _hashing,
    HTTPCookie: _cookie,
    LoadBalancerSettings: _warmup,
    LocalityLoadBalancerSetting: _localities,
    MagLev: _table,
    OutlierDetection: _outliers,
    RetryBudget: _budget,
    TunnelSettings: _tunnel,
    HeaderOperations: _headers,
    MatchLabelsSelector: lambda path, selector: _selector(f"{path}.matchLabels", selector.match_labels),
    WorkloadSelector: lambda path, selector: _selector(f"{path}.labels", selector.labels),
    WorkloadEntrySpec: _workload,
    **ROUTING_RULES,
}
