"""What memory is held for what: `/debug/memory`.

Python does not say who holds what, so this is worked out: sizes of objects are added up along their references, each once, and of the
many alike (the graph's nodes, the streams) a sample stands for all. What the allocator keeps and what gRPC holds for a connection
(about 44 KiB) is in `rss_bytes` alone.
"""

import sys
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from xds import flow
from xds.discovery.protocol import Responses
from xds.discovery.protocol.knowledge import Known
from xds.discovery.protocol.response import Response
from xds.discovery.protocol.subscription import Subscription
from xds.discovery.resources import Assignment, Group, Resource
from xds.discovery.server import Server
from xds.serving import Control

SAMPLE = 40  # of each kind of node, and of streams

_SHARED = (Group, Known, Response, Responses, Subscription, Assignment, Server, flow.Graph)
_ENDPOINT_KINDS = frozenset({"EndpointSlice", "Pod", "Node", "WorkloadEntry"})


def deep_size(value: Any, seen: set[int], apart: tuple[type, ...] = ()) -> int:
    """Bytes of `value` and what it refers to, without what is in `seen`, which grows, and without objects of the types `apart`."""
    total = 0
    todo = [value]
    while todo:
        item = todo.pop()
        if id(item) in seen or item is None or callable(item) or isinstance(item, apart):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, dict):
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
        elif isinstance(item, msgspec.Struct):
            todo += (getattr(item, name) for name in item.__struct_fields__)
            todo.append(getattr(item, "__dict__", None))
        elif not isinstance(item, (str, bytes, int, float)):
            todo += (getattr(item, name, None) for name in getattr(type(item), "__slots__", ()) if name != "__weakref__")
            todo.append(getattr(item, "__dict__", None))
    return total


def report(control: Control, server: Server) -> dict[str, Any]:
    """The answer to `/debug/memory`."""
    mesh = control.mesh
    nodes: dict[str, dict[str, int]] = {}
    of_services = of_endpoints = 0
    kinds: dict[str, dict[str, int]] = {}
    by_kind: dict[str, list[flow.Node]] = {}
    for node in mesh.objects.nodes.values():
        if node.value is not None:
            by_kind.setdefault(node.args[0].kind, []).append(node)
    for kind, found in by_kind.items():
        kinds[kind] = _estimate(found, len(found))
        if kind in _ENDPOINT_KINDS:
            of_endpoints += kinds[kind]["bytes"]
        elif kind == "Service":
            of_services += kinds[kind]["bytes"]
    for derived in mesh.derivations:
        size = nodes[derived.name] = _estimate(derived.nodes.values(), len(derived.nodes))
        names = derived.argument_names
        if "endpoint" in derived.name or "assignment" in derived.name:
            of_endpoints += size["bytes"]
        elif "hostname" in names:
            of_services += size["bytes"]
    services = len(mesh.all_services())
    endpoints = sum(len(item.endpoints) for node in by_kind.get("EndpointSlice", ()) for item in (node.value,))
    groups, held, of_classes = control.classes.sizes(partial(deep_size, apart=(Known, flow.Node)))
    of_streams = _estimate(server.streams, len(server.streams))["bytes"]
    return {
        **_process(),
        "gc": control.collector.pauses(),
        "services": _each(services, of_services),
        "endpoints": _each(endpoints, of_endpoints),
        "classes": _each(held, of_classes),
        "proxies": _each(len(server.streams), of_streams),
        "groups": groups,
        "objects": kinds,
        "nodes": nodes,
    }


def _each(count: int, size: int) -> dict[str, int]:
    return {"count": count, "bytes": size, "bytes_each": size // max(count, 1)}


def _estimate(items: Iterable[Any], count: int) -> dict[str, int]:
    """How many, and how large they are, going by some of them."""
    sample = list(islice(items, SAMPLE))
    size = 0
    for item in sample:
        if isinstance(item, flow.Node):
            links = sys.getsizeof(item) + sys.getsizeof(item.readers) + sys.getsizeof(item.sources)
            # A value that a node passes on from another is in that one's size.
            passed_on = any(source.value is item.value for source in item.sources)
            size += links + (0 if passed_on else deep_size(item.value, set(), (*_SHARED, flow.Node, Resource)))
        else:
            size += deep_size(item, set(), (*_SHARED, Resource))
    return {"count": count, "bytes": size * count // max(len(sample), 1)}


def _process() -> dict[str, int]:
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 for name, key in (("rss_bytes", "VmRSS"), ("peak_rss_bytes", "VmHWM"))}
