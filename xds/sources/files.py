"""Objects from YAML and JSON files: whole directories and single files, followed as they change.

Where two files have the same object, the first in sorted order counts, and a warning names both. What is gone from all files is
deleted only when it has stayed away for a moment: editors empty a file before they fill it, or move it away before they write the
new one, and an object can move to another file. A document that cannot be read takes nothing away: what its file said last stays
in force, and the rest of the file is used.
"""

import asyncio
import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog
from watchfiles import awatch

from xds.errors import ConfigError, Problem
from xds.objects.decoding import Decoded, from_yaml
from xds.objects.documents import parts
from xds.sources.changes import Differences, Sink
from xds.sources.claims import Claims

log = structlog.get_logger()

SUFFIXES = (".yaml", ".yml", ".json")
STEP_MS = 10  # a save is taken so long after the last write
GROUP_MS = 100  # but no later than this after the first, where writes go on and on
RESCAN_SECONDS = 5.0  # all files are looked at so often, in case no event told of a change
VANISH_SECONDS = 0.04  # what is gone from all files for so long is deleted

Signature = tuple[int, int, int, int]  # of a file: device, inode, size, last change (also of its permissions) in ns


class _File(msgspec.Struct):
    """A file as last read. `parts` are its documents' texts, each with the lines before it and what it says."""

    signature: Signature
    content: bytes | None = None  # None where it could not be read
    parts: dict[str, tuple[int, list[Decoded]]] = {}
    documents: list[Decoded] = []


class Files:
    """A `Source`: the files `paths`, and the YAML and JSON files below the directories `paths`, but for hidden ones (`.git`).

    Problems name files as `paths` do: relative where those are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._roots = sorted({str(path) for path in paths})
        self._files: dict[str, _File] = {}
        self._claims = Claims(VANISH_SECONDS)
        self._named: set[str] = set()  # what events have named since the last look: absolute paths
        self._wake = asyncio.Event()

    async def run(self, sink: Sink) -> None:
        """Deliver changes until cancelled. ConfigError where one of the paths does not exist."""
        objects = Differences(sink)
        places = list(_places(self._roots))
        async with asyncio.TaskGroup() as tasks:
            for paths, recursive in places:
                tasks.create_task(self._watch(paths, recursive))
            await asyncio.sleep(0)  # the watches begin before the first look, so that no change falls between
            await self._look(objects)
            sink.synced()
            while True:
                await self._next_event()
                await self._look(objects)

    async def _watch(self, paths: Sequence[str], recursive: bool) -> None:
        """Note what events name. Begins anew where a directory was replaced by another of its name."""
        while True:
            identities = [_identity(path) for path in paths]
            if None in identities:
                await asyncio.sleep(RESCAN_SECONDS / 5)
                continue
            stop = asyncio.Event()
            events = awatch(
                *paths,
                watch_filter=None,
                debounce=GROUP_MS,
                step=STEP_MS,
                rust_timeout=int(RESCAN_SECONDS * 1000),
                yield_on_timeout=True,
                stop_event=stop,
                recursive=recursive,
            )
            self._wake.set()  # what changed before the watch had begun
            async for changes in events:
                self._named.update(map(_absolute, (path for _, path in changes)))
                self._wake.set()
                if [_identity(path) for path in paths] != identities:
                    stop.set()

    async def _next_event(self) -> None:
        """Return when files may have changed, or when a deletion is due."""
        pause = RESCAN_SECONDS if self._claims.due is None else max(0.0, self._claims.due - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake.wait()
        self._wake.clear()

    async def _look(self, objects: Differences) -> None:
        """Read the files that have changed, and pass on what this changes, as one step."""
        named, self._named = self._named, set()
        present, hidden = await asyncio.to_thread(_present, self._roots)
        for path in sorted(present.keys() | self._files.keys()):
            signature = present.get(path)
            if signature is not None:
                file = self._files.get(path)
                if file is None or file.signature != signature or (named and _absolute(path) in named):
                    await self._read(path, signature)
            elif not any(path == place or path.startswith(place + os.sep) for place in hidden):
                self._files.pop(path)
                self._claims.replace(path, ())
        objects.apply(self._claims.settle(time.monotonic()))

    async def _read(self, path: str, signature: Signature) -> None:
        """Take a file as it is now."""
        before = self._files.get(path)
        try:
            file = await asyncio.to_thread(_parse, path, signature, before)
        except FileNotFoundError:
            return  # it went just now: the next look will tell
        self._files[path] = file
        if before is None or file.documents is not before.documents:
            self._claims.replace(path, file.documents)
            ignored = sorted({problem.reason for d in file.documents if d.ref is None for problem in d.problems if problem.warning})
            if ignored:
                log.info("documents.ignored", path=path, reasons=ignored)


def _places(roots: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
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


def _parse(path: str, signature: Signature, before: _File | None) -> _File:
    """The file as it is now. Documents that it had `before` are not parsed again; with the same content, `documents` is the same list."""
    before = before or _File(signature)
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as e:
        return _File(signature, documents=[Decoded(problems=(Problem("$", f"cannot be read: {e.strerror}", path),))])
    except UnicodeDecodeError as e:
        return _File(signature, content, documents=[Decoded(problems=(Problem("$", f"not UTF-8: {e}", path),))])
    if content == before.content:
        return _File(signature, content, before.parts, before.documents)
    file = _File(signature, content)
    for line, part in parts(text):
        if part in before.parts:
            old_line, said = before.parts[part]
            said = [_moved(document, line - old_line) for document in said]
        else:
            said = from_yaml(part, path, line)
        file.parts[part] = line, said
        file.documents += said
    return file


def _moved(document: Decoded, lines: int) -> Decoded:
    """The same, so many lines further down in its file."""
    if lines == 0:
        return document

    def move(where: str) -> str:
        path, _, line = where.rpartition(":")
        return f"{path}:{int(line) + lines}"

    problems = tuple(dataclasses.replace(problem, where=move(problem.where)) for problem in document.problems)
    return msgspec.structs.replace(document, problems=problems, where=move(document.where))


def _present(roots: Iterable[str]) -> tuple[dict[str, Signature], list[str]]:
    """The files to read, and the places that can't be looked into: what was known below them is neither there nor gone."""
    present: dict[str, Signature] = {}
    hidden: list[str] = []
    entered: set[tuple[int, int]] = set()  # a symlink may lead back
    todo = list(roots)
    while todo:
        path = todo.pop()
        try:
            status = Path(path).stat()
            if not stat.S_ISDIR(status.st_mode):
                present[path] = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
            elif (status.st_dev, status.st_ino) not in entered:
                entered.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    todo += [entry.path for entry in entries if _is_wanted(entry)]
        except FileNotFoundError:
            if path in roots:
                hidden.append(path)
        except OSError:
            hidden.append(path)
    return present, hidden


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and (entry.name.endswith(SUFFIXES) or entry.is_dir())


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
