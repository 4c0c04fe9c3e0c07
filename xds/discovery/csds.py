"""ClientStatusDiscoveryService: what each connected proxy was sent, and what it said to it (X12).

A request that matches nodes is answered with every resource of theirs; one that matches all, with one line a type of each.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from xds import pb
from xds.discovery import matching
from xds.discovery.protocol import Watch
from xds.discovery.protocol.knowledge import everything
from xds.discovery.resources import Resource
from xds.discovery.status import readable, state
from xds.discovery.stream import Stream

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"

Request: Any = pb.message_class("envoy.service.status.v3.ClientStatusRequest")
Response: Any = pb.message_class("envoy.service.status.v3.ClientStatusResponse")


def answer(request: Any, streams: Iterable[Stream]) -> Any:
    """The ClientStatusResponse. ProtocolError where `request` matches nodes by what is no matcher."""
    means = matching.nodes(request.node_matchers)
    chosen = [stream for stream in streams if means(stream.node.id, stream.node_metadata)]
    chosen.sort(key=lambda stream: (stream.node.id, stream.connected))
    each, contents = bool(request.node_matchers), not request.exclude_resource_contents
    return Response(
        config=[
            {
                "node": stream.node,
                "generic_xds_configs": [
                    line for watch in stream.session.watches.values() for line in _lines(watch, each=each, contents=contents)
                ],
            }
            for stream in chosen
        ]
    )


def _lines(watch: Watch, *, each: bool, contents: bool) -> Iterator[dict[str, Any]]:
    error = {"details": readable(watch.rules.short, watch.error)} if watch.error else None
    if not each:
        status = {"NACK": "ERROR", "NOT SENT": "NOT_SENT"}.get(state(watch), state(watch))
        yield {
            "type_url": watch.rules.type_url,
            "version_info": watch.acked_version,
            "config_status": status,
            "error_state": error,
        }
        return
    under_way = {resource.name for response in watch.unacked for resource in response.resources}
    for resource in everything(watch.known.groups, watch.subscription):
        yield {
            "type_url": resource.type_url,
            "name": resource.name,
            "version_info": resource.version,
            "xds_config": _body(resource) if contents and watch.rules.short != "sds" else None,  # keys are nobody's business
            "config_status": _status(watch, resource, under_way),
            "error_state": error if resource.name in watch.rejected else None,
        }


def _status(watch: Watch, resource: Resource, under_way: set[str]) -> str:
    if resource.name in watch.rejected:
        return "ERROR"
    if watch.known.held(resource.name) != resource.version:
        return "NOT_SENT"
    return "STALE" if resource.name in under_way else "SYNCED"


def _body(resource: Resource) -> dict[str, Any]:
    return {"type_url": resource.type_url, "value": resource.body}
