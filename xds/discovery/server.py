"""The xDS server: the protocol on grpc.aio.

Requests are parsed by protobuf, responses are bytes already. Every stream has one reader and one writer, and the server keeps an
eye on what they share: how many streams may start in a second, how many bytes wait for proxies to read, and which write takes
too long.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import msgspec
import structlog
from google.protobuf.message import DecodeError
from prometheus_client.registry import CollectorRegistry

from xds import pb
from xds.discovery import csds, load
from xds.discovery.budget import Budget
from xds.discovery.fetch import fetch
from xds.discovery.metrics import Metrics
from xds.discovery.protocol import DeltaRequest, DeltaSession, Memory, Responses, Session, SotwSession
from xds.discovery.protocol import types as t
from xds.discovery.resources import Provider
from xds.discovery.status import ProxyStatus, Rejection, rejections
from xds.discovery.stream import Stream, identity_of
from xds.errors import ConfigError, ProtocolError

log = structlog.get_logger()

TICK_SECONDS = 0.25  # how often deadlines are looked at

# service -> (type URL; empty: any, name in the methods, has state of the world)
_SERVICES = {
    "envoy.service.discovery.v3.AggregatedDiscoveryService": ("", "AggregatedResources", True),
    "envoy.service.cluster.v3.ClusterDiscoveryService": (t.CLUSTER, "Clusters", True),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": (t.ENDPOINTS, "Endpoints", True),
    "envoy.service.endpoint.v3.LocalityEndpointDiscoveryService": (t.LOCALITY_ENDPOINT, "LocalityEndpoints", False),
    "envoy.service.listener.v3.ListenerDiscoveryService": (t.LISTENER, "Listeners", True),
    "envoy.service.route.v3.RouteDiscoveryService": (t.ROUTE, "Routes", True),
    "envoy.service.route.v3.ScopedRoutesDiscoveryService": (t.SCOPED_ROUTE, "ScopedRoutes", True),
    "envoy.service.route.v3.VirtualHostDiscoveryService": (t.VIRTUAL_HOST, "VirtualHosts", False),
    "envoy.service.secret.v3.SecretDiscoveryService": (t.SECRET, "Secrets", True),
    "envoy.service.runtime.v3.RuntimeDiscoveryService": (t.RUNTIME, "Runtime", True),
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService": (t.EXTENSION, "ExtensionConfigs", True),
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the server puts up with."""

    request_bytes: int = 64 * 1024 * 1024
    names: int = 200_000  # subscribed to, of one type on one stream
    name_bytes: int = 4096
    types: int = 64  # on one stream
    streams_per_second: float = 1000.0
    streams_burst: int = 3000
    streams_wait: timedelta = timedelta(seconds=10)  # a stream that would have to wait longer is refused
    unwritten_bytes: int = 256 * 1024 * 1024  # handed to the transport by all streams together
    write_timeout: timedelta = timedelta(seconds=30)
    connection_age: timedelta = timedelta(minutes=30)  # ± 10 %
    connection_age_grace: timedelta = timedelta(seconds=10)

    def check(self, request: Any, session: Session) -> None:
        """ProtocolError where `request` asks for too much."""
        delta = isinstance(session, DeltaSession)
        names = request.resource_names_subscribe if delta else request.resource_names
        type_url = session.only or request.type_url
        watch = session.watches.get(type_url)
        if watch is None and len(session.watches) >= self.types:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {self.types} types on one stream")
        if not names:
            return
        count = len(names) + (len(watch.asked.names) if delta and watch is not None else 0)
        if count > self.names:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"subscription to {count} names of {type_url}; {self.names} are allowed")
        if max(map(len, names)) > self.name_bytes:
            raise ProtocolError("INVALID_ARGUMENT", f"a resource name of over {self.name_bytes} characters")


class Listen(msgspec.Struct, frozen=True):
    """An address to listen on, `host:port` or `unix:path`, and TLS credentials; None is plain text."""

    address: str
    credentials: grpc.ServerCredentials | None = None


class Server:
    """Serves what `provider` assigns. One event loop owns it."""

    def __init__(
        self,
        provider: Provider,
        *,
        registry: CollectorRegistry | None = None,
        identity: str = "xds",
        limits: Limits | None = None,
    ) -> None:
        """`identity` is told to clients as `control_plane`."""
        self.provider = provider
        self.limits = limits or Limits()
        self.responses = Responses(identity, secrets.token_hex(4))
        self.metrics = Metrics()
        self.metrics.gauges = lambda: (len(self.streams), self.responses.encoded, self.unwritten.taken)
        self.memory = Memory()
        self.loads = load.Loads()
        if registry is not None:
            registry.register(self.metrics)
            registry.register(self.loads)
        self.streams: set[Stream] = set()
        self.busy: set[Stream] = set()  # that have something to send
        self.writing: set[Stream] = set()
        self.resting: set[Stream] = set()  # that look again after a while
        self.unwritten = Budget(self.limits.unwritten_bytes)
        self.time: Callable[[], float] = time.monotonic
        self._server: grpc.aio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._draining = False
        self._next_admission = 0.0
        self._quiet = asyncio.Event()

    async def start(self, *listens: Listen | str) -> list[int]:
        """Listen on all of `listens`; the ports they got. ConfigError where one cannot be bound."""
        server = self._server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers(self._handlers())
        ports = []
        for listen in listens:
            where = Listen(listen) if isinstance(listen, str) else listen
            try:
                if where.credentials is None:
                    ports.append(server.add_insecure_port(where.address))
                else:
                    ports.append(server.add_secure_port(where.address, where.credentials))
            except RuntimeError as e:
                raise ConfigError(where.address, "cannot listen here") from e
        await server.start()
        self._ticker = asyncio.create_task(self._tick())
        return ports

    async def stop(self, grace: float = 5.0) -> None:
        """Accept no more streams, end those there are over half of `grace` seconds, so that they do not all come back at once."""
        self._draining = True
        if self._server is None:
            return  # it was told to stop before it had begun
        streams = list(self.streams)
        steps = 10
        for step in range(steps):
            for stream in streams[step::steps]:
                stream.end()
            if streams:
                await asyncio.sleep(grace / 2 / steps)
        await self._server.stop(grace / 2)
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker

    async def written(self, timeout: float) -> None:  # noqa: ASYNC109 - running out of it is no failure
        """Return when no stream has anything left to write that it could write now, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.busy:
                    self._quiet.clear()
                    await self._quiet.wait()

    async def fetch(self, type_url: str, request: Any, peer_identity: str = "") -> bytes | None:
        """One answer without a stream: a DiscoveryResponse, serialised; None where the client has it. ProtocolError where it may not."""
        await self._admit()
        return await fetch(self.provider, self.responses, type_url, request, peer_identity)

    def proxies(self) -> list[ProxyStatus]:
        """The streams that are open, by node."""
        return sorted((stream.status() for stream in self.streams), key=lambda status: (status.node, status.connected))

    def rejections(self) -> list[Rejection]:
        """What the proxies of open streams reject."""
        return [rejection for stream in self.streams for rejection in rejections(stream, stream.session)]

    # For streams

    def opened(self, stream: Stream) -> None:
        self.streams.add(stream)

    def closed(self, stream: Stream) -> None:
        self.streams.discard(stream)
        self.rested(stream)

    def rested(self, stream: Stream) -> None:
        """`stream` has nothing left that it could write now."""
        self.busy.discard(stream)
        if not self.busy:
            self._quiet.set()

    # Inside

    def _options(self) -> Sequence[tuple[str, int]]:
        limits = self.limits
        return (
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.bdp_probe", 0),  # or each acknowledgement costs a ping and its answer, a third of what a push costs
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),  # the one that ends a connection whose peer is frozen
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # Envoy's keepalive is not abuse
            ("grpc.max_connection_age_ms", int(limits.connection_age.total_seconds() * 1000)),
            ("grpc.max_connection_age_grace_ms", int(limits.connection_age_grace.total_seconds() * 1000)),
            ("grpc.server.max_pending_requests", 20_000),
            ("grpc.server.max_pending_requests_hard_limit", 40_000),
            ("grpc.so_reuseport", 0),  # a second process on the port is a mistake that should show
        )

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        handlers = []
        for service, (only, noun, sotw) in _SERVICES.items():
            methods = {f"Delta{noun}": self._method(DeltaSession, only, DeltaRequest)}
            if sotw:
                methods[f"Stream{noun}"] = self._method(SotwSession, only, pb.DiscoveryRequest)
                if only:
                    methods[f"Fetch{noun}"] = self._fetch_method(only)
            handlers.append(grpc.method_handlers_generic_handler(service, methods))
        handlers.append(grpc.method_handlers_generic_handler(load.SERVICE, {"StreamLoadStats": self._load_method()}))
        status = {"FetchClientStatus": self._status_method(), "StreamClientStatus": self._statuses_method()}
        handlers.append(grpc.method_handlers_generic_handler(csds.SERVICE, status))
        return tuple(handlers)

    def _fetch_method(self, type_url: str) -> grpc.RpcMethodHandler:
        async def handle(request: Any, context: Any) -> bytes:
            async with self._failing_well(context):
                data = await self.fetch(type_url, request, identity_of(context))
                if data is not None:
                    return data
            return pb.DiscoveryResponse(type_url=type_url, version_info=request.version_info).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=pb.DiscoveryRequest.FromString)

    def _load_method(self) -> grpc.RpcMethodHandler:
        async def handle(_: Any, context: Any) -> None:
            async with self._failing_well(context):
                await self.loads.receive(context)

        return grpc.stream_stream_rpc_method_handler(
            handle, request_deserializer=load.Request.FromString, response_serializer=load.Response.SerializeToString
        )

    def _status_method(self) -> grpc.RpcMethodHandler:
        async def handle(request: Any, context: Any) -> Any:
            async with self._failing_well(context):
                return csds.answer(request, self.streams)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=csds.Request.FromString, response_serializer=csds.Response.SerializeToString
        )

    def _statuses_method(self) -> grpc.RpcMethodHandler:
        async def handle(_: Any, context: Any) -> None:
            async with self._failing_well(context):
                while (request := await context.read()) is not grpc.aio.EOF:
                    await context.write(csds.answer(request, self.streams))

        return grpc.stream_stream_rpc_method_handler(
            handle, request_deserializer=csds.Request.FromString, response_serializer=csds.Response.SerializeToString
        )

    def _method(self, variant: type[Session], only: str, request: Any) -> grpc.RpcMethodHandler:
        async def handle(_: Any, context: Any) -> None:
            await self._serve(context, variant, only)

        return grpc.stream_stream_rpc_method_handler(handle, request_deserializer=request.FromString)

    async def _serve(self, context: Any, variant: type[Session], only: str) -> None:
        try:
            async with self._failing_well(context):
                await self._admit()
                await Stream(self, context, variant, only).serve()
        except BaseException as e:
            # The task keeps this, and the frames that it came through keep the stream and the task: that would be a cycle.
            e.__traceback__ = e.__context__ = None
            raise

    @contextlib.asynccontextmanager
    async def _failing_well(self, context: Any) -> AsyncIterator[None]:
        """What goes wrong ends this call, with a status that says whose fault it is, and nothing else."""
        try:
            yield
        except* ProtocolError as group:
            failure = _first(group)
        except* DecodeError:
            failure = ProtocolError("INVALID_ARGUMENT", "a request is not the message that it should be")
        except* Exception:
            self.metrics.internal_errors += 1
            log.exception("stream.failed")
            failure = ProtocolError("INTERNAL", "internal error")
        else:
            return
        self.metrics.refused[failure.status] += 1
        await context.abort(getattr(grpc.StatusCode, failure.status), failure.reason)

    async def _admit(self) -> None:
        """Let a new stream start, in its turn. ProtocolError where it would have to wait too long, or the server stops."""
        if self._draining:
            raise ProtocolError("UNAVAILABLE", "the server is shutting down")
        now, limits = self.time(), self.limits
        interval = 1 / limits.streams_per_second
        turn = max(self._next_admission, now - limits.streams_burst * interval) + interval
        if turn - now > limits.streams_wait.total_seconds():
            raise ProtocolError("UNAVAILABLE", "too many streams at once")
        self._next_admission = turn
        if turn > now:
            await asyncio.sleep(turn - now)

    async def _tick(self) -> None:
        timeout = self.limits.write_timeout.total_seconds()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self.time()
            if not self.busy:
                self.responses.forget()
            for stream in [stream for stream in self.resting if (stream.session.wake_at or now) <= now]:
                stream.wake()
            for stream in [stream for stream in self.writing if now - stream.writing_since > timeout]:
                self.metrics.write_timeouts += 1
                log.warning("stream.stuck", proxy=stream.node.id, peer=stream.peer, seconds=round(now - stream.writing_since, 1))
                stream.give_up(f"nothing was read for {timeout:g} s")


def _first(group: BaseExceptionGroup[ProtocolError]) -> ProtocolError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ProtocolError)
    error.__traceback__ = error.__context__ = None  # its frames hold the stream, and that holds it
    return error
