"""Host names: short ones, wildcards, and which is the more specific. What ports speak."""

import pytest

from xds.mesh.model import Protocol
from xds.mesh.names import covers, kubernetes_name, patterns, qualified
from xds.mesh.protocols import service_port


@pytest.mark.parametrize(
    ("host", "full"),
    [
        ("reviews", "reviews.shop.svc.cluster.local"),
        ("Reviews", "reviews.shop.svc.cluster.local"),
        ("reviews.other", "reviews.other"),
        ("reviews.other.svc.cluster.local.", "reviews.other.svc.cluster.local"),
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("fd00::1", "fd00::1"),
        ("", ""),
    ],
)
def test_only_names_without_a_dot_are_short(host: str, full: str) -> None:
    assert qualified(host, "shop") == full


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("a.b", "a.b", True),
        ("*.b", "a.b", True),
        ("*.b", "a.x.b", True),
        ("*.b", "b", False),
        ("*", "a.b", True),
        ("*.b", "*.a.b", True),
        ("*.a.b", "*.b", False),
        ("*-x.b", "a-x.b", True),
    ],
)
def test_patterns_cover_all_that_hosts_stand_for(pattern: str, host: str, covered: bool) -> None:
    assert covers(pattern, host) is covered


def test_patterns_go_from_the_most_specific_on() -> None:
    assert list(patterns("a.b.c")) == ["a.b.c", "*.b.c", "*.c", "*"]
    assert list(patterns("*.b.c")) == ["*.b.c", "*.c", "*"]
    assert list(patterns("*")) == ["*"]


@pytest.mark.parametrize(
    ("host", "parts"),
    [("a.b.svc.cluster.local", ("a", "b")), ("a.b", None), ("*.b.svc.cluster.local", None), ("a.b.svc.example.com", None)],
)
def test_names_of_kubernetes_services(host: str, parts: tuple[str, str] | None) -> None:
    assert kubernetes_name(host) == parts


@pytest.mark.parametrize(
    ("name", "app_protocol", "protocol"),
    [
        ("http", None, "HTTP"),
        ("http-web", None, "HTTP"),
        ("HTTP-web", None, "HTTP"),
        ("http2", None, "HTTP2"),
        ("grpc", None, "GRPC"),
        ("grpc-web", None, "GRPC_WEB"),
        ("grpc-web-x", None, "GRPC_WEB"),
        ("https", None, "HTTPS"),
        ("tls-x", None, "TLS"),
        ("tcp", None, "TCP"),
        ("mongo", None, "MONGO"),
        ("redis", None, "REDIS"),
        ("mysql", None, "MYSQL"),
        ("web", None, "AUTO"),
        ("", None, "AUTO"),
        ("httpx", None, "AUTO"),
        ("tcp", "http", "HTTP"),
        ("http", "tcp", "TCP"),
        ("http", "kubernetes.io/h2c", "HTTP2"),
        ("x", "kubernetes.io/ws", "HTTP"),
        ("x", "kubernetes.io/wss", "HTTPS"),
        ("http", "example.com/own", "AUTO"),
        ("http", "", "AUTO"),
    ],
)
def test_what_a_port_of_a_kubernetes_service_speaks(name: str, app_protocol: str | None, protocol: str) -> None:
    assert service_port(8080, name, "TCP", app_protocol) is Protocol[protocol]


@pytest.mark.parametrize("port", [25, 53, 3306, 27017])
def test_where_the_server_speaks_first_nothing_is_detected(port: int) -> None:
    assert service_port(port) is Protocol.TCP
    assert service_port(port, "http") is Protocol.HTTP


def test_udp_is_udp_whatever_its_name() -> None:
    assert service_port(53, "http", "UDP") is Protocol.UDP
