"""One stream: a reader and a writer around a session."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from xds import pb
from xds.discovery.protocol import DeltaSession, Nack, Session
from xds.discovery.resources import Assignment
from xds.discovery.status import ProxyStatus, readable, type_statuses, version_of
from xds.errors import ProtocolError

if TYPE_CHECKING:
    from xds.discovery.server import Server

log = structlog.get_logger()


class Stream:
    """The server's side of one stream; what a `Provider` sees of it is `Assignable`."""

    def __init__(self, server: "Server", context: Any, variant: type[Session], only: str) -> None:
        self.server = server
        self.context = context
        self.node: Any = pb.Node()
        self.node_metadata: dict[str, Any] = {}
        self.peer: str = context.peer()
        self.peer_identity = identity_of(context)
        self.connected = datetime.now(UTC)
        self.pieces = variant is DeltaSession and not only
        self.session = variant(server.responses, self._changed, only)
        self.writing_since = 0.0  # of the loop's clock; 0 while no write is under way
        self.failure: ProtocolError | None = None
        self._open = False  # the provider and the server count it
        self._ended = False
        self._unwritten = 0  # bytes of the write under way
        self._changed_at = 0.0  # since when a change is due
        self._waker: asyncio.Future[None] | None = None

    # For the provider

    def assign(self, assignment: Assignment) -> None:
        """The stream's groups are these from now on; it sends what differs."""
        self.session.assign(assignment)

    # For the server

    async def serve(self) -> None:
        """Talk until the client ends the stream, or `end`. ProtocolError where the client broke the protocol."""
        first = await self.context.read()
        if first is grpc.aio.EOF:
            return
        self.node, self.node_metadata = introduced(first)
        structlog.contextvars.bind_contextvars(proxy=self.node.id, peer=self.peer)
        self.session.recall = lambda type_url: self.server.memory.take(self._key(type_url))
        await self.server.provider.prepare(self)
        assignment = self.server.provider.open(self)
        self._open = True
        try:
            self.assign(assignment)
            self.server.opened(self)
            log.info("stream.opened", variant=_variant(self.session), assignment=assignment.name)
            self._receive(first)
            del first
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read())
                try:
                    await self._write()
                finally:
                    reader.cancel()
        finally:
            self._leave()
        if self.failure is not None:
            raise self.failure

    def end(self, failure: ProtocolError | None = None) -> None:
        """End the stream after the write under way."""
        self.failure = self.failure or failure
        self._ended = True
        self.wake()

    def give_up(self, reason: str) -> None:
        """End the stream in the middle of a write: all is let go of but the call, whose client is told when it reads on.

        gRPC cannot end it before: no status goes out beside a write, and a handler that is cancelled leaves the call open.
        """
        self.end(ProtocolError("DEADLINE_EXCEEDED", reason))
        self._written()
        self._leave()

    def wake(self) -> None:
        """Have the writer look at what is due."""
        waker = self._waker
        if waker is not None and not waker.done():
            waker.set_result(None)

    def status(self) -> ProxyStatus:
        """What people are shown of this stream."""
        assignment = self.session.assignment
        return ProxyStatus(
            node=self.node.id,
            version=version_of(self.node),
            assignment="" if assignment is None else assignment.name,
            peer=self.peer,
            identity=self.peer_identity,
            connected=self.connected,
            variant=_variant(self.session),
            types=type_statuses(self.session),
        )

    def _leave(self) -> None:
        """Let go of everything that is not the call's."""
        if self._open:
            self._open = False
            self._remember()
            self.session.close()
            self.server.closed(self)
            self.server.provider.close(self)
            log.info("stream.closed", reason="" if self.failure is None else str(self.failure))

    def _written(self) -> None:
        """No write is under way any more."""
        self.writing_since = 0.0
        self.server.writing.discard(self)
        self.server.unwritten.give(self._unwritten)
        self._unwritten = 0

    def _remember(self) -> None:
        """Have what is not settled known to the client's next stream."""
        if isinstance(self.session, DeltaSession):
            for type_url, watch in self.session.watches.items():
                unsettled = watch.unsettled()
                if unsettled is not None:
                    self.server.memory.keep(self._key(type_url), unsettled)

    def _key(self, type_url: str) -> tuple[str, ...]:
        return self.peer_identity, self.node.id, type_url

    def _changed(self) -> None:
        if not self._changed_at:
            self._changed_at = self.server.time()
        self.server.busy.add(self)
        self.wake()

    def _receive(self, request: Any) -> None:
        self.server.limits.check(request, self.session)
        if request.node.id not in {"", self.node.id}:
            raise ProtocolError("INVALID_ARGUMENT", "a stream belongs to one node")  # N2
        nack = self.session.receive(request)
        if self.session.expired:
            self.server.metrics.expired_nonces[self.session.expired] += 1
        if nack is not None:
            self._report(nack)

    def _report(self, nack: Nack) -> None:
        self.server.metrics.rejects[nack.type] += 1
        log.warning(
            "push.rejected", type=nack.type, nonce=nack.nonce, resources=nack.resources, error=readable(nack.type, nack.message)
        )

    async def _read(self) -> None:
        read, eof = self.context.read, grpc.aio.EOF
        try:
            while (request := await read()) is not eof and not self._ended:
                self._receive(request)
                if self.session.pending():
                    self.wake()
            self.end()
        except ProtocolError as e:
            self.end(e)

    async def _write(self) -> None:
        """Write what is due, one response at a time, always the newest state of it."""
        server, session, metrics = self.server, self.session, self.server.metrics
        while not self._ended:
            response = session.due(server.time())
            if response is None:
                await self._rest()
                continue
            size = len(response.data)
            if not server.unwritten.try_take(size):
                await server.unwritten.take(size)
                if session.due(server.time()) is not response:
                    server.unwritten.give(size)
                    continue  # with what is the newest now
            started = self.writing_since = server.time()
            session.sent(response, started)
            self._unwritten = size
            server.writing.add(self)
            try:
                await self.context.write(response.data)
            finally:
                self._written()
            kind = response.rules.short
            metrics.pushes[kind] += 1
            metrics.resources[kind] += response.count
            metrics.size.observe(size)
            metrics.send_time.observe(server.time() - started)
            log.debug("push.sent", type=kind, nonce=response.nonce, resources=response.count, bytes=size)

    async def _rest(self) -> None:
        """Nothing is due: wait until something may be."""
        server = self.server
        if self.session.wake_at is not None:
            server.resting.add(self)
        elif self._changed_at:
            server.metrics.convergence.observe(server.time() - self._changed_at)
            self._changed_at = 0.0
        server.rested(self)
        self._waker = asyncio.get_running_loop().create_future()
        try:
            await self._waker
        finally:
            self._waker = None
            server.resting.discard(self)


def introduced(first: Any) -> tuple[Any, dict[str, Any]]:
    """The node of a first request, but not its 500 extensions, nor the memory of the request, and its metadata (N1)."""
    if not first.node.id:
        raise ProtocolError("INVALID_ARGUMENT", "the first request of a stream must hold a node with an id")
    first.node.ClearField("extensions")
    node = pb.Node.FromString(first.node.SerializeToString())
    return node, _plain(node.metadata)


def _variant(session: Session) -> str:
    return type(session).__name__.removesuffix("Session").lower()


def identity_of(context: Any) -> str:
    """The SPIFFE ID of the client's verified certificate."""
    auth = context.auth_context() or {}
    for value in (*auth.get("peer_spiffe_id", ()), *auth.get("peer_uri", ())):
        text: str = value.decode()
        if text.startswith("spiffe://"):
            return text
    return ""


def _plain(struct: Any) -> dict[str, Any]:
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _plain(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    return None if kind in {None, "null_value"} else getattr(value, kind)
