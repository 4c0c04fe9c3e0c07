"""A gRPC client without a proxy: grpcio's own xDS against `xds serve --files`, with servers that answer with their names."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.grpc_client import Backend, Client
from support.product import Product, until

HOST = "reviews.default.svc.cluster.local"
TARGET = f"xds:///{HOST}:9080"

class Mesh:
    """Files of objects, and the product that serves them."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.backends = {name: Backend(name) for name in ("v1", "v1-other", "v2")}

    def endpoints(self, *names: str) -> None:
        """ServiceEntry endpoints on loopback: their own ports, which slices can't have for one service port."""
        entry = {
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "reviews", "namespace": "default"},
            "spec": {
                "hosts": [HOST], "resolution": "STATIC", "location": "MESH_INTERNAL",
                "ports": [{"number": 9080, "name": "grpc", "protocol": "GRPC"}],
                "endpoints": [
                    {"address": "127.0.0.1", "ports": {"grpc": self.backends[name].port}, "labels": {"version": name.partition("-")[0]}}
                    for name in names
                ],
            },
        }  # fmt: skip
        self.product.write("reviews.yaml", entry)

    def rules(self, *http: dict[str, Any], policy: dict[str, Any] | None = None) -> None:
        routing = {
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews", "namespace": "default"},
            "spec": {"hosts": [HOST], "http": list(http)},
        }  # fmt: skip
        subsets = {
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "reviews", "namespace": "default"},
            "spec": {"host": HOST, "subsets": [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")], "trafficPolicy": policy or {}},
        }  # fmt: skip
        self.product.write("rules.yaml", routing, subsets)


    def host(self, name: str, *http: dict[str, Any]) -> None:
        """A VirtualService of a host that no service has."""
        rule = {
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "host", "namespace": "default"},
            "spec": {"hosts": [name], "http": list(http)},
        }  # fmt: skip
        self.product.write("host.yaml", rule)

    def clients(self) -> list[dict[str, Any]]:
        """What is known of the streams of this test's clients."""
        return [each for each in self.product.ask("/debug/syncz") if "client.default" in each["node"]]


def to(subset: str, weight: int = 100) -> dict[str, Any]:
    return {"destination": {"host": HOST, "subset": subset}, "weight": weight}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("files")
    with Product("--files", str(directory), directory=directory) as product:
        mesh = Mesh(product)
        yield mesh
        for backend in mesh.backends.values():
            backend.server.stop(None).wait()


@pytest.fixture
def bootstrap(mesh: Mesh, tmp_path: Path) -> Path:
    """As `xds bootstrap --grpc` writes it."""
    command = [sys.executable, "-m", "xds", "bootstrap", "client.default", "--grpc", "--server", f"127.0.0.1:{mesh.product.port}"]
    file = tmp_path / "grpc.json"
    file.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return file


@pytest.fixture
def client(bootstrap: Path) -> Iterator[Client]:
    client = Client(bootstrap, TARGET)
    yield client
    client.stop()


def heard(client: Client, *headers: tuple[str, str], calls: int = 20) -> Counter[str]:
    return Counter(client.say(*headers) for _ in range(calls))


def test_calls_are_balanced_over_all_endpoints(mesh: Mesh, client: Client) -> None:
    mesh.endpoints("v1", "v1-other", "v2")
    mesh.rules({"route": [{"destination": {"host": HOST}}]})
    until(lambda: set(heard(client)) == {"v1", "v1-other", "v2"}, lambda: heard(client))


def test_the_virtual_service_routes_by_header_and_by_weight(mesh: Mesh, client: Client) -> None:
    mesh.endpoints("v1", "v2")
    mesh.rules({"match": [{"headers": {"end-user": {"exact": "jason"}}}], "route": [to("v2")]}, {"route": [to("v1")]})
    until(lambda: set(heard(client)) == {"v1"}, lambda: heard(client))
    assert set(heard(client, ("end-user", "jason"))) == {"v2"}
    mesh.rules({"route": [to("v1", 50), to("v2", 50)]})
    until(lambda: set(heard(client)) == {"v1", "v2"}, lambda: heard(client))


def test_a_client_follows_endpoints_that_come_and_go(mesh: Mesh, client: Client) -> None:
    mesh.endpoints("v1")
    mesh.rules({"route": [{"destination": {"host": HOST}}]})
    until(lambda: set(heard(client)) == {"v1"}, lambda: heard(client))
    mesh.endpoints("v2")
    until(lambda: set(heard(client)) == {"v2"}, lambda: heard(client))
    mesh.endpoints()
    until(lambda: set(heard(client, calls=1)) == {"UNAVAILABLE"}, lambda: heard(client, calls=1))
    mesh.endpoints("v1-other")
    until(lambda: set(heard(client, calls=1)) == {"v1-other"}, lambda: heard(client, calls=1))


def test_a_fault_of_the_virtual_service_is_the_clients(mesh: Mesh, client: Client) -> None:
    mesh.endpoints("v1")
    fault = {"abort": {"grpcStatus": "PERMISSION_DENIED", "percentage": {"value": 100}}}
    mesh.rules({"match": [{"headers": {"fail": {"exact": "yes"}}}], "fault": fault, "route": [to("v1")]}, {"route": [to("v1")]})
    until(lambda: client.say(("fail", "yes")) == "PERMISSION_DENIED", lambda: client.say(("fail", "yes")))
    assert client.say() == "v1"


@pytest.mark.parametrize("name", ["reviews", "reviews.default", "reviews.default.svc"])
def test_a_target_may_be_any_name_of_the_service(mesh: Mesh, bootstrap: Path, name: str) -> None:
    mesh.endpoints("v1")
    mesh.rules({"route": [to("v1")]})
    client = Client(bootstrap, f"xds:///{name}:9080")
    try:
        until(lambda: client.say() == "v1", client.say)
    finally:
        client.stop()


def test_a_target_may_be_a_host_that_only_a_virtual_service_knows(mesh: Mesh, bootstrap: Path) -> None:
    """As for a sidecar: at port 80, as no service says another."""
    mesh.endpoints("v1", "v2")
    mesh.rules({"route": [to("v1")]})
    route = {"match": [{"headers": {"end-user": {"exact": "jason"}}}], "route": [to("v2")]}
    mesh.host("shop.example", route, {"route": [to("v1")]})
    client, short = Client(bootstrap, "xds:///shop.example:80"), Client(bootstrap, "xds:///short:80")
    try:
        until(lambda: set(heard(client)) == {"v1"}, lambda: heard(client))
        assert set(heard(client, ("end-user", "jason"))) == {"v2"}
        mesh.host("shop.example", {"route": [to("v2")]})
        until(lambda: set(heard(client)) == {"v2"}, lambda: heard(client))
        mesh.host("short", {"route": [to("v1")]})
        until(lambda: set(heard(short)) == {"v1"}, lambda: heard(short))
        until(lambda: set(heard(client, calls=1)) == {"UNAVAILABLE"}, lambda: heard(client, calls=1))
        assert {kind["status"] for each in mesh.clients() for kind in each["types"].values()} == {"SYNCED"}
    finally:
        client.stop()
        short.stop()
        mesh.product.remove("host.yaml")


def test_a_client_takes_all_that_it_is_given(mesh: Mesh, client: Client) -> None:
    """No rejection, with a hash policy, circuit breakers, outlier detection, retries and a timeout."""
    mesh.endpoints("v1", "v2")
    policy = {
        "loadBalancer": {"consistentHash": {"httpHeaderName": "user"}},
        "connectionPool": {"http": {"http2MaxRequests": 100}},
        "outlierDetection": {"consecutive5xxErrors": 5, "interval": "10s"},
    }
    retries = {"attempts": 2, "retryOn": "unavailable,5xx,connect-failure", "perTryTimeout": "2s"}
    mesh.rules({"route": [{"destination": {"host": HOST}}], "retries": retries, "timeout": "10s"}, policy=policy)
    until(lambda: len(heard(client, ("user", "one"))) == 1 and len(heard(client, *[])) >= 1, lambda: heard(client))
    seen = {client.say(("user", str(user))) for user in range(40)}
    assert seen == {"v1", "v2"}
    (status,) = mesh.clients()
    assert {kind["status"] for kind in status["types"].values()} == {"SYNCED"}, status
    assert not mesh.product.events("push.rejected")


def test_a_client_goes_on_when_the_server_is_away_and_follows_it_again(mesh: Mesh, client: Client) -> None:
    mesh.endpoints("v1")
    mesh.rules({"route": [{"destination": {"host": HOST}}]})
    until(lambda: client.say() == "v1", client.say)
    mesh.product.kill()
    assert set(heard(client)) == {"v1"}
    mesh.endpoints("v2")
    mesh.product.start()
    until(lambda: client.say() == "v2", client.say)


def test_a_name_that_nobody_has_fails(mesh: Mesh, bootstrap: Path) -> None:
    client = Client(bootstrap, "xds:///nobody.default.svc.cluster.local:9080")
    try:
        assert client.say() == "UNAVAILABLE"
    finally:
        client.stop()
