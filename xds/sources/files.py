"""Objects from YAML and JSON files: whole directories and single files, followed as they change.

Where two files have the same object, the first in sorted order counts, and a warning names both. What is gone from all files is
deleted only when it has stayed away for a moment: editors empty a file before they fill it, or move it away before they write the
new one, and an object can move to another file. A document that cannot be read takes nothing away: what its file said last stays
in force, and the rest of the file is used.
"""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from xds.errors import Problem
from xds.objects.decoding import Decoded, from_yaml
from xds.objects.documents import parts
from xds.sources.changes import Differences, Sink
from xds.sources.claims import Claims
from xds.sources.directories import Followed

log = structlog.get_logger()

SUFFIXES = (".yaml", ".yml", ".json")
RESCAN_SECONDS = 5.0  # all files are looked at so often, in case no event told of a change
VANISH_SECONDS = 0.04  # what is gone from all files for so long is deleted


class _File(msgspec.Struct):
    """A file as last read. `parts` are its documents' texts, each with the lines before it and what it says."""

    content: bytes | None = None  # None where it could not be read
    parts: dict[str, tuple[int, list[Decoded]]] = {}
    documents: list[Decoded] = []


class Files:
    """A `Source`: the files `paths`, and the YAML and JSON files below the directories `paths`, but for hidden ones (`.git`).

    Problems name files as `paths` do: relative where those are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._followed = Followed(paths, SUFFIXES, RESCAN_SECONDS)
        self._files: dict[str, _File] = {}
        self._claims = Claims(VANISH_SECONDS)

    async def run(self, sink: Sink) -> None:
        """Deliver changes until cancelled. ConfigError where one of the paths does not exist."""
        objects = Differences(sink)
        await self._followed.follow(lambda: self._take(objects), sink.synced)

    async def _take(self, objects: Differences) -> float | None:
        """Read the files that have changed, and pass on what this changes, as one step. Returns when a deletion is due."""
        changed, gone = await self._followed.look()
        for path in changed:
            await self._read(path)
        for path in gone:
            self._files.pop(path, None)
            self._claims.replace(path, ())
        objects.apply(self._claims.settle(time.monotonic()))
        return self._claims.due

    async def _read(self, path: str) -> None:
        """Take a file as it is now."""
        before = self._files.get(path)
        try:
            file = await asyncio.to_thread(_parse, path, before)
        except FileNotFoundError:
            return  # it went just now: the next look will tell
        self._files[path] = file
        if before is None or file.documents is not before.documents:
            self._claims.replace(path, file.documents)
            ignored = sorted({problem.reason for d in file.documents if d.ref is None for problem in d.problems if problem.warning})
            if ignored:
                log.info("documents.ignored", path=path, reasons=ignored)


def _parse(path: str, before: _File | None) -> _File:
    """The file as it is now. Documents that it had `before` are not parsed again; with the same content, `documents` is the same list."""
    before = before or _File()
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as e:
        return _File(documents=[Decoded(problems=(Problem("$", f"cannot be read: {e.strerror}", path),))])
    except UnicodeDecodeError as e:
        return _File(content, documents=[Decoded(problems=(Problem("$", f"not UTF-8: {e}", path),))])
    if content == before.content:
        return _File(content, before.parts, before.documents)
    file = _File(content)
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
