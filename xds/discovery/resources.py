"""Resources as bytes, and the groups of them that proxies share.

What a proxy gets of one type is the union of a few groups: of the outbound clusters of its view of the mesh, say, and of the
inbound clusters of workloads like it. Thousands of proxies share a group, so it is kept once, it is encoded once for all that
go from one of its generations to another, and a stream only holds which generation it was sent.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from google.protobuf.message import Message

from xds import pb


class Resource(msgspec.Struct, frozen=True, eq=False):
    """One xDS resource, serialised. Equal content has an equal version, in every replica and after every restart."""

    name: str
    type_url: str
    version: str  # content hash
    body: bytes

    @classmethod
    def of(cls, message: Message, name: str = "") -> "Resource":
        """`message` as a resource; `name` where the message does not carry it as `name` (or `cluster_name`)."""
        body = message.SerializeToString(deterministic=True)
        name = name or getattr(message, "name", "") or getattr(message, "cluster_name", "")
        return cls(name, pb.type_url(message), content_hash(body), body)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resource) and (self.version, self.name, self.type_url) == (other.version, other.name, other.type_url)

    def __hash__(self) -> int:
        return hash((self.version, self.name))


def content_hash(*parts: bytes) -> str:
    """The version of a resource made of `parts`: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class Group:
    """A set of resources of one type that proxies share. `generation` grows with every update."""

    def __init__(self, type_url: str, name: str, resources: Iterable[Resource] = ()) -> None:
        self.type_url = type_url
        self.name = name  # for people: `outbound`, `inbound reviews-v1.default`
        self.generation = 0
        self.resources: dict[str, Resource] = {r.name: r for r in resources}
        self.listeners: set[Callable[[Group], None]] = set()

    def update(self, changes: Mapping[str, Resource | None]) -> None:
        """Replace the resources named, or remove those that are None; tells the listeners once. No change, no call."""
        raise NotImplementedError


class Assignment(msgspec.Struct, frozen=True, eq=False):
    """What a proxy gets: by type URL, the groups whose union it may subscribe to. `name` shows in `xds proxies` as its class."""

    name: str
    groups: dict[str, tuple[Group, ...]]


class Assignable(Protocol):
    """The server's side of one stream, to whoever decides what it gets."""

    node: Any  # pb.Node without its extensions; metadata as a dict is node_metadata
    node_metadata: dict[str, Any]
    peer_identity: str  # verified SPIFFE ID, empty on plaintext

    def assign(self, assignment: Assignment) -> None:
        """The stream's groups are these from now on; it sends what differs."""


class Provider(Protocol):
    """Decides what each stream gets. The server calls it on the event loop's thread."""

    def open(self, stream: Assignable) -> Assignment:
        """The first assignment of a new stream. ProtocolError refuses it. Later ones go through `stream.assign`."""

    def close(self, stream: Assignable) -> None:
        """The stream has ended; called once for each `open`."""
