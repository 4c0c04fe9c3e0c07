"""The running control plane: sources feed the mesh, the mesh feeds groups of resources, groups feed streams.

Everything here happens on one event loop. Changes are written into the graph as they come, which only marks what depends on them. One
task settles the graph and brings the groups up to date: at once after the first change, and then, while the pushes of the last
step are still being written, not again until they are; what came meanwhile is one step. So a lone change is as fast as it can be,
and a storm of them costs one push at a time.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from xds import flow
from xds.collector import Collector
from xds.discovery.layers import Gives, Layers
from xds.discovery.raw import RawResources
from xds.discovery.resources import Assignable, Assignment
from xds.discovery.server import Server
from xds.envoy.classes import Classes, claim_of
from xds.mesh.store import Mesh
from xds.mesh.workloads import Claim
from xds.sources.changes import Change, Source

log = structlog.get_logger()

SLICE_SECONDS = 0.02  # the longest that settling keeps the loop from its other work
WARM_UP_SECONDS = 2.0  # the longest that a start waits for what proxies have not asked for yet
HOUSEKEEPING_SECONDS = 5.0
RELEASE_SECONDS = 60.0  # groups that nobody uses are let go after one to two of these
COALESCE_SECONDS = 0.25  # the longest that a settled step waits for the writes of the one before


class Control:
    """The control plane: a `Sink` for its sources and the `Provider` of its server."""

    def __init__(self, sources: Sequence[Source], raw: RawResources | None = None) -> None:
        self._sources = sources
        self._raw = raw
        self.mesh = Mesh()
        self.classes = Classes(self.mesh)
        self.collector = Collector()
        self._provider: Gives = self.classes
        if raw is not None:
            self._provider = Layers(self.classes, raw) if sources else raw
        self.ready = asyncio.Event()
        self.waiting: set[str] = set()  # servers of ours that do not answer yet; the process is not ready before they do
        self._synced = asyncio.Event()
        self._building = asyncio.Lock()
        self.server: Server | None = None
        self._changed = asyncio.Event()
        self._unsynced = len(sources)
        self.settled_at = 0.0  # time.monotonic() of the last settled step

    # Sink

    def apply(self, changes: Sequence[Change]) -> None:
        """Take `changes` into the mesh, and have them settled soon."""
        for change in changes:
            for problem in change.problems:
                level = log.info if problem.warning else log.warning
                level("resource.invalid" if change.invalid else "resource.suspect", ref=str(change.ref), problem=str(problem))
        self.mesh.apply(changes)
        self._changed.set()

    def synced(self) -> None:
        """One source has delivered what existed at its start. The last one's word opens the server."""
        self._unsynced -= 1
        if self._unsynced <= 0:
            self._synced.set()
            log.info("sources.synced")

    async def problems(self) -> list[dict[str, Any]]:
        """What is wrong with objects, and with resources written by hand, for people. Leaves the loop to others meanwhile."""
        found: list[dict[str, Any]] = []
        await _in_slices(self.mesh.examine(found))
        return [*found, *(self._raw.problems() if self._raw is not None else ())]

    # Provider

    async def prepare(self, stream: Assignable) -> None:
        """Work out what a new stream will get, leaving the loop to others meanwhile: a new view of the mesh may take a second."""
        if self._sources:
            await self._prepare(claim_of(stream))

    def open(self, stream: Assignable) -> Assignment:
        """What a new stream gets: of the mesh, if there is one, and of the resources written by hand."""
        return self._provider.open(stream)

    def close(self, stream: Assignable) -> None:
        """A stream has ended."""
        self.collector.ended()
        self._provider.close(stream)

    async def run(self) -> None:
        """Run the sources and keep the groups up to date until cancelled."""
        if self._raw is not None:
            await self._raw.load()
        if not self._sources:
            self.synced()
        async with asyncio.TaskGroup() as tasks:
            for source in self._sources:
                tasks.create_task(source.run(self))
            if self._raw is not None:
                tasks.create_task(self._raw.follow())
            tasks.create_task(self._settle())
            tasks.create_task(self._keep_house())

    async def _prepare(self, claimed: Claim) -> None:
        async with self._building:  # one at a time: the others find it done
            await _in_slices(self.classes.prepare(claimed))

    async def _warm_up(self) -> None:
        """Build what most proxies of each namespace are going to ask for: when they come, they come all at once."""
        until = time.monotonic() + WARM_UP_SECONDS
        for namespace in self.mesh.populated():
            claimed = Claim("sidecar", "", namespace)
            await self._prepare(claimed)
            self.classes.keep(claimed)
            if time.monotonic() > until:
                break

    async def _keep_house(self) -> None:
        """What can wait for a quiet moment."""
        await self.ready.wait()
        released_at = time.monotonic()
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            now = time.monotonic()
            quiet = now - self.settled_at > 1 and (self.server is None or not self.server.busy)
            self.collector.collect(quiet=quiet)
            if now - released_at > RELEASE_SECONDS:
                released_at = now
                self.classes.release()
                self._changed.set()  # the next step sweeps what it let go of

    async def _settle(self) -> None:
        await self._synced.wait()
        await self._warm_up()
        self.collector.settle_down()
        self._changed.set()
        self.ready.set()
        log.info("control.ready")
        while True:
            await self._changed.wait()
            self._changed.clear()
            await _in_slices(self.classes.settle())
            self.classes.flush()
            if not self._building.locked():  # what is being prepared has no readers yet
                self.mesh.sweep()
            self._report_errors()
            self.settled_at = time.monotonic()
            if self.server is not None:
                await self.server.written(timeout=COALESCE_SECONDS)

    def _report_errors(self) -> None:
        for node, error in self.classes.new_errors():
            log.error("translation.failed", what=repr(node), error=repr(error), note="the last good version stays in force")


async def _in_slices(steps: Iterator[None]) -> None:
    """Go through `steps`, leaving the loop to others in between."""
    pause = time.monotonic() + SLICE_SECONDS
    for _ in steps:
        if time.monotonic() > pause:
            await asyncio.sleep(0)
            pause = time.monotonic() + SLICE_SECONDS


def errors(graph: flow.Graph) -> list[dict[str, Any]]:
    """The derived values that fail now, for `/debug/errors`."""
    return [{"value": repr(node), "error": repr(error)} for node, error in graph.errors()]
