"""Envoy resources written by hand, as groups that follow the files they are in.

How they are written is told in `authored`. Files are followed one by one: a bad document harms only itself, and what it was before
stays. What is gone from all files is removed only when it has stayed away for a moment: editors empty a file before they fill it.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from xds.discovery.authored import ALL, SUFFIXES, Entry, Nodes, Parsed, parse
from xds.discovery.protocol.types import TYPES
from xds.discovery.resources import Assignable, Assignment, Group, Resource
from xds.errors import Problem
from xds.sources.directories import Followed

log = structlog.get_logger()

RESCAN_SECONDS = 2.0  # all files are looked at so often, in case no event told of a change
VANISH_SECONDS = 0.05  # what is gone from all files for so long is removed

Key = tuple[str, Nodes]  # of a group: type URL, and for whom


class _File(msgspec.Struct):
    """A file as last read."""

    parsed: Parsed
    entries: list[Entry] = []
    problems: list[Problem] = []


class RawResources:
    """The resources in files and below directories. Problems name files as `paths` do."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._followed = Followed(paths, SUFFIXES, RESCAN_SECONDS)
        self._files: dict[str, _File] = {}
        self._groups: dict[Key, Group] = {(url, ALL): Group(url, "resources") for url in TYPES}
        self._streams: set[Assignable] = set()
        self._vanished: dict[tuple[Key, str], float] = {}  # since when a resource is in no file
        self._rivals: set[tuple[str, str]] = set()  # places of entries that another place overrides, told already

    async def load(self) -> None:
        """Read everything. ConfigError where one of the paths does not exist."""
        self._followed.check()
        await self._take()

    async def follow(self) -> None:
        """Read what changes, until cancelled."""
        await self._followed.follow(self._take)

    def open(self, stream: Assignable) -> Assignment:
        """What a new stream gets of these resources."""
        self._streams.add(stream)
        return self.assignment(stream)

    def close(self, stream: Assignable) -> None:
        """The stream has ended."""
        self._streams.discard(stream)

    def assignment(self, stream: Assignable) -> Assignment:
        """The groups of the node behind `stream`, by type. What is for some nodes comes before what is for all."""
        groups: dict[str, tuple[Group, ...]] = {}
        for (url, nodes), group in sorted(self._groups.items(), key=lambda item: (item[0][1] == ALL, item[0][1].id, item[0][1].cluster)):
            if nodes.match(stream):
                groups[url] = (*groups.get(url, ()), group)
        return Assignment("resources", groups)

    def problems(self) -> list[dict[str, Any]]:
        """What is wrong with the files, for people, as the mesh says it of objects."""
        return [
            {"object": path, "problem": str(problem), "warning": problem.warning, "in_force": bool(self._files[path].entries)}
            for path in sorted(self._files)
            for problem in self._files[path].problems
        ]

    async def _take(self) -> float | None:
        """Read the files that have changed, and serve what they say now. Returns when a removal is due."""
        changed, gone = await self._followed.look()
        for path in changed:
            await self._read(path)
        for path in gone:
            self._files.pop(path, None)
        self._publish(time.monotonic())
        return min(self._vanished.values()) + VANISH_SECONDS if self._vanished else None

    async def _read(self, path: str) -> None:
        """Take a file as it is now; of a document that is bad, what it was before stays."""
        before = self._files.get(path)
        try:
            parsed = await asyncio.to_thread(parse, Path(path), None if before is None else before.parsed)
        except FileNotFoundError:
            return  # it went just now: the next look will tell
        file = self._files[path] = _File(parsed)
        for each in parsed.found:
            if isinstance(each, Problem):
                file.problems.append(each)
            else:
                file.entries.append(each)
        if file.problems and before is not None:
            # Which of the old ones a broken document was cannot be told: all that are not there anew stay.
            have = {entry.key for entry in file.entries}
            file.entries += [entry for entry in before.entries if entry.key not in have]
        for problem in file.problems:
            if before is None or problem not in before.problems:
                log.warning("resource.invalid", problem=str(problem))

    def _publish(self, now: float) -> None:
        wanted: dict[Key, dict[str, Resource]] = {}
        for entry in self._counting():
            wanted.setdefault((entry.resource.type_url, entry.nodes), {})[entry.resource.name] = entry.resource
        fresh = wanted.keys() - self._groups.keys()
        for key in fresh:
            self._groups[key] = Group(key[0], f"resources {key[1].id or key[1].cluster}".strip())
        for key, group in self._groups.items():
            group.update(self._changes(key, group, wanted.get(key, {}), now))
        if fresh:
            for stream in self._streams:
                stream.assign(self.assignment(stream))

    def _changes(self, key: Key, group: Group, wanted: dict[str, Resource], now: float) -> dict[str, Resource | None]:
        """What `group` is to take over; what is in no file any more only after a moment."""
        changed: dict[str, Resource | None] = {}
        for name, resource in wanted.items():
            self._vanished.pop((key, name), None)
            old = group.resources.get(name)
            if old is None or old != resource:
                changed[name] = resource
            elif old.content != resource.content:
                log.warning("resource.stale", name=name, version=resource.version, note="it changed, its `version` did not: not sent")
        for name in group.resources.keys() - wanted.keys():
            since = self._vanished.setdefault((key, name), now)
            if now >= since + VANISH_SECONDS:
                del self._vanished[key, name]
                changed[name] = None
        return changed

    def _counting(self) -> Iterator[Entry]:
        """The entries of all files; of several for one name, the first in the order of files and of documents counts."""
        first: dict[tuple[Nodes, str, str], Entry] = {}
        rivals = set()
        for path in sorted(self._files):
            for entry in self._files[path].entries:
                other = first.setdefault(entry.key, entry)
                if other is entry:
                    yield entry
                    continue
                rivals.add((other.where, entry.where))
                if (other.where, entry.where) not in self._rivals:
                    log.warning("resource.duplicate", name=entry.resource.name, where=entry.where, counts=other.where)
        self._rivals = rivals
