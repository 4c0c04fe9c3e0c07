"""What every object has: its reference, its metadata and the rules by which its JSON is read.

Attributes are the snake_case form of the JSON names. A scalar, message or wrapper that the user may leave out is None then;
booleans and enums whose absence means their zero value have that value; lists are tuples; durations are `timedelta`.
"""

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec has no bound beyond int64
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]


class Ref(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """Names one object: `VirtualService reviews.default`. `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}.{self.namespace}" if self.namespace else f"{self.kind} {self.name}"


class OwnerReference(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    name: str
    api_version: str = ""
    uid: str = ""
    controller: bool = False


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    """The part of Kubernetes metadata that configuration depends on.

    What changes at every write (resourceVersion, managedFields, generation) is left out, so that a write that changes nothing
    for us compares equal and costs nothing.
    """

    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: Timestamp | None = None
    uid: str = ""
    deletion_timestamp: Timestamp | None = None
    owner_references: tuple[OwnerReference, ...] = ()


class KubernetesObject(msgspec.Struct, frozen=True, rename="camel"):
    """The base of all top-level objects. `kind` is the class's name."""

    namespaced: ClassVar[bool] = True

    meta: ObjectMeta = msgspec.field(name="metadata")

    @property
    def ref(self) -> Ref:
        """What names this object; one that leaves its namespace out is in `default`, as for kubectl."""
        namespace = (self.meta.namespace or "default") if self.namespaced else ""
        return Ref(type(self).__name__, namespace, self.meta.name)


class Message(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The base of what Istio's APIs define as protobuf messages; class names are the messages' names.

    Unknown fields are refused here so that decoding finds them at no cost; `schema.check` then makes warnings of them.
    """


if TYPE_CHECKING:
    Duration = timedelta
else:

    class Duration(timedelta):
        """A timedelta that is a duration string in JSON: msgspec itself reads and writes timedeltas in ISO 8601."""


_DURATION = re.compile(r"([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)|[+-]?0", re.ASCII)
_PART = re.compile(r"([\d.]+)(ns|us|µs|μs|ms|s|m|h)")
_MAX_NANOSECONDS = 2**63 - 1  # 292 years; Envoy reads no longer ones either
_MICROSECONDS = {"ns": 0.001, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}


def duration(text: str) -> timedelta:
    """The value of `5s`, `1.5s`, `100ms` or `1h30m`; ValueError for anything else.

    Go: time.ParseDuration, which is how Istio's YAML is read; protobuf's JSON form (`1.5s`) is part of it.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a duration: {text!r}; write a number with its unit, as in 5s, 100ms or 1h30m")
    microseconds = sum(float(number) * _MICROSECONDS[unit] for number, unit in _PART.findall(match[2] or ""))
    if microseconds * 1000 > _MAX_NANOSECONDS:
        raise ValueError(f"too long a duration: {text}")
    return Duration(microseconds=-microseconds if match[1] == "-" else microseconds)


def duration_text(value: timedelta) -> str:
    """`value` as protobuf's JSON has it: `1.5s`."""
    microseconds = value // timedelta(microseconds=1)
    whole, part = divmod(abs(microseconds), 1_000_000)
    fraction = f".{part:06d}".rstrip("0") if part else ""
    return f"{'-' if microseconds < 0 else ''}{whole}{fraction}s"


def decode_hook(type_: type, value: Any) -> Any:
    """msgspec's `dec_hook` for these structs."""
    if type_ is Duration and isinstance(value, str):
        return duration(value)
    raise NotImplementedError


def encode_hook(value: Any) -> Any:
    """msgspec's `enc_hook` for these structs."""
    if isinstance(value, timedelta):
        return duration_text(value)
    raise NotImplementedError
