"""What of a resource protects: how connections are encrypted and who is trusted, and who may do what.

Where all proxies reject a new version, the last good one is offered in its place; but never where the new one protects otherwise. A
proxy without the resource fails, and people see that; one with the old protection serves on, and nobody does. So far as Envoy's own
filters go: what a script or a module of WebAssembly guards cannot be told.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from xds import pb

if TYPE_CHECKING:
    from xds.discovery.resources import Resource

# All of such a message counts.
_WHOLE = frozenset({"envoy.config.core.v3.TransportSocket", "envoy.config.cluster.v3.Cluster.TransportSocketMatch"})
_WHOLE_TYPES = frozenset({pb.type_url(pb.Secret)})
_PACKED = (  # and of what is packed as one of these
    "envoy.config.route.v3.FilterConfig", "envoy.extensions.filters.http.api_key_auth.", "envoy.extensions.filters.http.basic_auth.",
    "envoy.extensions.filters.http.ext_authz.", "envoy.extensions.filters.http.jwt_authn.", "envoy.extensions.filters.http.oauth2.",
    "envoy.extensions.filters.http.rbac.", "envoy.extensions.filters.network.ext_authz.", "envoy.extensions.filters.network.rbac.",
)  # fmt: skip
_ANY = "google.protobuf.Any"
_FILTER_CHAIN = "envoy.config.listener.v3.FilterChain"


def guards(resource: "Resource") -> tuple[bytes, ...]:
    """All of `resource` that protects, in its order. Equal where two versions protect alike."""
    if resource.type_url in _WHOLE_TYPES:
        return (resource.body,)
    return tuple(_packed(resource.type_url, resource.body))


def _packed(type_url: str, value: bytes) -> Iterator[bytes]:
    full_name = type_url.rpartition("/")[2]
    if full_name.startswith(_PACKED):
        yield value
        return
    try:
        message = pb.message_class(full_name).FromString(value)
    except (KeyError, DecodeError):
        return
    yield from _of(message)


def _of(message: Any) -> Iterator[bytes]:
    full_name = message.DESCRIPTOR.full_name
    if full_name in _WHOLE:
        yield message.SerializeToString(deterministic=True)
        return
    if full_name == _ANY:
        yield from _packed(message.type_url, message.value)
        return
    if full_name == _FILTER_CHAIN:
        yield message.filter_chain_match.SerializeToString(deterministic=True)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            parts = [value[key] for key in sorted(value)]
        else:
            parts = [value] if isinstance(value, Message) else list(value)
        for part in parts:
            if isinstance(part, Message):
                yield from _of(part)
