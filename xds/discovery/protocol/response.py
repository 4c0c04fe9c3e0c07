"""Encoded responses, one for all streams that need the same."""

from collections import deque
from collections.abc import Hashable, Mapping
from functools import cached_property
from weakref import WeakValueDictionary

from xds.discovery import wire
from xds.discovery.protocol.knowledge import ABSENT, Known
from xds.discovery.protocol.subscription import Names
from xds.discovery.protocol.types import TypeRules
from xds.discovery.resources import Resource

RECENT_BYTES = 64 * 1024 * 1024


class Response:
    """One response, as the bytes that go out, and what sending it means.

    It lives while a stream waits for its acknowledgement, and so do its bytes; streams that need the same meanwhile share it.
    """

    def __init__(
        self, rules: TypeRules, sequence: int, nonce: str, data: bytes, resources: tuple[Resource, ...], removed: tuple[str, ...],
        count: int, before: Known, after: Known, only: Names | None,
    ) -> None:
        self.rules = rules
        self.sequence = sequence  # grows with every encoding
        self.nonce = nonce
        self.data = data
        self.resources = resources  # those the client does not have
        self.removed = removed
        self.count = count  # of all resources in it
        self.before = before
        self.after = after
        self.only = only  # where it tries out a part of what was rejected
        self.heartbeat = False  # it tells resources to live on, and changes nothing
        self.accepted = False  # some client acknowledged it

    @cached_property
    def assignments(self) -> Names:
        """The load assignments that the clusters in it will wait for (D2)."""
        return frozenset(filter(None, (resource.assignment_name for resource in self.resources)))

    @cached_property
    def claims(self) -> Mapping[str, str]:
        """What a client holds that has taken it: name -> version, ABSENT of what it removes."""
        return {**{resource.name: resource.version for resource in self.resources}, **dict.fromkeys(self.removed, ABSENT)}

    @cached_property
    def expires(self) -> bool:
        """Whether something in it has a time to live."""
        return any(resource.ttl_ms for resource in self.resources)

    def accept(self) -> None:
        """Tell the groups that a client took what is in it. Only the first time means anything."""
        if not self.accepted:
            self.accepted = True
            for group in self.after.groups:
                group.accept(self.resources)


class Responses:
    """Makes and shares the responses of one server.

    A response is kept while some stream waits for its acknowledgement, and beyond that, the last ones, up to `RECENT_BYTES`, until
    `forget`: proxies that connect at once, or are told of one change, do not all do so in the same moment.

    Nonces are `<instance>-<sequence>`: those of another server, or of the one before a restart, are never taken for ours
    (V6), and on one stream they only grow.
    """

    def __init__(self, control_plane: str, instance: str) -> None:
        self.instance = instance
        self.delta_identity = wire.field(7, wire.field(1, control_plane))  # `control_plane`, encoded
        self.sotw_identity = wire.field(6, wire.field(1, control_plane))
        self.encoded = 0  # how many responses were encoded; what streams shared is not counted again
        self._shared: WeakValueDictionary[Hashable, Response] = WeakValueDictionary()
        self._recent: deque[Response] = deque()
        self._recent_bytes = 0
        self._recent_since = 0  # the number encoded when `forget` was last asked

    def get(self, key: Hashable, after: int) -> Response | None:
        """The response shared under `key`, if its nonce is newer than `after`."""
        found = self._shared.get(key)
        return found if found is not None and found.sequence > after else None

    def next_nonce(self) -> tuple[int, str]:
        """A sequence number and nonce that were never used."""
        self.encoded += 1
        return self.encoded, self.nonce(self.encoded)

    def nonce(self, sequence: int) -> str:
        """The nonce of the response that was encoded as number `sequence`, from 1."""
        return f"{self.instance}-{sequence}"

    def share(self, key: Hashable, response: Response) -> None:
        """Give `response` to others that ask for `key`."""
        self._shared[key] = response
        self._recent.append(response)
        self._recent_bytes += len(response.data)
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft().data)

    def forget(self) -> None:
        """Let go of responses that nobody waits for, if none was encoded since this was last asked."""
        if self._recent_since == self.encoded and self._recent:
            self._recent.clear()
            self._recent_bytes = 0
        self._recent_since = self.encoded
