"""What a proxy would get, worked out from files without a server: the same sources, model and translation, run once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from xds.discovery.client import node
from xds.envoy.classes import Classes
from xds.mesh.store import Mesh
from xds.mesh.workloads import claim
from xds.reasons import Explained, explained
from xds.sources.changes import Change
from xds.sources.files import Files


class _Load:
    """A sink that waits for the first full sync."""

    def __init__(self) -> None:
        self.mesh = Mesh()
        self.done = asyncio.Event()

    def apply(self, changes: Sequence[Change]) -> None:
        self.mesh.apply(changes)

    def synced(self) -> None:
        self.done.set()


async def load(files: Sequence[Path]) -> Mesh:
    """The mesh that the files describe. ConfigError where one of them can't be read."""
    sink = _Load()
    async with asyncio.TaskGroup() as tasks:
        source = tasks.create_task(Files(files).run(sink))
        waiting = tasks.create_task(sink.done.wait())
        await asyncio.wait({source, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        source.cancel()
    return sink.mesh


async def dump(files: Sequence[Path], workload: str, type_urls: Sequence[str]) -> tuple[Explained, list[str]]:
    """The resources of `type_urls` for `workload` (`pod.namespace`, or a node id), each with the objects behind it, and what is wrong."""
    mesh = await load(files)
    who = node(workload)
    found = explained(Classes(mesh), claim(who["id"], who["metadata"]), type_urls)
    return found, [f"{problem['object']}: {problem['problem']}" for problem in mesh.problems()]
