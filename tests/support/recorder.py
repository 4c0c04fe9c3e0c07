"""A sink that writes down what a source delivers, and the running of a source and of asynchronous tests."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

from xds.errors import Problem
from xds.objects.meta import Ref
from xds.sources.changes import Change, Source

P = ParamSpec("P")


def asynchronous(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """A test that is a coroutine, run in an event loop of its own; five minutes are the longest it may take."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(300):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run


class Recorder:
    """What a source has delivered: `objects` as they are now, `problems` of those that have some, and every step."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Any] = {}
        self.problems: dict[Ref, tuple[Problem, ...]] = {}
        self.steps: list[list[Change]] = []
        self.synced_after: int | None = None  # the number of steps before `synced`

    def apply(self, changes: Sequence[Change]) -> None:
        self.steps.append(list(changes))
        for change in changes:
            self.problems.pop(change.ref, None)
            if change.problems:
                self.problems[change.ref] = change.problems
            if change.object is not None:
                self.objects[change.ref] = change.object
            elif not change.problems:
                self.objects.pop(change.ref, None)

    def synced(self) -> None:
        assert self.synced_after is None, "synced twice"
        self.synced_after = len(self.steps)

    @property
    def changes(self) -> list[Change]:
        """All changes, in order."""
        return [change for step in self.steps for change in step]

    def changes_of(self, ref: Ref) -> list[Change]:
        return [change for change in self.changes if change.ref == ref]

    async def until(self, condition: Callable[["Recorder"], Any], what: str, seconds: float = 60) -> Any:
        """What `condition` returns once that is true; fails when it is not within `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := condition(self)):
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            await asyncio.sleep(0.005)
        return value


@asynccontextmanager
async def following(source: Source, *, synced: bool = True) -> AsyncIterator[Recorder]:
    """`source`, running until the block ends, and what it delivers; entered when it has `synced`."""
    recorder = Recorder()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(source.run(recorder))
        try:
            if synced:
                await recorder.until(lambda seen: seen.synced_after is not None, "the source to be synced")
            yield recorder
        finally:
            running.cancel()
