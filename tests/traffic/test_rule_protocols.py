"""VirtualService `http` rules for HTTP/2, gRPC and WebSockets, and for ports of every kind of name."""

import struct

import msgspec
import pytest
from support.applications import Call
from support.traffic import Mesh, Pod, Reply
from support.traffic_rules import SUBSETS

PORTS = (
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "http2-api", "port": 81, "targetPort": 8080},
    {"name": "grpc", "port": 82, "targetPort": 8080},
    {"name": "named", "port": 83, "targetPort": 8080, "appProtocol": "http"},
    {"name": "named-not", "port": 84, "targetPort": 8080},
    {"name": "web", "port": 85, "targetPort": 8080, "appProtocol": "kubernetes.io/ws"},
)
RULE = """
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {name: app}
    spec:
      hosts: [app]
      http:
      - match: [{uri: {prefix: /shop.Slow/}}]
        timeout: 0.3s
        route: [{destination: {host: app, subset: v2}}]
      - match: [{uri: {prefix: /shop.Cart/}}]
        headers: {request: {set: {x-rule: cart}}, response: {set: {x-rule: cart}}}
        route: [{destination: {host: app, subset: v2}}]
      - match: [{uri: {prefix: /shop.Broken/}}]
        fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}
        route: [{destination: {host: app, subset: v2}}]
      - match: [{uri: {prefix: /shop.Flaky/}}]
        retries: {attempts: 2, retryOn: unavailable}
        route: [{destination: {host: app, subset: v2}}]
      - match: [{uri: {prefix: /chat}}]
        rewrite: {uri: /talk}
        route: [{destination: {host: app, subset: v2}}]
      - route: [{destination: {host: app, subset: v1}}]
"""
MESHED = """
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {name: meshed}
    spec:
      hosts: [meshed]
      http:
      - match: [{uri: {prefix: /chat}}]
        rewrite: {uri: /talk}
        route: [{destination: {host: meshed}}]
      - match: [{uri: {prefix: /slow}}]
        timeout: 0.3s
        route: [{destination: {host: meshed}}]
      - match: [{uri: {prefix: /flaky}}]
        retries: {attempts: 2, retryOn: 5xx}
        headers: {request: {set: {x-rule: flaky}}}
        route: [{destination: {host: meshed}}]
"""


@pytest.fixture(scope="module")
def client(shared: Mesh) -> Pod:
    shared.apply(SUBSETS + "\n    ---" + RULE, quiet=True)
    shared.apply(MESHED, quiet=True)
    shared.service("app", ("v1", "v2"), PORTS)
    shared.service("meshed", (), PORTS[:1], pods=[shared.pod("server", {"app": "meshed"}, ports=[8080])])
    return shared.pod("client")


def grpc(client: Pod, method: str, port: int = 82, **headers: str) -> Reply:
    asked = {"content-type": "application/grpc", "te": "trailers", **{n.replace("_", "-"): v for n, v in headers.items()}}
    return client.http2(f"http://app:{port}{method}", asked, body=b"\0" + struct.pack("!I", 2) + b"hi")


@pytest.mark.parametrize("port", [port["port"] for port in PORTS])
def test_rules_hold_whatever_the_port_is_named(client: Pod, port: int) -> None:
    assert client.get(f"http://app:{port}/shop.Cart/Add").server == "app-v2"
    assert client.get(f"http://app:{port}/").server == "app-v1"


@pytest.mark.parametrize("port", [80, 81, 82, 83, 84])
def test_rules_hold_for_callers_that_speak_http2(client: Pod, port: int) -> None:
    reply = client.http2(f"http://app:{port}/shop.Cart/Add")
    assert reply.call is not None
    assert (reply.server, reply.call.header("x-rule"), reply.header("x-rule")) == ("app-v2", "cart", "cart")
    assert reply.call.protocol == ("HTTP/2" if port in (81, 82, 84) else "HTTP/1.1")


def test_a_grpc_call(client: Pod) -> None:
    reply = grpc(client, "/shop.Cart/Add")
    assert (reply.server, reply.header("x-rule"), reply.header("grpc-status")) == ("app-v2", "cart", "0")


def test_a_grpc_call_that_takes_too_long(client: Pod) -> None:
    reply = grpc(client, "/shop.Slow/Add", x_hold="1")
    assert (reply.status, reply.header("grpc-status")) == (200, "14")


def test_a_grpc_call_that_a_fault_ends(client: Pod) -> None:
    assert grpc(client, "/shop.Broken/Any").header("grpc-status") == "8"


def test_a_grpc_call_that_is_tried_again(shared: Mesh, client: Pod) -> None:
    application = shared.services["app"]["v2"]
    before = len(application.calls)
    application.headers = [("grpc-status", "14")]
    try:
        reply = grpc(client, "/shop.Flaky/Any")
    finally:
        application.headers = []
    assert (reply.header("grpc-status") or "").startswith("14")
    assert len(application.calls) - before == 3


@pytest.mark.parametrize("host", ["app", "meshed"])
def test_a_websocket(client: Pod, host: str) -> None:
    with client.connect(host, 80) as connection:
        upgrade = (
            "GET /chat HTTP/1.1", f"host: {host}", "connection: Upgrade", "upgrade: websocket",
            "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "", "",
        )  # fmt: skip
        connection.sendall("\r\n".join(upgrade).encode())
        stream = connection.makefile("rb")
        assert stream.readline().split()[1] == b"101"
        while stream.readline().strip():
            pass
        connection.sendall(b"over the socket\n")
        call = msgspec.json.decode(stream.readline(), type=Call)
    assert (call.server, call.path, call.body) == ("app-v2" if host == "app" else "server", "/talk", "over the socket\n")


def test_a_peer_with_a_sidecar_is_asked_as_often_as_the_rule_says(shared: Mesh, client: Pod) -> None:
    application = next(pod for pod in shared.pods if pod.name == "server").application
    before = [call.path for call in application.calls].count("/flaky")
    application.statuses = [503, 500, 200]
    reply = client.get("http://meshed/flaky")
    assert reply.call is not None
    assert (reply.status, reply.server, reply.call.header("x-rule")) == (200, "server", "flaky")
    assert [call.path for call in application.calls].count("/flaky") - before == 3
    assert client.get("http://meshed/slow", {"x-hold": "1"}).status == 504
