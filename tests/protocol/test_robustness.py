"""Whatever a client sends or does not do, the server and all other streams go on."""

import asyncio
import os
import socket
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.product import ADS, SECONDS, Delta, Product, Sotw, Stream, assignment, cluster, names_of, until

from xds import pb
from xds.discovery.protocol import types as t

DELTA, SOTW = f"{ADS}/DeltaAggregatedResources", f"{ADS}/StreamAggregatedResources"


class Raw(Stream):
    """A stream whose requests are any bytes."""

    class request:  # noqa: N801
        def __init__(self, data: bytes) -> None:
            self.data = data

        def SerializeToString(self) -> bytes:  # noqa: N802
            return self.data

    response = pb.DeltaDiscoveryResponse

    def __init__(self, port: int, method: str) -> None:
        super().__init__(port, method, node=None)


@pytest.fixture
def witness(product: Product) -> Any:
    """A stream that must live through all of it."""
    product.publish("a.yaml", cluster("a"), assignment("a"))
    with Delta(product.port, node={"id": "witness"}) as client:
        client.ask(t.CLUSTER)
        yield client
        product.write("z.yaml", cluster("z"))
        assert names_of(client.next(t.CLUSTER)) == {"z"}


text = st.text(max_size=20)
names = st.lists(st.one_of(st.sampled_from(["a", "b", "*", "", "xdstp://x/*", "\x00"]), text), max_size=5)
kinds = st.sampled_from([*t.TYPES, "", "nonsense", "type.googleapis.com/"])
nonces = st.one_of(st.just(""), text)
node = {"id": "fuzz"}
delta_requests = st.builds(
    lambda kind, more, less, nonce, error, held: pb.DeltaDiscoveryRequest(
        node=node, type_url=kind, resource_names_subscribe=more, resource_names_unsubscribe=less, response_nonce=nonce,
        error_detail={"code": 13, "message": error} if error else None, initial_resource_versions=held,
    ),
    kinds, names, names, nonces, text, st.dictionaries(text, text, max_size=4),
)  # fmt: skip
sotw_requests = st.builds(
    lambda kind, wanted, nonce, error, version: pb.DiscoveryRequest(
        node=node, type_url=kind, resource_names=wanted, response_nonce=nonce, version_info=version,
        error_detail={"code": 13, "message": error} if error else None,
    ),
    kinds, names, nonces, text, text,
)  # fmt: skip
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def test_no_bytes_end_the_server_or_another_stream(product: Product, witness: Delta) -> None:
    faults = len(product.events("stream.failed"))

    @MANY
    @given(st.sampled_from([DELTA, SOTW, f"{ADS}/Nonsense"]), st.lists(st.binary(max_size=200), min_size=1, max_size=5))
    def throw(method: str, messages: list[bytes]) -> None:
        with Raw(product.port, method) as stream:
            for message in messages:
                stream.send(data=message)

    throw()
    assert product.events("stream.failed")[faults:] == []


def test_no_mangled_request_ends_the_server_or_another_stream(product: Product, witness: Delta) -> None:
    """Requests that were good, with bytes changed, so that they are nearly so."""
    faults = len(product.events("stream.failed"))

    @MANY
    @given(delta_requests, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3))
    def throw(request: Any, changes: list[tuple[int, int]]) -> None:
        data = bytearray(request.SerializeToString())
        for place, byte in changes:
            data[place % len(data)] = byte
        with Raw(product.port, DELTA) as stream:
            stream.send(data=bytes(data))
            stream.send(data=request.SerializeToString())

    throw()
    assert product.events("stream.failed")[faults:] == []


@pytest.mark.parametrize(("client_of", "requests"), [(Delta, delta_requests), (Sotw, sotw_requests)])
def test_no_conversation_ends_the_server_or_another_stream(product: Product, witness: Delta, client_of: Any, requests: Any) -> None:
    """Well-formed requests in any order, with nonces that are right, old or invented."""
    faults = len(product.events("stream.failed"))

    @MANY
    @given(st.lists(st.tuples(requests, st.booleans()), min_size=1, max_size=12))
    def talk(conversation: list[tuple[Any, bool]]) -> None:
        with client_of(product.port, node=None) as client:
            latest = ""
            for request, right in conversation:
                if right:
                    request.response_nonce = latest
                client._requests.put(request)
                if not client._responses.empty():
                    latest = getattr(client._responses.get(), "nonce", latest)

    talk()
    assert product.events("stream.failed")[faults:] == []


def test_a_request_that_asks_for_too_much_is_refused_with_a_status(product: Product, witness: Delta) -> None:
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS, "x" * 5000)
        assert client.end()[0] == "INVALID_ARGUMENT"
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS, *map(str, range(200_001)))
        assert client.end()[0] == "RESOURCE_EXHAUSTED"
    with Delta(product.port) as client:
        for index in range(65):
            client.subscribe(f"type{index}")
        assert client.end()[0] == "RESOURCE_EXHAUSTED"


def test_what_is_no_http2_is_no_harm(product: Product, witness: Delta) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + os.urandom(100), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(200), b""):
        with socket.create_connection(("127.0.0.1", product.port)) as connection:
            connection.sendall(data)


def test_thousands_of_streams_that_open_at_once_are_all_served(product: Product) -> None:
    """N7: 3 000 streams over 30 connections, each answered; then a change reaches them all."""
    product.publish("a.yaml", assignment("a"))
    connections, each = 30, 100
    failures: list[str] = []

    async def run() -> None:
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{product.port}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.x", index)])
            for index in range(connections)
        ]
        first, second = asyncio.Semaphore(0), asyncio.Semaphore(0)

        async def one(channel: Any, index: int) -> None:
            call = channel.stream_stream(
                f"/{DELTA}", request_serializer=lambda m: m.SerializeToString(), response_deserializer=pb.DeltaDiscoveryResponse.FromString
            )(wait_for_ready=True)
            await call.write(pb.DeltaDiscoveryRequest(node={"id": f"n{index}"}, type_url=t.ENDPOINTS, resource_names_subscribe=["a"]))
            for counted in (first, second):
                response = await call.read()
                if response is grpc.aio.EOF:
                    failures.append(str(await call.details()))
                    return
                await call.write(pb.DeltaDiscoveryRequest(type_url=t.ENDPOINTS, response_nonce=response.nonce))
                counted.release()
            call.cancel()

        async def all_of(counted: asyncio.Semaphore) -> None:
            for _ in range(connections * each):
                await counted.acquire()

        async with asyncio.timeout(SECONDS * 4):
            tasks = [asyncio.ensure_future(one(channel, index)) for channel in channels for index in range(each)]
            await all_of(first)
            product.write("a.yaml", assignment("a", 1))
            await all_of(second)
            await asyncio.gather(*tasks)
        for channel in channels:
            await channel.close()

    asyncio.run(run())
    assert not failures
    until(lambda: not [s for s in product.ask("/debug/syncz") if s["node"].startswith("n")], lambda: "streams are left")
