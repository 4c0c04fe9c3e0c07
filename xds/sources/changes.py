"""What every source of objects yields, wherever it reads them from."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from xds.errors import Problem
from xds.objects import Object
from xds.objects.meta import Ref


class Change(msgspec.Struct, frozen=True):
    """One object was added or changed (`object`), deleted (neither), or is unusable (`problems` with an error and no object).

    An unusable object keeps its last good version in force. Problems beside an object are warnings.
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
