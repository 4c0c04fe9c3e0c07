"""Directories and files that are followed: what is in them, and what is said to change.

Events may be lost, and do not tell of what a symlink points to: whoever follows a directory looks at `present` after each, and now
and then without one. A file has changed where its signature differs, or where an event named it: two writes may fall into one tick of
the file system's clock.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

from watchfiles import awatch

from xds.errors import ConfigError

STEP_MS = 10  # a save is taken so long after the last write
GROUP_MS = 100  # but no later than this after the first, where writes go on and on

Signature = tuple[int, int, int, int]  # of a file: device, inode, size, last change (also of its permissions) in ns


async def changes(paths: Sequence[str], recursive: bool, pause: float) -> AsyncIterator[set[str]]:
    """What events name, as absolute paths, from the first time when the watch has begun; nothing every `pause` seconds.

    Begins anew where a directory was replaced by another of its name.
    """
    while True:
        identities = [_identity(path) for path in paths]
        if None in identities:
            await asyncio.sleep(pause / 5)
            continue
        stop = asyncio.Event()
        events = awatch(
            *paths,
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
            yield {absolute(path) for _, path in events_of}
            if [_identity(path) for path in paths] != identities:
                stop.set()


def places(roots: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
    """What to watch for `roots`, and whether with all below it. A file is watched by its directory: saving may replace it."""
    directories: list[str] = []
    parents: set[str] = set()
    for root in roots:
        path = Path(root)
        if not path.exists():
            raise ConfigError(root, "no such file or directory")
        if path.is_dir():
            directories.append(root)
        else:
            parents.add(str(path.parent))
    if directories:
        yield directories, True
    if parents:
        yield sorted(parents), False


def present(roots: Iterable[str], suffixes: tuple[str, ...]) -> tuple[dict[str, Signature], list[str]]:
    """The files to read, below directories those with one of `suffixes`, and the places that can't be looked into.

    What was known below the latter is neither there nor gone.
    """
    found: dict[str, Signature] = {}
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
            if path in roots:
                hidden.append(path)
        except OSError:
            hidden.append(path)
    return found, hidden


def _is_wanted(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    return not entry.name.startswith(".") and (entry.name.endswith(suffixes) or entry.is_dir())


def absolute(path: str) -> str:
    """`path` from the root, as events name it."""
    return str(Path(path).absolute())


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
