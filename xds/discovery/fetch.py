"""One answer without a stream: the unary `Fetch` methods, and REST (X13).

Each request carries the node, and the version that the client has. Nothing is remembered between two of them.
"""

from typing import Any

from xds import pb
from xds.discovery.protocol import Responses, SotwSession
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignment, Provider
from xds.discovery.stream import introduced
from xds.errors import ProtocolError

KINDS = {
    "clusters": t.CLUSTER, "endpoints": t.ENDPOINTS, "listeners": t.LISTENER, "routes": t.ROUTE, "scoped-routes": t.SCOPED_ROUTE,
    "secrets": t.SECRET, "runtime": t.RUNTIME, "extension_configs": t.EXTENSION,
}  # fmt: skip


class Caller:
    """Whoever asks once, to a provider. What it is assigned later it never learns."""

    def __init__(self, node: Any, metadata: dict[str, Any], peer_identity: str) -> None:
        self.node = node
        self.node_metadata = metadata
        self.peer_identity = peer_identity
        self.pieces = False

    def assign(self, assignment: Assignment) -> None:
        """It is gone before anything changes."""


async def fetch(provider: Provider, responses: Responses, type_url: str, request: Any, peer_identity: str = "") -> bytes | None:
    """The DiscoveryResponse to `request`, serialised; None where the client has this version. ProtocolError where it is none."""
    if request.type_url not in {"", type_url}:
        raise ProtocolError("INVALID_ARGUMENT", f"this is for {type_url}, not {request.type_url}")
    caller = Caller(*introduced(request), peer_identity)
    await provider.prepare(caller)
    session = SotwSession(responses, lambda: None, type_url)
    session.assign(provider.open(caller))
    try:
        session.receive(pb.DiscoveryRequest(type_url=type_url, resource_names=request.resource_names))
        response = session.due(0.0)
    finally:
        session.close()
        provider.close(caller)
    if response is None or response.after.version == request.version_info != "":
        return None
    return response.data
