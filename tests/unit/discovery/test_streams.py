"""What is left of streams that have ended: nothing, without the garbage collector's help."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from support.discovery import OneClass, cluster

from xds import pb
from xds.discovery.protocol import types as t
from xds.discovery.server import Limits, Server
from xds.discovery.stream import Stream
from xds.errors import ProtocolError

ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
STREAMS = 5
SECONDS = 60.0
UNBOUNDED = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]

Ending = Callable[[Server, Any, Any], Awaitable[None]]


async def _cancel(_: Server, call: Any, __: Any) -> None:
    call.cancel()


async def _say_no_more(_: Server, call: Any, __: Any) -> None:
    await call.done_writing()


async def _break_the_protocol(_: Server, call: Any, request: Any) -> None:
    await call.write(request(node={"id": "another"}, type_url=t.CLUSTER))


async def _lose_the_connection(_: Server, __: Any, ___: Any) -> None:
    """The channel is closed after this."""


async def _reject_everything(_: Server, call: Any, request: Any) -> None:
    await call.write(request(type_url=t.CLUSTER, response_nonce="none", error_detail={"message": "no"}))
    call.cancel()


async def _server_ends_it(server: Server, _: Any, __: Any) -> None:
    for stream in server.streams:
        stream.end(ProtocolError("UNAVAILABLE", "that is all"))


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("variant", ["Delta", "Stream"])
@pytest.mark.parametrize(
    "end",
    [_cancel, _say_no_more, _break_the_protocol, _lose_the_connection, _reject_everything, _server_ends_it],
)
def test_nothing_is_left_of_a_stream_however_it_ends(variant: str, end: Ending) -> None:
    asyncio.run(_streams_come_and_go(variant, end))


async def _streams_come_and_go(variant: str, end: Ending) -> None:
    provider = OneClass()
    provider.put(cluster("a"))
    server = Server(provider)
    (port,) = await server.start("127.0.0.1:0")
    try:
        left = [await _stream(server, port, variant, end) for _ in range(STREAMS)]
        with suppress(TimeoutError):  # gRPC lets go of a call a few turns of the loop after it has ended
            await _until(lambda: all(each() is None for each in left))
        assert [each() for each in left] == [None] * STREAMS
        assert [server.streams, server.busy, server.resting, server.writing] == [set()] * 4
        assert not provider.streams
        assert not any(group.listeners for group in provider.groups.values())
    finally:
        await server.stop(0.1)


async def _stream(server: Server, port: int, variant: str, end: Ending) -> "weakref.ref[Stream]":
    """Open a stream, get an answer, and end it."""
    request, response = (
        (pb.DeltaDiscoveryRequest, pb.DeltaDiscoveryResponse) if variant == "Delta" else (pb.DiscoveryRequest, pb.DiscoveryResponse)
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNBOUNDED) as channel:
        call = channel.stream_stream(
            f"/{ADS}/{variant}AggregatedResources",
            request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString,
        )()  # fmt: skip
        await call.write(request(node={"id": "one"}, type_url=t.CLUSTER))
        assert (await call.read()).resources
        (stream,) = server.streams
        ended = weakref.ref(stream)
        del stream
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await end(server, call, request)
            if end is not _lose_the_connection:
                while await call.read() is not grpc.aio.EOF:
                    pass
    await _until(lambda: not server.streams)
    return ended


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - there is nobody to set an event
            await asyncio.sleep(0.005)


@pytest.mark.usefixtures("without_collector")
def test_a_client_that_does_not_read_loses_its_stream_and_is_told_when_it_reads_on() -> None:
    asyncio.run(_does_not_read())


async def _does_not_read() -> None:
    provider = OneClass()
    provider.put(cluster("large", alt_stat_name="x" * 16 * 1024 * 1024))
    server = Server(provider, limits=Limits(write_timeout=timedelta(milliseconds=100)))
    (port,) = await server.start("127.0.0.1:0")
    try:
        async with asyncio.timeout(SECONDS), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNBOUNDED) as channel:
            call = channel.stream_stream(
                f"/{ADS}/DeltaAggregatedResources",
                request_serializer=lambda m: m.SerializeToString(), response_deserializer=pb.DeltaDiscoveryResponse.FromString,
            )()  # fmt: skip
            await call.write(pb.DeltaDiscoveryRequest(node={"id": "one"}, type_url=t.CLUSTER))
            await _until(lambda: server.metrics.write_timeouts == 1)
            assert not server.streams
            assert server.unwritten.taken == 0
            with suppress(grpc.aio.AioRpcError):
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        await server.stop(0.1)
