"""Files and directories that are followed: what is in them, and when it may have changed.

Events may be lost, and do not tell of what a symlink points to: whoever follows a directory looks at it after each, and now
and then without one. A file has changed where its signature differs, or where an event named it: two writes may fall into one tick of
the file system's clock.
"""

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from watchfiles import awatch

from xds.errors import ConfigError

STEP_MS = 10  # a save is taken so long after the last write
GROUP_MS = 100  # but no later than this after the first, where writes go on and on
ABSENT_SECONDS = 0.5  # a directory that is not there is looked for so often

_Signature = tuple[int, int, int, int]  # of a file: device, inode, size, last change (also of its permissions) in ns


class Followed:
    """The files `paths`, and those with one of `suffixes` below the directories `paths`, but for hidden ones (`.git`).

    Files go by what `paths` say: relative where those are. All are looked at every `rescan_seconds`, in case no event told of a change.
    """

    def __init__(self, paths: Sequence[Path], suffixes: tuple[str, ...], rescan_seconds: float) -> None:
        self.roots = sorted({str(path) for path in paths})
        self._suffixes = suffixes
        self._rescan_seconds = rescan_seconds
        self._signatures: dict[str, _Signature] = {}  # of the files that were there at the last look
        self._named: set[str] = set()  # what events have named since the last look: absolute paths
        self._wake = asyncio.Event()

    def check(self) -> None:
        """ConfigError where one of the paths does not exist."""
        _places(self.roots)

    async def follow(self, take: Callable[[], Awaitable[float | None]], taken: Callable[[], None] = lambda: None) -> None:
        """Call `take` at once (then `taken`), and whenever files may have changed, until cancelled. ConfigError as `check`.

        It returns the time, as `time.monotonic` tells it, at which it is to be called again in any case.
        """
        where = _places(self.roots)
        async with asyncio.TaskGroup() as tasks:
            for directory, recursive in where.items():
                tasks.create_task(self._watch(directory, recursive))
            await asyncio.sleep(0)  # the watches begin before the first look, so that no change falls between
            due = await take()
            taken()
            while True:
                pause = self._rescan_seconds if due is None else max(0.0, due - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                self._wake.clear()
                due = await take()

    async def look(self) -> tuple[list[str], list[str]]:
        """The files that have changed since the last look, or are new, and those that are gone; sorted both.

        What is below a directory that can't be looked into is neither.
        """
        named, self._named = self._named, set()
        there, hidden = await asyncio.to_thread(_present, self.roots, self._suffixes)
        before = self._signatures
        changed = [p for p in sorted(there) if before.get(p) != there[p] or (named and _absolute(p) in named)]
        away = sorted(before.keys() - there.keys())
        gone = [p for p in away if not any(p == place or p.startswith(place + os.sep) for place in hidden)]
        self._signatures = {**{p: before[p] for p in away if p not in gone}, **there}
        return changed, gone

    async def _watch(self, directory: str, recursive: bool) -> None:
        """Note what events name."""
        async for changed in changes(directory, recursive, self._rescan_seconds):
            self._named |= changed
            self._wake.set()


async def changes(directory: str, recursive: bool, pause: float) -> AsyncIterator[set[str]]:
    """What events in a directory name, as absolute paths, from the first time when the watch has begun; nothing every `pause` seconds.

    Begins anew where the directory was replaced by another of its name.
    """
    while True:
        identity = _identity(directory)
        if identity is None:
            await asyncio.sleep(ABSENT_SECONDS)
            continue
        stop = asyncio.Event()
        events = awatch(
            directory,
            watch_filter=None,
            debounce=GROUP_MS,
            step=STEP_MS,
            rust_timeout=int(pause * 1000),
            yield_on_timeout=True,
            stop_event=stop,
            recursive=recursive,
        )
        yield set()  # what changed before the watch had begun
        async for events_of in events:
            yield {_absolute(path) for _, path in events_of}
            if _identity(directory) != identity:
                stop.set()


def _places(roots: Iterable[str]) -> dict[str, bool]:
    """The directories to watch for `roots`, and whether with all below them. A file is watched by its directory: saving may replace it."""
    found: dict[str, bool] = {}
    for root in roots:
        path = Path(root)
        if not path.exists():
            raise ConfigError(root, "no such file or directory")
        if path.is_dir():
            found[root] = True
        else:
            found.setdefault(str(path.parent), False)
    return found


def _present(roots: Iterable[str], suffixes: tuple[str, ...]) -> tuple[dict[str, _Signature], list[str]]:
    """The files to read, below directories those with one of `suffixes`, and the places that can't be looked into.

    What was known below the latter is neither there nor gone.
    """
    found: dict[str, _Signature] = {}
    hidden: list[str] = []
    entered: set[tuple[int, int]] = set()  # a symlink may lead back
    todo = list(roots)
    while todo:
        path = todo.pop()
        try:
            status = Path(path).stat()
            if stat.S_ISREG(status.st_mode):  # a pipe or socket would be read for ever
                found[path] = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
            elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in entered:
                entered.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    todo += [entry.path for entry in entries if _is_wanted(entry, suffixes)]
        except FileNotFoundError:
            pass
        except OSError:
            hidden.append(path)
    # One that is moved away meanwhile is missing what was below it first.
    hidden += [root for root in roots if _identity(root) is None]
    return found, hidden


def _is_wanted(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    return not entry.name.startswith(".") and (entry.name.endswith(suffixes) or entry.is_dir())


def _absolute(path: str) -> str:
    """`path` from the root, as events name it."""
    return str(Path(path).absolute())


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
