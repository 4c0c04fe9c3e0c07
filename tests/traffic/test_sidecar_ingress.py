"""Istio's Sidecar, `ingress` and `inboundConnectionPool`: where a workload is called, and calls of a workload without a Sidecar.

https://istio.io/latest/docs/reference/config/networking/sidecar/
"""

import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.sidecars import open_directory, sidecar
from support.traffic import Mesh, World, eventually

from xds.mesh.model import Mode

PORT = {"name": "http", "port": 80, "targetPort": 9080}
RAW = {"name": "tcp", "port": 81, "targetPort": 9081}
ELSEWHERE = """
workloadSelector: {labels: {app: server}}
ingress: [{port: {number: 9080, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:9081'}]
"""


class Stage:
    """A server behind the ports 80 (HTTP, 9080) and 81 (TCP, 9081) of its service, and a client; both have sidecars."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.server = mesh.pod("server", ports=[8080, 9080, 9081, 9082])
        self.service = mesh.service("server", {}, [PORT, RAW], pods=[self.server])
        self.client = mesh.pod("client")

    def ingress(self, spec: str) -> None:
        sidecar(self.mesh, f"workloadSelector: {{labels: {{app: server}}}}\n{spec}", name="server")

    def port(self) -> int:
        """The port on which the server's application is called by port 80 of its service."""
        call = self.client.get("http://server/").call
        return 0 if call is None else call.port

    def raw_port(self) -> int:
        call = self.client.tcp("server", 81, b"hello\n")  # a line: undeclared ports look for HTTP in it
        return 0 if call is None else call.port


@pytest.fixture(scope="module")
def shared(world: World) -> Iterator[Stage]:
    with Mesh(world) as mesh:
        yield Stage(mesh)


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    yield shared
    for kind, name in (("Sidecar", "server"), ("DestinationRule", "server")):
        if (kind, shared.mesh.namespace, name) in shared.mesh.objects:
            shared.mesh.delete(kind, name)
    eventually(lambda: shared.port() == 9080 and shared.raw_port() == 9081)


def test_without_a_sidecar_services_say_where_a_workload_is_called(stage: Stage) -> None:
    assert (stage.port(), stage.raw_port()) == (9080, 9081)


@pytest.mark.parametrize(("endpoint", "address"), [("127.0.0.1:8080", "127.0.0.1"), ("0.0.0.0:8080", "")])
def test_an_endpoint_of_its_own_is_another_port(stage: Stage, endpoint: str, address: str) -> None:
    stage.ingress(f"ingress: [{{port: {{number: 9080, protocol: HTTP, name: http}}, defaultEndpoint: '{endpoint}'}}]")
    eventually(lambda: stage.port() == 8080)
    call = stage.client.get("http://server/").call
    assert call is not None
    assert call.address == (address or stage.server.address)


def test_without_an_endpoint_it_is_the_port_itself(stage: Stage) -> None:
    stage.ingress("ingress: [{port: {number: 9080, protocol: HTTP, name: http}}]")
    eventually(lambda: not stage.server.has_cluster("inbound|9081||"))
    assert stage.port() == 9080


def test_ports_that_no_ingress_lists_are_passed_through(stage: Stage) -> None:
    stage.ingress("ingress: [{port: {number: 9080, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:8080'}]")
    eventually(lambda: stage.port() == 8080)
    assert stage.raw_port() == 9081
    call = stage.client.get("http://server:9082/", at=stage.server.address).call
    assert call is not None
    assert (call.server, call.port) == ("server", 9082)


def test_tcp_goes_to_an_endpoint_of_its_own(stage: Stage) -> None:
    stage.ingress("ingress: [{port: {number: 9081, protocol: TCP, name: tcp}, defaultEndpoint: '127.0.0.1:8080'}]")
    eventually(lambda: stage.raw_port() == 8080)


def test_the_application_may_be_a_unix_socket(stage: Stage) -> None:
    with open_directory() as directory:
        application = stage.server.listen_unix(f"unix://{directory}/app.sock")
        stage.ingress(f"ingress: [{{port: {{number: 9080, protocol: HTTP, name: http}}, defaultEndpoint: 'unix://{directory}/app.sock'}}]")
        eventually(lambda: stage.client.get("http://server/").server == application.name)


def test_the_protocol_is_the_listeners(stage: Stage) -> None:
    stage.ingress("ingress: [{port: {number: 9080, protocol: TCP, name: tcp}, defaultEndpoint: '127.0.0.1:8080'}]")
    eventually(lambda: stage.port() == 8080)

    def counted() -> bool:
        """Whether the server's sidecar counts a request as one."""
        name = "http.inbound_0.0.0.0_9080.downstream_rq_total"
        before = stage.server.stat(name)
        assert stage.port() == 8080
        return stage.server.stat(name) > before

    eventually(lambda: not counted())


# Connection pools


def held(stage: Stage, count: int) -> Counter[int]:
    """How `count` requests at a time end, of which the application holds those that come to it until all others are answered."""
    application = stage.server.application
    application.release.clear()
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(stage.client.get, "http://server/", {"x-hold": "1"}) for _ in range(count)]
        try:
            eventually(lambda: application.held and sum(a.done() for a in asked) + LIMIT >= count)
        finally:
            application.release.set()
        return Counter(a.result().status for a in asked)


LIMIT = 2  # one request under way, one that waits for it
LIMITED = "{tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}"
UNLIMITED = "{tcp: {maxConnections: 1000}, http: {http1MaxPendingRequests: 1000}}"
RULE = """
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {{name: server}}
    spec:
      host: server
      trafficPolicy: {policy}
"""


def limit(stage: Stage) -> int:
    """How many connections the server's sidecar opens to its application at most; 0 for any number."""
    found = {c["cluster"]["name"]: c["cluster"] for c in stage.server.config("dynamic_active_clusters")}
    (threshold,) = found["inbound|9080||"]["circuit_breakers"]["thresholds"]
    value = int(threshold["max_connections"])
    return 0 if value == 2**32 - 1 else value


def test_the_inbound_connection_pool_limits_what_a_workload_is_given_at_a_time(stage: Stage) -> None:
    stage.ingress(f"inboundConnectionPool: {LIMITED}")
    eventually(lambda: limit(stage) == 1)
    assert held(stage, 5) == {200: 2, 503: 3}


def test_a_destination_rules_pool_limits_its_services_own_workloads_too(stage: Stage) -> None:
    stage.mesh.apply(RULE.format(policy=f"{{connectionPool: {LIMITED}}}"))
    eventually(lambda: limit(stage) == 1)
    stage.mesh.apply(RULE.format(policy="{portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 7}}}]}"))
    eventually(lambda: limit(stage) == 7)


def test_of_connection_pools_the_most_particular_stands_alone(stage: Stage) -> None:
    """The port's, then the Sidecar's, then the DestinationRule's; they are not merged."""
    eventually(lambda: limit(stage) == 0)
    stage.mesh.apply(RULE.format(policy="{connectionPool: {tcp: {maxConnections: 30}}}"))
    eventually(lambda: limit(stage) == 30)
    stage.ingress("inboundConnectionPool: {tcp: {maxConnections: 20}}")
    eventually(lambda: limit(stage) == 20)
    port = "ingress: [{port: {number: 9080, protocol: HTTP, name: http}, connectionPool: {tcp: {maxConnections: 10}}}]"
    stage.ingress(f"inboundConnectionPool: {{tcp: {{maxConnections: 20}}}}\n{port}")
    eventually(lambda: limit(stage) == 10)
    stage.ingress("inboundConnectionPool: {http: {http1MaxPendingRequests: 5}}")
    eventually(lambda: limit(stage) == 0)


# TLS


def secure(stage: Stage, more: str = "") -> None:
    certificate, key = stage.mesh.world.certificate
    stage.ingress(
        f"""
ingress:
- port: {{number: 9080, protocol: HTTP, name: https}}
  defaultEndpoint: 127.0.0.1:8080
  tls:
    serverCertificate: {certificate}
    privateKey: {key}
    {more}
"""
    )


def handshakes(stage: Stage) -> bool:
    try:
        reply = stage.client.get("https://server.test:9080/", at=stage.server.address)
    except (ssl.SSLError, OSError):
        return False
    assert reply.call is not None
    return (reply.call.port, reply.call.tls) == (8080, False)


def test_a_sidecar_ends_tls_for_its_application(stage: Stage) -> None:
    secure(stage, "mode: SIMPLE")
    eventually(lambda: handshakes(stage))
    eventually(lambda: stage.port() == 0)  # nothing comes in without, once connections that were there are gone


def test_a_sidecar_asks_its_callers_for_certificates(stage: Stage) -> None:
    secure(stage, "mode: SIMPLE")
    eventually(lambda: handshakes(stage))
    secure(stage, f"mode: MUTUAL\n    caCertificates: {stage.mesh.authority.path}")
    eventually(lambda: not handshakes(stage))


def test_tls_that_a_sidecar_does_not_end_is_said_of_it(stage: Stage) -> None:
    stage.ingress("ingress: [{port: {number: 9080, protocol: HTTP, name: http}, tls: {mode: PASSTHROUGH}}]")
    assert any("$.spec.ingress[0].tls.mode" in problem for problem in stage.mesh.problems())


# Without capture


def test_a_workload_without_capture_is_called_where_its_sidecar_listens(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080, 9090], mode=Mode.NONE)
    mesh.service("server", {}, [PORT], pods=[server])
    client = mesh.pod("client")
    sidecar(
        mesh,
        """
workloadSelector: {labels: {app: server}}
ingress:
- port: {number: 9080, protocol: HTTP, name: somename}
  defaultEndpoint: 127.0.0.1:8080
  captureMode: NONE
- port: {number: 9082, protocol: TCP, name: tcp}
  bind: 127.0.0.1
  defaultEndpoint: 127.0.0.1:9090
  captureMode: NONE
""",
    )

    def port() -> int:
        call = client.get("http://server/").call
        return 0 if call is None else call.port

    eventually(lambda: port() == 8080)
    call = server.tcp("127.0.0.1", 9082)
    assert call is not None
    assert call.port == 9090


def test_a_listener_without_capture_stands_beside_captured_ports(mesh: Mesh) -> None:
    """The reference page's example of two networks: inbound at an address of its own, everything outbound captured."""
    other = mesh.service("other")
    server = mesh.pod("server", ports=[8080])
    sidecar(
        mesh,
        f"""
workloadSelector: {{labels: {{app: server}}}}
ingress:
- bind: {server.address}
  port: {{number: 9080, protocol: HTTP, name: somename}}
  defaultEndpoint: 127.0.0.1:8080
  captureMode: NONE
egress:
- captureMode: IPTABLES
  hosts: ["*/*"]
""",
    )
    mesh.service("server", {}, [PORT], pods=[server])
    client = mesh.pod("client")
    eventually(lambda: client.get("http://server/").status == 200)
    call = client.get("http://server/").call
    assert call is not None
    assert (call.server, call.port) == ("server", 8080)
    assert server.get(f"http://{other.host}/").server == "other-v1"


def test_a_transparent_proxy_keeps_its_callers_address(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[9080, 9081], mode=Mode.TPROXY)
    service = mesh.service("server", {}, [PORT, RAW], pods=[server])
    client = mesh.pod("client")
    for call in (client.get("http://server/").call, client.tcp(service.host, 81)):
        assert call is not None
        assert (call.server, call.peer) == ("server", client.address)


def test_a_transparent_proxy_calls_applications_on_the_loopback_address(mesh: Mesh) -> None:
    """From its own: nobody answers from there to the address of another machine."""
    server = mesh.pod("server", ports=[9080, 9081], mode=Mode.TPROXY)
    mesh.service("server", {}, [PORT, RAW], pods=[server])
    sidecar(mesh, ELSEWHERE)
    client = mesh.pod("client")
    call = client.get("http://server/").call
    assert call is not None
    assert (call.server, call.port, call.peer) == ("server", 9081, "127.0.0.1")


def test_a_workload_of_no_service_is_called_at_its_own_ports(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[9080, 9081])
    sidecar(mesh, ELSEWHERE)
    client = mesh.pod("client")

    def port() -> int:
        call = client.get(f"http://{server.address}:9080/").call
        return 0 if call is None else call.port

    assert port() == 9080
    mesh.service("server", {}, [PORT], pods=[server])
    eventually(lambda: port() == 9081)
