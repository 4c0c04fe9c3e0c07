"""Rules that the fields of several kinds share. Each takes the report to add to, the field's JSON path and its value."""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from xds.errors import Problem
from xds.objects.paths import below

_LABEL = r"[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?"
_DNS_LABEL = re.compile(_LABEL, re.ASCII)
_WILDCARD_LABEL = re.compile(rf"\*|(?:\*-?)?{_LABEL}", re.ASCII)
_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+", re.ASCII)  # RFC 9110 §5.6.2
_MILLISECOND = timedelta(milliseconds=1)

PROTOCOLS = (
    "HTTP", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB", "GRPC-WEB-TEXT", "HTTPS", "TLS", "TCP", "UDP",
    "MONGO", "REDIS", "MYSQL", "HBONE", "DOUBLE-HBONE",
)  # fmt: skip


class Report:
    """The problems of one object."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def error(self, path: str, reason: str) -> None:
        self.problems.append(Problem(path, reason))

    def warning(self, path: str, reason: str) -> None:
        self.problems.append(Problem(path, reason, warning=True))

    def unused(self, path: str, value: object, instead: str = "") -> None:
        """Warn of a field that has no effect, in Istio either, or is deprecated for the field `instead`."""
        if value is not None and value != ():
            self.warning(path, f"is deprecated; use {instead}" if instead else "has no effect")

    # Numbers and durations

    def port(self, path: str, number: int | None) -> None:
        """A port number, which must be given."""
        if number is None:
            self.error(path, "is required: a port number")
        elif not 1 <= number <= 65535:
            self.error(path, f"must be a port number, 1 to 65535; it is {number}")

    def within(self, path: str, value: float | None, low: float, high: float, unit: str = "") -> None:
        if value is not None and not low <= value <= high:
            self.error(path, f"must be from {low} to {high}{unit}; it is {value}")

    def percent(self, path: str, value: float | None) -> None:
        self.within(path, value, 0, 100, " percent")

    def not_negative(self, path: str, value: int | None) -> None:
        if value is not None and value < 0:
            self.error(path, f"must not be negative; it is {value}")

    def duration(self, path: str, value: timedelta | None, *, zero: bool = False) -> None:
        """At least a millisecond, in whole milliseconds; or zero, where that is allowed."""
        if value is None or (zero and not value):
            return
        if value < _MILLISECOND:
            self.error(path, "must be at least 1ms")
        elif value % _MILLISECOND:
            self.error(path, "must be in whole milliseconds")

    # Names

    def dns_label(self, path: str, value: str) -> None:
        if not _DNS_LABEL.fullmatch(value):
            self.error(path, f"must be a DNS label: up to 63 letters, digits and `-`; it is `{value}`")

    def host(self, path: str, value: str, *, wildcard: bool = False) -> None:
        """A host name, short or fully qualified; with `wildcard` its first label may be one or begin with one: `*.example.com`."""
        reason = host_problem(value, wildcard=wildcard)
        if reason:
            self.error(path, reason)

    def address(self, path: str, value: str) -> None:
        if not is_ip(value):
            self.error(path, f"must be an IP address; it is `{value}`")

    def subnet(self, path: str, value: str) -> None:
        """An IP address, or a subnet in CIDR notation. Bits below the prefix are allowed, as in Istio."""
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            self.error(path, f"must be an IP address or a subnet such as 10.0.0.0/8; it is `{value}`")

    def header_name(self, path: str, name: str) -> None:
        if not _HEADER_NAME.fullmatch(name):
            self.error(path, f"must be an HTTP header name; it is `{name}`")

    def labels(self, path: str, labels: Mapping[str, str], *, wildcards: bool = True) -> None:
        """Kubernetes: "Labels and Selectors", syntax and character set. `wildcards` False names `*` as what is wrong."""
        for key, value in labels.items():
            prefix, slash, name = key.rpartition("/")
            if not wildcards and "*" in key + value:
                self.error(below(path, key), "must not have wildcards")
            elif not _QUALIFIED_NAME.fullmatch(name) or (slash and host_problem(prefix)):
                self.error(below(path, key), f"the label's name must be like `app` or `example.com/app`; it is `{key}`")
            elif value and not _QUALIFIED_NAME.fullmatch(value):
                self.error(below(path, key), f"must be up to 63 letters, digits, `-`, `_` and `.`; it is `{value}`")

    def protocol(self, path: str, value: str | None) -> None:
        """The protocol of a port; what is not given is detected."""
        if value and value.upper() not in PROTOCOLS:
            self.error(path, f"must be one of {', '.join(PROTOCOLS)}; it is `{value}`")

    # Lists

    def unique(self, path: str, values: Iterable[object], field: str = "") -> None:
        """No value twice. `field` is the JSON name of the value in the elements at `path`; None is no value."""
        seen = set()
        for i, value in enumerate(values):
            if value is None:
                continue
            if value in seen:
                element = below(path, i)
                self.error(below(element, field) if field else element, f"`{value}` is there already; it must be unique")
            seen.add(value)

    def at_most_one(self, path: str, message: object, fields: Collection[str]) -> None:
        """At most one of these attributes of `message` is set; the later ones are reported."""
        given = [field for field in fields if getattr(message, field) not in (None, (), "")]
        for field in given[1:]:
            self.error(below(path, camel(field)), f"must not be given beside {camel(given[0])}")

    def export_to(self, path: str, values: tuple[str, ...], *, is_local: bool = False) -> None:
        """Namespaces, `.`, `*` or `~`. `is_local` is for objects that may be exported to their own namespace only."""
        self.unique(path, values)
        for i, value in enumerate(values):
            if is_local and value != ".":
                self.error(below(path, i), "must be `.`: a rule with a workloadSelector is for its own namespace")
            elif value not in (".", "*", "~"):
                self.dns_label(below(path, i), value)
        for alone in ("*", "~"):
            if alone in values and len(values) > 1:
                self.error(below(path, values.index(alone)), f"`{alone}` must be the only entry")


def camel(field: str) -> str:
    """The JSON name of an attribute."""
    head, *tail = field.split("_")
    return head + "".join(part.capitalize() for part in tail)


def is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def host_problem(value: str, *, wildcard: bool = False) -> str:
    """Why `value` is not a host name, empty where it is. RFC 1123 §2.1; a dot at the end is allowed."""
    labels = value.removesuffix(".").split(".")
    first = _WILDCARD_LABEL if wildcard else _DNS_LABEL
    kind = "a host name, with a wildcard as its first label at most" if wildcard else "a host name without wildcards"
    if len(value) > 255 or not first.fullmatch(labels[0]) or not all(_DNS_LABEL.fullmatch(label) for label in labels[1:]):
        return f"must be {kind}; it is `{value}`"
    if len(labels) > 1 and labels[-1].isdigit():
        return f"must be {kind}; `{value}` ends in a number"
    return ""
