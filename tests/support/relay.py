"""A TCP relay that can fail as networks do: broken connections, refused ones, and connections that just fall silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Relay:
    """Forwards connections to `port` on loopback. Its own is `self.port`."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self._target = port
        self._refusing = False
        self._requests = asyncio.Event()
        self._answers = asyncio.Event()
        self.hold()
        self._silent: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break all connections, and refuse new ones until `mend`."""
        self._refusing = True
        for connection in self._connections:
            connection.cancel()

    def mend(self) -> None:
        self._refusing = False

    def hold(self, *, requests: bool = False, answers: bool = False) -> None:
        """Keep back what clients say, or what they are answered, until this is asked for no more."""
        for gate, closed in ((self._requests, requests), (self._answers, answers)):
            if closed:
                gate.clear()
            else:
                gate.set()

    def silence(self) -> None:
        """Let the connections that exist stay open and carry nothing any more, as when the other end lost power."""
        self._silent |= self._connections

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forward(connection, self._requests, reader, upstream))
                tasks.create_task(self._forward(connection, self._answers, answers, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            self._silent.discard(connection)
            writer.transport.abort()
            if upstream is not None:
                upstream.transport.abort()

    async def _forward(
        self, connection: asyncio.Task[None], gate: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            await gate.wait()
            if connection not in self._silent:
                writer.write(data)
                await writer.drain()
        raise ConnectionError("one side has closed")


@asynccontextmanager
async def relaying(port: int) -> AsyncIterator[Relay]:
    """A relay to `port`, until the block ends."""
    relay = Relay(port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        relay.cut()
        with suppress(asyncio.CancelledError):
            await server.wait_closed()
