"""Resources as bytes, and the groups of them that proxies share.

What a proxy gets of one type is the union of a few groups: of the outbound clusters of its view of the mesh, say, and of the
inbound clusters of workloads like it. Thousands of proxies share a group, so it is kept once, it is encoded once for all that
go from one of its generations to another, and a stream only holds which generation it was sent.

A group tells two things apart: what was built last (`resources`) and what proxies are *offered*. They differ only where a proxy
rejected a new version of a resource before any other acknowledged it: then the last good version is offered, until the resource
changes, a proxy does acknowledge it, or nobody is left who could. Where there is no good version, there is nothing to offer instead: a
rejection never takes a resource away from others. Nor is there where the new version protects otherwise than the last good one: nobody
is handed a protection that has been replaced (see `guards`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import msgspec
from google.protobuf.message import DecodeError, Message

from xds import pb
from xds.discovery import wire
from xds.discovery.guards import guards

_CLUSTER = pb.type_url(pb.Cluster)


class Resource(msgspec.Struct, frozen=True, eq=False, dict=True):
    """One xDS resource, serialised. Equal content has an equal version, in every replica and after every restart.

    `content` is its bytes, or, where these are large and mostly shared with other resources, the pieces that they are joined from.
    """

    name: str
    type_url: str
    version: str  # content hash
    content: bytes | tuple[bytes, ...]
    ttl_ms: int = 0  # Delta clients drop it when they have not heard of it for so long; 0: never
    aliases: tuple[str, ...] = ()  # other names that Delta clients may ask for it by

    @classmethod
    def of(cls, message: Message, name: str = "") -> "Resource":
        """`message` as a resource; `name` where the message does not carry it as `name` (or `cluster_name`)."""
        body = message.SerializeToString(deterministic=True)
        name = name or getattr(message, "name", "") or getattr(message, "cluster_name", "")
        return cls(name, pb.type_url(message), content_hash(body), body)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """What `body` is joined from."""
        return self.content if isinstance(self.content, tuple) else (self.content,)

    @property
    def body(self) -> bytes:
        """The serialised message."""
        return b"".join(self.content) if isinstance(self.content, tuple) else self.content

    @cached_property
    def size(self) -> int:
        """Bytes of `body`."""
        return sum(map(len, self.pieces))

    @cached_property
    def delta_head(self) -> bytes:
        """What goes before `body` in a Delta response."""
        return wire.delta_head(self.name, self.version, self.type_url, self.size, self.aliases, self.ttl_ms)

    @cached_property
    def sotw_head(self) -> bytes:
        """What goes before `body` in a state-of-the-world response."""
        return wire.sotw_head(self.type_url, self.size)

    @cached_property
    def entry(self) -> bytes:
        """What a client that holds it says so by, in `initial_resource_versions`."""
        return wire.entry(self.name, self.version)

    @cached_property
    def assignment_name(self) -> str:
        """The name of the load assignment that a cluster asks EDS for; empty for any other cluster or type."""
        if self.type_url != _CLUSTER:
            return ""
        try:
            cluster = pb.Cluster.FromString(self.body)
        except DecodeError:  # hand-written bytes: the proxy will say so
            return ""
        if cluster.type != pb.Cluster.EDS or not cluster.HasField("eds_cluster_config"):
            return ""
        return cluster.eds_cluster_config.service_name or cluster.name

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Resource) and (self.version, self.name, self.type_url) == (
            other.version, other.name, other.type_url,
        )  # fmt: skip

    def __ne__(self, other: object) -> bool:  # a Struct has its own
        return not self == other

    def __hash__(self) -> int:
        return hash((self.version, self.name))


def content_hash(*parts: bytes) -> str:
    """The version of a resource made of `parts`: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class Group:
    """A set of resources of one type that proxies share. `generation` grows with every change of what is offered.

    The group remembers what it offered before each change for as long as some *reader* was last sent an older generation, so that
    what a reader misses is found in time proportional to the change, and a resource that is back at the version the reader
    has is not sent again.
    """

    def __init__(self, type_url: str, name: str, resources: Iterable[Resource] = (), table: str = "") -> None:
        """`table` is for virtual hosts: the name of the route table they are of, before the last `/` of their own names."""
        self.type_url = type_url
        self.table = table
        self.name = name  # for people: `outbound`, `inbound reviews-v1.default`
        self.generation = 0
        self.resources: dict[str, Resource] = {r.name: r for r in resources}
        self.listeners: set[Callable[[Group], None]] = set()
        self.withheld: dict[str, Resource] = {}  # rejected, and accepted by nobody: name -> what is offered instead
        self.aliases: dict[str, str] = {}  # alias -> name
        self.expiring: dict[str, Resource] = {}  # those with a time to live
        self.fingerprint = sum(map(_mark, self.resources.values())) & _MASK  # equal where equal things are offered
        self._unproven: dict[str, Resource | None] = dict.fromkeys(self.resources)  # accepted by nobody yet: name -> last good
        self._history: dict[str, list[tuple[int, Resource | None]]] = {}  # name -> (generation, what it replaced), oldest first
        self._entries = 0
        self._entries_limit = _HISTORY
        self._bytes = 0  # of the resources in the history
        self._bytes_limit = _HISTORY_BYTES
        self._readers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        for resource in self.resources.values():
            if resource.ttl_ms or resource.aliases:
                self._note(resource.name, resource)

    def __repr__(self) -> str:
        return f"<Group {self.name} {self.type_url.rpartition('.')[2]} {len(self.resources)}@{self.generation}>"

    def update(self, changes: Mapping[str, Resource | None]) -> None:
        """Replace the resources named, or remove those that are None; tells the listeners once. No change, no call."""
        replaced: dict[str, Resource | None] = {}
        for name, new in changes.items():
            old = self.resources.get(name)
            if new == old:
                continue
            replaced[name] = self.get(name)
            self.withheld.pop(name, None)
            if self.aliases or self.expiring or (new is not None and (new.ttl_ms or new.aliases)):
                self._note(name, new)
            if new is None:
                del self.resources[name]
                self._unproven.pop(name, None)
            else:
                self.resources[name] = new
                if self._unproven.setdefault(name, old) == new:
                    del self._unproven[name]  # back at the last good version
        self._offer(replaced)

    def _note(self, name: str, resource: Resource | None) -> None:
        """Keep account of what few resources have: other names, and a time to live."""
        self.expiring.pop(name, None)
        for alias in [alias for alias, stands_for in self.aliases.items() if stands_for == name]:
            del self.aliases[alias]
        if resource is not None:
            self.aliases.update(dict.fromkeys(resource.aliases, name))
            if resource.ttl_ms:
                self.expiring[name] = resource

    def leave(self, listener: "Callable[[Group], None]") -> None:
        """Call `listener` no more. The last one to go takes along what was withheld: nobody else could acknowledge it."""
        self.listeners.discard(listener)
        if self.withheld and not self.listeners:
            self.release(tuple(self.withheld))

    # What is offered

    def get(self, name: str) -> Resource | None:
        """The resource that proxies are offered under `name`."""
        return self.withheld.get(name) or self.resources.get(name)

    def offered(self) -> Iterator[Resource]:
        """All resources that proxies are offered."""
        if not self.withheld:
            yield from self.resources.values()
            return
        for name, resource in self.resources.items():
            yield self.withheld.get(name, resource)

    def at(self, name: str, generation: int) -> Resource | None:
        """What was offered under `name` at `generation`, which a live reader must be at or before."""
        log = self._history.get(name)
        if log is not None and log[-1][0] > generation:
            for changed, before in log:
                if changed > generation:
                    return before
        return self.get(name)

    def changed_since(self, generation: int) -> Iterator[str]:
        """The names whose offer changed after `generation`, the last changed first; they may be back at what they were."""
        for name, log in reversed(self._history.items()):
            if log[-1][0] <= generation:
                return
            yield name

    def read(self, reader: object) -> None:
        """Note that `reader` stands at the present generation: what changes from now on is remembered while it lives."""
        self._readers[reader] = self.generation

    # What proxies said

    def accept(self, resources: Iterable[Resource]) -> None:
        """A proxy acknowledged `resources`: those of them that are this group's are good, and no longer withheld."""
        if not self._unproven:
            return
        before: dict[str, Resource | None] = {}
        for resource in resources:
            name = resource.name
            if name in self._unproven and self.resources[name] == resource:
                del self._unproven[name]
                if name in self.withheld:
                    before[name] = self.withheld.pop(name)
        if before:
            self._offer(before)

    def reject(self, resource: Resource) -> bool:
        """A proxy rejected `resource`. True where that withholds it.

        That is where it is the newest, nobody accepted it, and there is a good one that protects as it does.
        """
        name = resource.name
        good = self._unproven.get(name)
        if good is None or name in self.withheld or self.resources[name] != resource or guards(good) != guards(resource):
            return False
        self.withheld[name] = good
        self._offer({name: resource})
        return True

    def release(self, names: Iterable[str]) -> None:
        """Offer what is withheld under `names` again: whoever was trying it out has gone."""
        self._offer({name: self.withheld.pop(name) for name in names if name in self.withheld})

    def _offer(self, replaced: Mapping[str, Resource | None]) -> None:
        """Record that what was offered were `replaced`, where it differs from what is offered now, and tell the listeners."""
        generation = self.generation + 1
        for name, before in replaced.items():
            after = self.get(name)
            if after == before:
                continue
            self.generation = generation
            self._entries += 1
            self._bytes += 0 if before is None else before.size
            self.fingerprint = (self.fingerprint + _mark(after) - _mark(before)) & _MASK
            log = self._history.pop(name, None)
            if log is None:
                log = []
            log.append((generation, before))
            self._history[name] = log
        if self.generation == generation:
            if self._entries > self._entries_limit or self._bytes > self._bytes_limit:
                self._forget()
            for listener in tuple(self.listeners):
                listener(self)

    def _forget(self) -> None:
        """Drop from the history what no reader can ask for. Costs the length of the history, and so comes at every doubling."""
        floor = min(self._readers.values(), default=self.generation)
        history: dict[str, list[tuple[int, Resource | None]]] = {}
        for name, log in self._history.items():
            kept = [entry for entry in log if entry[0] > floor]
            if kept:
                history[name] = kept
        self._history = history
        self._entries = sum(map(len, history.values()))
        self._entries_limit = max(_HISTORY, 2 * self._entries)
        self._bytes = sum(before.size for log in history.values() for _, before in log if before is not None)
        self._bytes_limit = max(_HISTORY_BYTES, 2 * self._bytes)


_HISTORY = 64  # entries that are not worth forgetting
_HISTORY_BYTES = 64 * 1024
_MASK = (1 << 64) - 1


def _mark(resource: Resource | None) -> int:
    """What `resource` adds to its group's fingerprint."""
    if resource is None:
        return 0
    return int.from_bytes(hashlib.blake2b(f"{resource.version} {resource.name}".encode(), digest_size=8).digest(), "big")


class Assignment(msgspec.Struct, frozen=True, eq=False):
    """What a proxy gets: by type URL, the groups whose union it may subscribe to. `name` shows in `xds proxies` as its class."""

    name: str
    groups: dict[str, tuple[Group, ...]]


class Assignable(Protocol):
    """The server's side of one stream, to whoever decides what it gets."""

    node: Any  # pb.Node without its extensions; metadata as a dict is node_metadata
    node_metadata: dict[str, Any]
    peer_identity: str  # verified SPIFFE ID, empty on plaintext
    pieces: bool  # whether it can be sent a route table's virtual hosts one by one: an aggregated Delta stream

    def assign(self, assignment: Assignment) -> None:
        """The stream's groups are these from now on; it sends what differs."""


class Provider(Protocol):
    """Decides what each stream gets. The server calls it on the event loop's thread."""

    async def prepare(self, stream: Assignable) -> None:
        """Called before `open`, for what that needs and takes long: it may leave the loop to others."""

    def open(self, stream: Assignable) -> Assignment:
        """The first assignment of a new stream. ProtocolError refuses it. Later ones go through `stream.assign`."""

    def close(self, stream: Assignable) -> None:
        """The stream has ended; called once for each `open`."""
