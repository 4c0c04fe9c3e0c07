"""DestinationRule `connectionPool` and `retryBudget`: how many connections and requests, how long, over which HTTP."""

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from support.pod import run
from support.traffic import Mesh, Pod, Reply, Service, World, eventually, exchange

SILENT = "198.51.100.200"  # an address at which no packet is answered

HTTP = ({"name": "http", "port": 80, "targetPort": 8080},)
HTTP2 = ({"name": "http2", "port": 80, "targetPort": 8080},)
TCP = ({"name": "tcp", "port": 9000, "targetPort": 9090},)

PINGS = "{http2KeepAlive: {interval: 30s, timeout: 7s}}"
PROBES = "{tcpKeepalive: {probes: 3, time: 70s, interval: 11s}}"

# Of each service: its ports, and its rule's trafficPolicy.
POLICIES: dict[str, tuple[Any, str]] = {
    "plain": (HTTP, ""),
    "few": (HTTP, "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}"),
    "zero": (HTTP, "connectionPool: {tcp: {maxConnections: 0}, http: {http1MaxPendingRequests: 0, http2MaxRequests: 0, maxRetries: 0}}"),
    "requests": (HTTP, "connectionPool: {http: {http2MaxRequests: 1}}"),
    "requests2": (HTTP2, "connectionPool: {http: {http2MaxRequests: 1}}"),
    "streams": (HTTP2, "connectionPool: {http: {maxConcurrentStreams: 1}}"),
    "unlimited": (HTTP2, ""),
    "once": (HTTP, "connectionPool: {http: {maxRequestsPerConnection: 1}}"),
    "idle": (HTTP, "connectionPool: {http: {idleTimeout: 100ms}}"),
    "lifetime": (HTTP, "connectionPool: {tcp: {maxConnectionDuration: 100ms}}"),
    "upgraded": (HTTP, "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}"),
    "kept": (HTTP, "connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}"),
    "preserved": (HTTP, "connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}"),
    "preserved2": (HTTP2, "connectionPool: {http: {useClientProtocol: true}}"),
    "alive": (HTTP2, f"connectionPool: {{http: {PINGS}, tcp: {PROBES}}}"),
    "tcp-few": (TCP, "connectionPool: {tcp: {maxConnections: 1}}"),
    "tcp-idle": (TCP, "connectionPool: {tcp: {idleTimeout: 200ms}}"),
    "tcp-lifetime": (TCP, "connectionPool: {tcp: {maxConnectionDuration: 200ms}}"),
    "tcp-forever": (TCP, "connectionPool: {tcp: {idleTimeout: 0s}}"),
    "budget": (HTTP, "retryBudget: {percent: 12.5, minRetryConcurrency: 7}"),
    "retries": (HTTP, "connectionPool: {http: {maxRetries: 1}}"),
}  # fmt: skip


class Stage:
    """A client, the services of `POLICIES`, and one whose endpoint never answers a connection."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.services: dict[str, Service] = {}
        for name, (ports, policy) in POLICIES.items():
            self.services[name] = self.mesh.service(name, ports=ports)
            if policy:
                self.mesh.put(_rule(name, policy), quiet=True)
        run("ip", "netns", "exec", mesh.world.namespace.name, *f"iptables -w -A INPUT -d {SILENT} -j DROP".split())
        self.mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: silent}}
            spec:
              hosts: [silent.test]
              ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 7000, name: tcp, protocol: TCP}}]
              resolution: STATIC
              endpoints: [{{address: {SILENT}}}]
        """)
        self.mesh.put(_rule("silent.test", "connectionPool: {tcp: {connectTimeout: 50ms}}"))
        self.client = self.mesh.pod("client")

    def calls(self, url: str, count: int) -> list[Reply]:
        return [self.client.get(url) for _ in range(count)]

    @contextlib.contextmanager
    def held(self, host: str, count: int) -> Iterator[list[Reply]]:
        """`count` requests that get no answer while this lasts, and then the same endpoint's."""
        application = self.services[host]["v1"]
        application.release.clear()
        replies: list[Reply] = []
        with ThreadPoolExecutor(count) as pool:
            waiting = [pool.submit(self.client.get, f"http://{host}/", {"x-hold": "1"}) for _ in range(count)]
            try:
                yield replies
            finally:
                application.release.set()
            replies += [w.result() for w in waiting]


def _rule(host: str, policy: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": host.replace(".", "-")},
        "spec": {"host": host, "trafficPolicy": yaml.safe_load("{" + policy + "}")},
    }


@pytest.fixture(scope="module")
def stage(world: World) -> Iterator[Stage]:
    with Mesh(world) as mesh:
        yield Stage(mesh)


def connections(replies: list[Reply]) -> int:
    return len({reply.call.connection for reply in replies if reply.call is not None})


class TestLimits:
    def test_beyond_max_connections_requests_wait_and_beyond_the_pending_they_fail(self, stage: Stage) -> None:
        application = stage.services["few"]["v1"]
        with stage.held("few", 1) as first:
            eventually(lambda: application.held == 1)
            with stage.held("few", 1) as second:
                eventually(lambda: stage.client.stat(_stat(stage, "few", "upstream_rq_pending_active")) == 1)
                third = stage.client.get("http://few/")
                assert (third.status, third.header("x-envoy-overloaded")) == (503, "true")
        assert [reply.status for reply in first + second] == [200, 200]
        assert connections(first + second) == 1

    def test_zero_is_no_limit(self, stage: Stage) -> None:
        with stage.held("zero", 5) as replies:
            eventually(lambda: stage.services["zero"]["v1"].held == 5)
        assert [reply.status for reply in replies] == [200] * 5

    @pytest.mark.parametrize("host", ["requests", "requests2"])
    def test_beyond_max_requests_they_fail_over_any_http(self, stage: Stage, host: str) -> None:
        with stage.held(host, 1) as first:
            eventually(lambda: stage.services[host]["v1"].held == 1)
            assert stage.client.get(f"http://{host}/").status == 503
        assert [reply.status for reply in first] == [200]
        eventually(lambda: stage.client.get(f"http://{host}/").status == 200)

    def test_max_concurrent_streams_are_those_of_one_connection(self, stage: Stage) -> None:
        found = {}
        for host in ("streams", "unlimited"):
            with stage.held(host, 3) as replies:
                eventually(lambda host=host: stage.services[host]["v1"].held == 3)
            found[host] = connections(replies)
        assert found == {"streams": 3, "unlimited": 1}

    def test_one_request_per_connection_ends_keep_alive(self, stage: Stage) -> None:
        assert connections(stage.calls("http://once/", 4)) == 4
        assert connections(stage.calls("http://plain/", 4)) == 1

    def test_beyond_max_connections_a_tcp_connection_is_closed(self, stage: Stage) -> None:
        with stage.client.connect("tcp-few", 9000) as first:
            assert exchange(first, b"one") is not None
            with contextlib.suppress(ConnectionError):
                assert stage.client.tcp("tcp-few", 9000) is None
            assert exchange(first, b"two") is not None
        eventually(lambda: _answers(stage.client, "tcp-few"))

    def test_a_retry_budget_and_a_limit_of_retries(self, stage: Stage) -> None:
        (threshold,) = _cluster(stage, "budget")["circuit_breakers"]["thresholds"]
        assert threshold["retry_budget"] == {"budget_percent": {"value": 12.5}, "min_retry_concurrency": 7}
        (threshold,) = _cluster(stage, "retries")["circuit_breakers"]["thresholds"]
        assert threshold["max_retries"] == 1


class TestTimes:
    def test_an_address_that_does_not_answer_is_given_up_after_the_connect_timeout(self, stage: Stage) -> None:
        # By default it would be tried for longer than the caller waits.
        reply = stage.client.get("http://silent.test/")
        assert reply.status == 503
        assert "upstream_reset_before_response_started{connection_timeout}" in reply.body or "connection timeout" in reply.body

    def test_so_is_a_tcp_connection_and_it_is_not_tried_again(self, stage: Stage) -> None:
        counter = "cluster.outbound|7000||silent.test.upstream_cx_connect_timeout"
        before = stage.client.stat(counter)
        assert stage.client.tcp("silent.test", 7000) is None
        assert stage.client.stat(counter) == before + 1

    def test_an_idle_http_connection_is_closed(self, stage: Stage) -> None:
        application = stage.services["idle"]["v1"]
        assert stage.client.get("http://idle/").status == 200
        eventually(lambda: not application.open)
        assert stage.client.get("http://plain/").status == 200
        assert stage.services["plain"]["v1"].open

    def test_an_http_connection_is_closed_at_its_greatest_age(self, stage: Stage) -> None:
        application = stage.services["lifetime"]["v1"]
        assert stage.client.get("http://lifetime/").status == 200
        eventually(lambda: not application.open)

    @pytest.mark.parametrize("host", ["tcp-idle", "tcp-lifetime"])
    def test_a_tcp_connection_is_closed_when_idle_or_at_its_greatest_age(self, stage: Stage, host: str) -> None:
        def is_used_and_closed() -> bool:
            """False where the connection was closed before it could be used, too."""
            with stage.client.connect(host, 9000) as connection, contextlib.suppress(ConnectionError):
                return exchange(connection, b"hello") is not None and connection.recv(1) == b""
            return False

        with stage.client.connect("tcp-forever", 9000) as other:
            assert exchange(other, b"hello") is not None
            eventually(is_used_and_closed)
            assert exchange(other, b"still") is not None

    def test_a_tcp_connection_ends_at_its_greatest_age_though_it_is_used(self, stage: Stage) -> None:
        with stage.client.connect("tcp-lifetime", 9000) as connection:
            eventually(lambda: _closed(connection))

    def test_keepalive_is_asked_for_on_http2_and_tcp(self, stage: Stage) -> None:
        cluster = _cluster(stage, "alive")
        assert cluster["upstream_connection_options"]["tcp_keepalive"] == {
            "keepalive_probes": 3,
            "keepalive_time": 70,
            "keepalive_interval": 11,
        }
        (options,) = cluster["typed_extension_protocol_options"].values()
        keepalive = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
        assert keepalive == {"interval": "30s", "timeout": "7s"}


class TestProtocols:
    @pytest.mark.parametrize(
        ("host", "of_http1", "of_http2"),
        [
            ("plain", "HTTP/1.1", "HTTP/1.1"),
            ("unlimited", "HTTP/2", "HTTP/2"),
            ("upgraded", "HTTP/2", "HTTP/2"),
            ("kept", "HTTP/1.1", "HTTP/1.1"),
            ("preserved", "HTTP/1.1", "HTTP/2"),
            ("preserved2", "HTTP/1.1", "HTTP/2"),
        ],
    )
    def test_what_the_application_is_asked_in(self, stage: Stage, host: str, of_http1: str, of_http2: str) -> None:
        first, second = stage.client.get(f"http://{host}/").call, stage.client.http2(f"http://{host}/").call
        assert first is not None
        assert second is not None
        assert (first.protocol, second.protocol) == (of_http1, of_http2)


def _cluster(stage: Stage, name: str) -> dict[str, Any]:
    full = f"outbound|{POLICIES[name][0][0]['port']}||{stage.services[name].host}"
    (found,) = (c["cluster"] for c in stage.client.config("dynamic_active_clusters") if c["cluster"]["name"] == full)
    return dict(found)


def _stat(stage: Stage, name: str, what: str) -> str:
    return f"cluster.outbound|80||{stage.services[name].host}.{what}"


def _answers(client: Pod, host: str) -> bool:
    try:
        return client.tcp(host, 9000) is not None
    except ConnectionError:
        return False


def _closed(connection: socket.socket) -> bool:
    try:
        return exchange(connection, b"again") is None
    except ConnectionError:
        return True
