"""Responses joined from bytes that were encoded once.

A resource's body is by far the most of what is sent, and it is the same in every response that carries it. So nothing is
serialised again: each resource keeps the few bytes that go before its body, and a response is those and the bodies in a row,
between a head and a tail of its own. Field numbers are those of `envoy/service/discovery/v3/discovery.proto`.
"""

from collections.abc import Iterable

NOT_FOUND = 5  # google.rpc.Code


def varint(value: int) -> bytes:
    """`value` as a base-128 varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(number: int, length: int) -> bytes:
    """The tag of length-delimited field `number`, and the length of its `length` bytes."""
    return varint(number << 3 | 2) + varint(length)


def field(number: int, value: bytes | str) -> bytes:
    """Length-delimited field `number`."""
    raw = value.encode() if isinstance(value, str) else value
    return head(number, len(raw)) + raw


def any_head(type_url: str, size: int) -> bytes:
    """What goes before a body of `size` bytes in an Any."""
    return field(1, type_url) + head(2, size)


def sotw_head(type_url: str, size: int) -> bytes:
    """What goes before a body of `size` bytes as one of a DiscoveryResponse's `resources`."""
    inner = any_head(type_url, size)
    return head(2, len(inner) + size) + inner


def duration(milliseconds: int) -> bytes:
    """A google.protobuf.Duration."""
    seconds, rest = divmod(milliseconds, 1000)
    return (b"\x08" + varint(seconds) if seconds else b"") + (b"\x10" + varint(rest * 1_000_000) if rest else b"")


def delta_head(name: str, version: str, type_url: str, size: int, aliases: Iterable[str] = (), ttl_ms: int = 0) -> bytes:
    """What goes before a body of `size` bytes as one of a DeltaDiscoveryResponse's `resources`."""
    inner = any_head(type_url, size)
    fields = field(3, name) + field(1, version) + b"".join(field(4, alias) for alias in aliases)
    if ttl_ms:
        fields += field(6, duration(ttl_ms))
    fields += head(2, len(inner) + size) + inner
    return head(2, len(fields) + size) + fields


def heartbeat(name: str, version: str, ttl_ms: int) -> bytes:
    """One of a DeltaDiscoveryResponse's `resources` that has no body: it only lives on for another `ttl_ms`."""
    return field(2, field(3, name) + field(1, version) + field(6, duration(ttl_ms)))


def nothing(name: str) -> bytes:
    """One of a DeltaDiscoveryResponse's `resources` that has no body: nothing answers to `name`, which was asked for on demand (X4)."""
    return field(2, field(3, name) + field(4, name))


def entry(name: str, version: str) -> bytes:
    """An entry of a DeltaDiscoveryRequest's `initial_resource_versions`."""
    return field(1, name) + field(2, version)


def delta_response(
    control_plane: bytes, type_url: str, version: str, nonce: str, resources: Iterable[bytes], removed: Iterable[str]
) -> bytes:
    """A DeltaDiscoveryResponse. `resources` are heads and bodies in turn, `control_plane` is field 7, encoded."""
    parts = [field(1, version), *resources]
    parts += [field(6, name) for name in removed]
    parts += (field(4, type_url), field(5, nonce), control_plane)
    return b"".join(parts)


def sotw_response(
    control_plane: bytes, type_url: str, version: str, nonce: str, resources: Iterable[bytes], missing: Iterable[str]
) -> bytes:
    """A DiscoveryResponse. `missing` are told as `resource_errors` with NOT_FOUND, `control_plane` is field 6, encoded."""
    parts = [field(1, version), *resources]
    parts += [field(7, field(1, field(1, name)) + field(2, b"\x08" + varint(NOT_FOUND))) for name in missing]
    parts += (field(4, type_url), field(5, nonce), control_plane)
    return b"".join(parts)
