"""What clients may hold though they do not say so (V10).

A client that rejects a response may have taken a part of it, and Envoy does not count that part among what it holds: after its stream
broke, `initial_resource_versions` lack it, or tell the version before. So of each stream that ends, what was not settled is
remembered for the next one of the same client: what it rejected and was not sent again, and what it had not answered.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from xds.discovery import wire
from xds.discovery.protocol.knowledge import ABSENT
from xds.discovery.protocol.subscription import Names

NAMES_MAX: Final = 100_000  # that are remembered of all clients together; those of the longest ago are forgotten first
STREAMS_MAX: Final = 4  # that are remembered of one client and type

Claims = Mapping[str, str]  # name -> version that was sent, ABSENT where its removal was


class Unsettled(NamedTuple):
    """What is not certain about one type on a stream that has ended."""

    rejected: Claims
    unanswered: tuple[Claims, ...]  # of each response, oldest first; shared by all streams that were sent it

    def doubtful(self, held: frozenset[bytes]) -> Names:
        """The names of which a client that returns with the entries `held` may hold something else.

        A version that it tells as held is certain. One that tells nothing is a new one, unless it has rejected something.
        """
        claims = dict(self.rejected)
        for each in self.unanswered if held else ():
            claims.update(each)
        return frozenset(name for name, sent in claims.items() if sent == ABSENT or wire.entry(name, sent) not in held)


Key = tuple[str, ...]  # whose, and of which type


class Memory:
    """What is unsettled of streams that have ended."""

    def __init__(self, names_max: int = NAMES_MAX) -> None:
        self.names = 0  # remembered; each stream counts as one more
        self._names_max = names_max
        self._kept: OrderedDict[Key, list[Unsettled]] = OrderedDict()
        self._uses: Counter[int] = Counter()  # of each mapping, by its id

    def keep(self, key: Key, unsettled: Unsettled) -> None:
        """A stream has ended with this."""
        self._count(unsettled, 1)
        kept = self._kept.setdefault(key, [])
        kept.append(unsettled)
        self._kept.move_to_end(key)
        if len(kept) > STREAMS_MAX:
            self._count(kept.pop(0), -1)
        while self.names > self._names_max:
            self.take(next(iter(self._kept)))

    def take(self, key: Key) -> Sequence[Unsettled]:
        """What is remembered under `key`, and is no longer."""
        found = self._kept.pop(key, ())
        for unsettled in found:
            self._count(unsettled, -1)
        return found

    def _count(self, unsettled: Unsettled, step: int) -> None:
        self.names += step
        for claims in (unsettled.rejected, *unsettled.unanswered):
            before = self._uses[id(claims)]
            self._uses[id(claims)] = after = before + step
            self.names += len(claims) * (bool(after) - bool(before))
            if not after:
                del self._uses[id(claims)]
