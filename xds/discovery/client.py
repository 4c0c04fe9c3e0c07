"""A small Delta ADS client: asks a server what a node gets, as Envoy would ask it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from xds import pb
from xds.discovery.resources import Resource
from xds.errors import ConfigError

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
LARGEST_MESSAGE = 256 * 1024 * 1024
QUIET_SECONDS = 0.3  # a wildcard is complete when nothing more has come for this long

CLUSTER, ENDPOINTS, LISTENER, ROUTES = map(
    pb.type_url, (pb.Cluster, pb.ClusterLoadAssignment, pb.Listener, pb.RouteConfiguration)
)


def node(workload: str) -> Mapping[str, Any]:
    """A node for `pod.namespace`, or for a whole node id (`sidecar~10.0.0.1~pod.namespace~namespace.svc.cluster.local`)."""
    if "~" in workload:
        parts = workload.split("~")
        namespace = parts[2].rpartition(".")[2] if len(parts) == 4 else ""
        return {"id": workload, "metadata": {"NAMESPACE": namespace}}
    name, _, namespace = workload.rpartition(".")
    if not name:
        raise ConfigError("--as", f"{workload!r} names no namespace: write pod.namespace")
    return {"id": f"sidecar~~{workload}~{namespace}.svc.cluster.local", "metadata": {"NAME": name, "NAMESPACE": namespace}}


async def fetch(server: str, workload: str, type_urls: Sequence[str], *, seconds: float = 20) -> dict[str, list[Resource]]:
    """The resources of `type_urls` that `server` (`host:port`) gives `workload`. ConfigError where it does not answer in time."""
    options = [("grpc.max_receive_message_length", LARGEST_MESSAGE)]
    try:
        async with asyncio.timeout(seconds), grpc.aio.insecure_channel(server, options=options) as channel:
            method = channel.stream_stream(
                METHOD,
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=pb.DeltaDiscoveryResponse.FromString,
            )
            return await _Conversation(method(), workload).run(type_urls)
    except (grpc.aio.AioRpcError, TimeoutError) as e:
        reason = e.details() if isinstance(e, grpc.aio.AioRpcError) else f"no answer within {seconds:.0f} s"
        raise ConfigError("--server", f"{server}: {reason}; is `xds serve` running there?") from e


class _Conversation:
    """Asks for clusters and listeners, then for what they name."""

    def __init__(self, call: Any, workload: str) -> None:
        self._call = call
        self._node: Any = node(workload)
        self._held: dict[str, dict[str, Resource]] = {}
        self._reading: asyncio.Future[Any] | None = None

    async def run(self, type_urls: Sequence[str]) -> dict[str, list[Resource]]:
        if CLUSTER in type_urls or ENDPOINTS in type_urls:
            await self._ask(CLUSTER, [])
        if ENDPOINTS in type_urls:
            await self._ask(ENDPOINTS, self._assignments())
        if LISTENER in type_urls or ROUTES in type_urls:
            await self._ask(LISTENER, [])
        if ROUTES in type_urls:
            await self._ask(ROUTES, self._route_tables())
        self._call.cancel()
        return {url: list(self._held.get(url, {}).values()) for url in type_urls}

    async def _ask(self, type_url: str, names: list[str]) -> None:
        if names or type_url in (CLUSTER, LISTENER):
            await self._call.write(pb.DeltaDiscoveryRequest(node=self._node, type_url=type_url, resource_names_subscribe=names))
            held = self._held.setdefault(type_url, {})
            missing = set(names)
            while await self._take(type_url, held, missing):
                if names and not missing:
                    return

    async def _take(self, type_url: str, held: dict[str, Resource], missing: set[str]) -> bool:
        """Take in one response; False when the server has been quiet."""
        if self._reading is None:  # a read that is cancelled ends the call, so it outlives this wait
            self._reading = asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait({self._reading}, timeout=QUIET_SECONDS if held else None)
        if not done:
            return False
        response, self._reading = self._reading.result(), None
        if response is grpc.aio.EOF:
            raise ConfigError("--server", "the server ended the stream")
        await self._call.write(pb.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce))
        if response.type_url == type_url:
            for r in response.resources:
                held[r.name] = Resource(r.name, r.resource.type_url, r.version, r.resource.value)
            missing -= {r.name for r in response.resources} | set(response.removed_resources)
        return True

    def _assignments(self) -> list[str]:
        clusters = [pb.Cluster.FromString(r.body) for r in self._held[CLUSTER].values()]
        return [c.eds_cluster_config.service_name or c.name for c in clusters if c.type == pb.Cluster.EDS]

    def _route_tables(self) -> list[str]:
        names: dict[str, None] = {}
        for resource in self._held[LISTENER].values():
            listener = pb.Listener.FromString(resource.body)
            for chain in [*listener.filter_chains, listener.default_filter_chain]:
                for filter_ in chain.filters:
                    if filter_.typed_config.type_url == pb.type_url(pb.HttpConnectionManager):
                        manager = pb.HttpConnectionManager.FromString(filter_.typed_config.value)
                        if manager.HasField("rds"):
                            names[manager.rds.route_config_name] = None
        return list(names)
