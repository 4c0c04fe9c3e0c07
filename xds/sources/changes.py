"""What every source of objects yields, wherever it reads them from."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from xds.errors import Problem
from xds.objects import Object
from xds.objects.meta import Ref


class Change(msgspec.Struct, frozen=True):
    """One object was added or changed (`object`), deleted (neither), or is unusable (`problems` with an error and no object).

    An unusable object keeps its last good version in force. Problems beside an object are warnings. What has not even a name, such
    as a file that is not YAML, goes by a ref of its own, of kind `File`.
    """

    ref: Ref
    object: Object | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def invalid(self) -> bool:
        return self.object is None and bool(self.problems)


class Sink(Protocol):
    """Takes changes, in order, from the event loop's thread. Both methods return quickly and never block."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Take `changes` as one step: nothing is served from half of it."""

    def synced(self) -> None:
        """The source has delivered everything that existed when it started; called once."""


class Source(Protocol):
    """A place that objects come from."""

    async def run(self, sink: Sink) -> None:
        """Deliver changes until cancelled. Transient failures are retried inside; ConfigError means that it can never work."""


class Differences:
    """Passes on to a sink what differs from what was passed on before; `known` is the last change of each object that exists."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.known: dict[Ref, Change] = {}

    def apply(self, changes: Iterable[Change]) -> int:
        """Pass on those of `changes` that change something, as one step; returns how many."""
        news = []
        for change in changes:
            if change.object is None and not change.problems:
                if self.known.pop(change.ref, None) is not None:
                    news.append(change)
            elif self.known.get(change.ref) != change:
                self.known[change.ref] = change
                news.append(change)
        if news:
            self._sink.apply(news)
        return len(news)
