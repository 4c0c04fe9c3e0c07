"""Clusters that go where the caller was going, behind real traffic capture."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from support import pod
from support.destinations import Destination, reviews
from support.pod import POD_IP, POD_IP6, WORLD_IP6, Namespace, Pod

from xds import pb
from xds.envoy.addresses import address
from xds.envoy.clusters import inbound_cluster
from xds.mesh.model import Client, Inbound, Port, Protocol, Resolution
from xds.objects import MeshConfig

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.root,
    pytest.mark.skipif(not pod.available(), reason="needs root, nft and network namespaces"),
]

DUAL = Client("default", addresses=(POD_IP, POD_IP6))
HEADLESS = reviews(Port(80, "tcp", Protocol.TCP, 8080), headless=True, resolution=Resolution.PASSTHROUGH)
SERVICE = reviews(Port(80, "tcp", Protocol.TCP, 8080))
PASSTHROUGH = {"loadBalancer": {"simple": "PASSTHROUGH"}}
BACKENDS = ("10.96.7.1", "10.96.7.2", WORLD_IP6)


def capturing(name: str, port: int, clusters: dict[int, str]) -> pb.Listener:
    """A listener for captured connections, which go to a cluster by the port that they were for."""
    chains: Any = [
        {
            "filter_chain_match": {"destination_port": {"value": to}},
            "filters": [
                {
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": pb.any(pb.TcpProxy(stat_prefix="tcp", cluster=cluster)),
                }
            ],
        }
        for to, cluster in clusters.items()
    ]
    original: Any = {"name": "envoy.filters.listener.original_dst", "typed_config": pb.any(pb.OriginalDst())}
    return pb.Listener(
        name=name,
        address=address("0.0.0.0", port),
        additional_addresses=[{"address": address("::", port)}],
        listener_filters=[original],
        filter_chains=chains,
    )


@pytest.fixture(scope="module")
def running() -> Iterator[Pod]:
    headless = Destination(HEADLESS).cluster(DUAL)
    passthrough = Destination(SERVICE, PASSTHROUGH).cluster(DUAL)
    passthrough.name = "passthrough"
    same = inbound_cluster(Inbound(7070, Protocol.TCP, None), DUAL, MeshConfig())
    other = inbound_cluster(Inbound(7000, Protocol.TCP, None, forward_to="0.0.0.0:7070"), DUAL, MeshConfig())
    local = inbound_cluster(Inbound(7001, Protocol.TCP, None, forward_to="127.0.0.1:7070"), DUAL, MeshConfig())
    with pod.running() as made:
        for backend in BACKENDS:
            for port in (80, 8080):
                made.serve(made.world, backend, port, f"{backend} {port}")
        made.serve(made.pod, "::", 7070, "app")
        made.start(
            [
                capturing("outbound", 15001, {80: headless.name, 8080: passthrough.name}),
                capturing("inbound", 15006, {7070: same.name, 7000: other.name, 7001: local.name}),
            ],
            [headless, passthrough, same, other, local],
        )
        yield made


def asked(where: Namespace, host: str, port: int) -> str:
    """Which server answered."""
    with contextlib.closing(where.connect(host, port)) as connection:
        connection.sendall(b"?")
        return connection.recv(4096).decode().rpartition(":")[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_headless_services_pods_are_called_at_their_own_port(running: Pod, backend: str) -> None:
    assert asked(running.pod, backend, 80) == f"{backend} 8080"


@pytest.mark.parametrize("backend", BACKENDS)
def test_passthrough_changes_nothing(running: Pod, backend: str) -> None:
    assert asked(running.pod, backend, 8080) == f"{backend} 8080"


@pytest.mark.parametrize("host", [POD_IP, POD_IP6])
@pytest.mark.parametrize("port", [7070, 7000])
def test_the_application_is_called_at_the_address_that_was_called(running: Pod, host: str, port: int) -> None:
    """On the port it was called on, or where the Sidecar says: `0.0.0.0:7070`."""
    app = running.servers[-1]
    before = len(app.peers)
    assert asked(running.world, host, port) == "app"
    # From the proxy's own source, which traffic capture leaves alone: else the call would come back to the proxy for ever.
    assert app.peers[before:] == ["127.0.0.6" if host == POD_IP else "::6"]


def test_or_at_an_address_of_its_own(running: Pod) -> None:
    assert asked(running.world, POD_IP, 7001) == "app"
