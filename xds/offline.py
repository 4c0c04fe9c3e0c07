"""What a proxy would get, worked out from files without a server: the same sources, model and translation, run once."""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from xds import flow
from xds.discovery.client import node
from xds.discovery.resources import Resource
from xds.envoy.classes import Classes
from xds.envoy.translation import Workload
from xds.mesh.store import Mesh
from xds.mesh.workloads import claim
from xds.objects.meta import Ref
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


async def dump(
    files: Sequence[Path], workload: str, type_urls: Sequence[str], *, why: bool
) -> dict[str, list[tuple[Resource, tuple[str, ...]]]]:
    """The resources of `type_urls` for `workload` (`pod.namespace`, or a node id), each with the objects behind it if `why`."""
    mesh = await load(files)
    who = node(workload)
    claimed = claim(who["id"], who["metadata"])
    assignment, feeds = Classes(mesh).dump(claimed)
    client = mesh.client(claimed)
    called = mesh.inbound.node(client)
    others = {ref for ref in mesh.sidecars[client.namespace] if ref != mesh.sidecar(client.namespace, client.labels)}
    found: dict[str, list[tuple[Resource, tuple[str, ...]]]] = {}
    for type_url in type_urls:
        found[type_url] = []
        for group in assignment.groups.get(type_url, ()):
            for resource in group.resources.values():
                source = feeds[group.name].sources(resource.name)
                # The inbound side is made from a value, the ports that the workload is called at, so what that was made from counts.
                behind = [] if source is None else [source, called] if isinstance(source.args[0], Workload) else [source]
                found[type_url].append((resource, objects_behind(behind, others) if why else ()))
    return found


def objects_behind(sources: Iterable[flow.Node], but: Collection[Ref] = ()) -> tuple[str, ...]:
    """The objects that derived values were made from, by name, sorted: what they read that exists. `but` were read and had no effect."""
    read = (node for source in sources for node in source.why() if node.owner.name == "objects" and node.value is not None)
    return tuple(sorted({str(node.args[0]) for node in read if node.args[0] not in but}))
