"""Plain Services, without any rule: what is called, in which protocol, and how a workload is called through its own sidecar.

https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/ and .../traffic-routing/
"""

import contextlib
import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.applications import Call
from support.traffic import UNKNOWN, Mesh, Pod, Service, World, eventually


def answer(pod: Pod, url: str, at: str | None = None) -> str:
    reply = pod.get(url, at=at)
    return reply.server or str(reply.status)


def called(call: Call | None) -> Call:
    assert call is not None
    return call


def endpoints(mesh: Mesh, service: Service, conditions: dict[str, dict[str, bool]]) -> None:
    """Write the Service's EndpointSlice again: of its applications these, with these conditions."""
    found = mesh.objects["EndpointSlice", mesh.namespace, f"{service.name}-1"]
    chosen = [
        {
            "addresses": [service.applications[name].address],
            "conditions": given,
            "targetRef": {"kind": "Pod", "name": name, "namespace": mesh.namespace},
        }
        for name, given in conditions.items()
    ]
    mesh.put({**found, "endpoints": chosen})


READY = {"ready": True}


def test_a_service_is_called_by_its_name(mesh: Mesh) -> None:
    mesh.service("reviews")
    client = mesh.pod("client")
    names = ("reviews", f"reviews.{mesh.namespace}", f"reviews.{mesh.namespace}.svc", f"reviews.{mesh.namespace}.svc.cluster.local")
    for host in (*names, f"{names[-1]}."):
        reply = client.get(f"http://{host}/ratings", at="reviews")
        assert (reply.status, reply.server) == (200, "reviews-v1"), host
        assert called(reply.call).path == "/ratings"
    reply = client.get("http://reviews/", host="REVIEWS:80")
    assert reply.server == "reviews-v1"


def test_short_names_are_the_clients_namespaces(mesh: Mesh) -> None:
    mesh.service("reviews")
    other = mesh.service("reviews", ["v9"], namespace=f"{mesh.namespace}-a")
    mesh.service("far", namespace=f"{mesh.namespace}-a")
    here, there = mesh.pod("client"), mesh.pod("other", namespace=f"{mesh.namespace}-a")
    assert answer(here, "http://reviews/") == "reviews-v1"
    assert answer(there, "http://reviews/") == "reviews-v9"
    assert answer(here, f"http://reviews.{mesh.namespace}-a/", at=other.address) == "reviews-v9"
    assert answer(here, "http://far/") == UNKNOWN
    assert answer(here, f"http://far.{mesh.namespace}-a/") == "far-v1"


def test_the_host_decides_and_not_the_address(mesh: Mesh) -> None:
    one, two = mesh.service("one"), mesh.service("two")
    client = mesh.pod("client")
    assert answer(client, f"http://{two.host}/", at=one.address) == "two-v1"
    assert answer(client, f"http://{one.address}/") == "one-v1"


def test_all_endpoints_share_the_load(mesh: Mesh) -> None:
    mesh.service("reviews", {"v1": 2, "v2": 1})
    seen = mesh.pod("client").many("http://reviews/", 60)
    assert set(seen) == {"reviews-v1-0", "reviews-v1-1", "reviews-v2"}


# Ports and protocols


def test_ports_go_where_their_targets_are(mesh: Mesh) -> None:
    """`targetPort` may be a container port's name, which another pod of the Service may give another number."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-admin", "port": 8000, "targetPort": "admin"}]
    mesh.service("web", ports=ports)
    found = mesh.objects["EndpointSlice", mesh.namespace, "web-1"]
    (http, _) = found["ports"]
    mesh.put({**found, "ports": [http, {"name": "http-admin", "port": 9090, "protocol": "TCP"}]})
    client = mesh.pod("client")
    assert called(client.get("http://web/").call).port == 8080
    assert called(client.get("http://web:8000/").call).port == 9090


HTTP_PORTS = {
    "name: http": "HTTP/1.1",
    "name: http-web": "HTTP/1.1",
    "name: HTTP-web": "HTTP/1.1",
    "name: http2-web": "HTTP/2",
    "name: grpc": "HTTP/2",
    "name: grpc-web": "HTTP/2",
    "name: web, appProtocol: http": "HTTP/1.1",
    "name: tcp, appProtocol: http2": "HTTP/2",
    "name: web, appProtocol: kubernetes.io/h2c": "HTTP/2",
    "name: web, appProtocol: kubernetes.io/ws": "HTTP/1.1",
}
TCP_PORTS = ("name: tcp", "name: tcp-db", "name: mongo", "name: redis-1", "name: web, appProtocol: tcp")
TLS_PORTS = ("name: https", "name: tls", "name: tls-web")
SERVER_FIRST_PORTS = (25, 53, 3306, 27017)


class Declared:
    """A client, and a service for each way to declare a port."""

    def __init__(self, mesh: Mesh) -> None:
        self.services: dict[str | int, Service] = {}
        for text in (*HTTP_PORTS, *TCP_PORTS):
            self.add(mesh, text, {"port": 8080, **yaml.safe_load(f"{{{text}}}")})
        for text in TLS_PORTS:
            self.add(mesh, text, {"port": 443, "targetPort": 8443, **yaml.safe_load(f"{{{text}}}")})
        for number in SERVER_FIRST_PORTS:
            self.add(mesh, number, {"port": number, "name": "unknown"})
            self.services[number].applications[f"{self.services[number].name}-v1"].greeting = b"hello"
        self.client = mesh.pod("client")

    def add(self, mesh: Mesh, key: str | int, port: dict[str, Any]) -> None:
        self.services[key] = mesh.service(f"s{len(self.services)}", ports=[port], quiet=True)


@pytest.fixture(scope="module")
def declared(world: World) -> Iterator[Declared]:
    with Mesh(world) as mesh:
        yield Declared(mesh)


@pytest.mark.parametrize(("port", "protocol"), HTTP_PORTS.items())
def test_declared_http_is_spoken_as_declared(declared: Declared, port: str, protocol: str) -> None:
    """Whatever the caller speaks."""
    url = f"http://{declared.services[port].host}:8080/"
    assert called(declared.client.get(url).call).protocol == protocol
    assert called(declared.client.http2(url).call).protocol == protocol


@pytest.mark.parametrize("port", TCP_PORTS)
def test_declared_tcp_is_passed_on_as_bytes(declared: Declared, port: str) -> None:
    service = declared.services[port]
    assert called(declared.client.tcp(service.host, 8080)).server == f"{service.name}-v1"
    reply = declared.client.get(f"http://{service.host}:8080/")
    assert reply.header("x-envoy-upstream-service-time") is None
    assert called(reply.call).header("x-request-id") is None


@pytest.mark.parametrize("port", TLS_PORTS)
def test_tls_of_the_application_passes_through(declared: Declared, port: str) -> None:
    service = declared.services[port]
    for server_name in ("server.test", "anything.example.com"):
        call = called(declared.client.tls(service.host, 443, server_name))
        assert (call.server, call.port, call.tls, call.sni) == (f"{service.name}-v1", 8443, True, server_name)


@pytest.mark.parametrize("port", SERVER_FIRST_PORTS)
def test_on_ports_of_server_first_protocols_the_server_may_speak_first(declared: Declared, port: int) -> None:
    with declared.client.connect(declared.services[port].host, port) as connection:
        assert connection.recv(5) == b"hello"


def test_protocols_that_are_not_declared_are_found_out(mesh: Mesh) -> None:
    mesh.service("any", ports=[{"name": "some", "port": 9000}, {"name": "custom-http", "port": 8443}])
    client = mesh.pod("client")
    for port in (9000, 8443):
        reply = client.get(f"http://any:{port}/")
        assert called(reply.call).protocol == "HTTP/1.1"
        assert reply.header("x-envoy-upstream-service-time") is not None  # it was seen to be HTTP
        assert called(client.http2(f"http://any:{port}/").call).protocol == "HTTP/2"
        assert called(client.tcp("any", port, b"\x01\x02bytes")).body == "\x01\x02bytes"
        call = called(client.tls("any", port, "server.test"))
        assert (call.server, call.tls, call.sni) == ("any-v1", True, "server.test")


def test_grpc_is_called(mesh: Mesh) -> None:
    mesh.service("greeter", ports=[{"name": "grpc", "port": 9000}])
    headers = {"content-type": "application/grpc", "te": "trailers"}
    reply = mesh.pod("client").http2("http://greeter:9000/a.Service/Method", headers, body=b"\0\0\0\0\0")
    assert (reply.server, reply.header("grpc-status")) == ("greeter-v1", "0")


def test_udp_is_left_alone(mesh: Mesh) -> None:
    """DNS has both on one port: what is TCP of it is the mesh's."""
    mesh.service("dns", ports=[{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "tcp-dns", "port": 5353}])
    mesh.service("only", ports=[{"name": "udp", "port": 9999, "protocol": "UDP"}, {"name": "http", "port": 9998, "protocol": "SCTP"}])
    client = mesh.pod("client")
    assert called(client.tcp("dns", 5353)).server == "dns-v1"
    assert not any("only" in c["cluster"]["name"] for c in client.config("dynamic_active_clusters"))
    assert mesh.problems() == []


def test_http_and_tcp_services_share_a_port(mesh: Mesh) -> None:
    web, raw = mesh.service("web", ports=[{"name": "http", "port": 9000}]), mesh.service("raw", ports=[{"name": "tcp", "port": 9000}])
    auto = mesh.service("auto", ports=[{"name": "", "port": 9000}])
    client = mesh.pod("client")
    assert answer(client, f"http://{web.host}:9000/") == "web-v1"
    assert called(client.tcp(raw.address, 9000)).server == "raw-v1"
    assert answer(client, f"http://{raw.host}:9000/") == "raw-v1"
    assert answer(client, f"http://{auto.host}:9000/") == "auto-v1"
    assert called(client.tcp(auto.address, 9000, b"hello\n")).server == "auto-v1"


def test_a_protocol_changes_live(mesh: Mesh) -> None:
    client = mesh.pod("client")
    for name, http in (("http", True), ("tcp", False), ("", True), ("http2", True)):
        mesh.service("web", ports=[{"name": name, "port": 9000}], same_address=True)

        def seen(http: bool = http) -> bool:
            reply = client.get("http://web:9000/")
            assert reply.server == "web-v1"
            return (reply.header("x-envoy-upstream-service-time") is not None) == http

        eventually(seen, name)
    eventually(lambda: called(client.get("http://web:9000/").call).protocol == "HTTP/2", "the last one")


# Unknown destinations


def test_what_no_service_has_is_passed_on(mesh: Mesh) -> None:
    mesh.service("web")
    client = mesh.pod("client")
    outside = "203.0.113.200"
    assert answer(client, "http://elsewhere.example.com/", at=outside) == outside  # a port that services have
    assert answer(client, "http://elsewhere.example.com:8080/", at=outside) == outside  # and one that none has
    assert called(client.http2("http://elsewhere.example.com/", at=outside).call).protocol == "HTTP/2"
    for port in (80, 9090):
        assert called(client.tcp(outside, port, b"hello\n")).server == outside
    for port in (80, 443):
        assert called(client.tls(outside, port, "server.test")).server == outside


def test_a_pod_is_called_by_its_address(mesh: Mesh) -> None:
    web = mesh.service("web", ports=[{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 9000}])
    client = mesh.pod("client")
    address = web["v1"].address
    assert answer(client, f"http://{address}:8080/") == "web-v1"
    assert answer(client, f"http://{address}/") == "web-v1"
    assert called(client.tcp(address, 9000)).server == "web-v1"


# Kinds of Services


def test_headless_http_goes_to_the_pod_that_was_called(mesh: Mesh) -> None:
    service = mesh.service("db", {"v1": 3}, headless=True, ports=[{"name": "http", "port": 8080}])
    client = mesh.pod("client")
    for name, application in service.applications.items():
        assert answer(client, "http://db:8080/", at=application.address) == name
        host = f"{name}.db.{mesh.namespace}.svc.cluster.local"
        assert answer(client, f"http://{host}:8080/", at=application.address) == name
        assert answer(client, f"http://{name}.db:8080/", at=application.address) == name


def test_headless_tcp_goes_to_the_pod_that_was_called(mesh: Mesh) -> None:
    service = mesh.service("db", {"v1": 3}, headless=True, ports=[{"name": "tcp", "port": 9000}, {"name": "", "port": 9001}])
    client = mesh.pod("client")
    for name, application in service.applications.items():
        for port in (9000, 9001):
            assert called(client.tcp(application.address, port, b"hello\n")).server == name
    assert client.config("dynamic_listeners")
    endpoints(mesh, service, {"db-v1-0": READY})
    eventually(lambda: f"{service['v1-1'].address}_9000" not in {x["name"] for x in client.config("dynamic_listeners")})
    assert called(client.tcp(service["v1-0"].address, 9000)).server == "db-v1-0"


def test_a_tcp_connection_that_is_refused_is_tried_elsewhere(mesh: Mesh) -> None:
    mesh.apply("""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: raw}
        spec: {host: raw, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: raw-dead, labels: {kubernetes.io/service-name: raw}}
        addressType: IPv4
        ports: [{name: tcp, port: 4321, protocol: TCP}]  # where nobody listens
        endpoints: [{addresses: [198.51.100.9], conditions: {ready: true}}]
    """, quiet=True)  # fmt: skip
    mesh.service("raw", ports=[{"name": "tcp", "port": 9000}])
    client = mesh.pod("client")
    assert {called(client.tcp("raw", 9000)).server for _ in range(6)} == {"raw-v1"}


def test_a_headless_services_target_port_is_called(mesh: Mesh) -> None:
    service = mesh.service("db", headless=True, ports=[{"name": "http", "port": 80, "targetPort": 8080}])
    client = mesh.pod("client")
    call = called(client.get("http://db/", at=service.address).call)
    assert (call.server, call.port) == ("db-v1", 8080)


def test_a_pod_of_a_headless_service_calls_the_others_and_itself(mesh: Mesh) -> None:
    one, two = mesh.pod("db-0", ports=[9000, 8080]), mesh.pod("db-1", ports=[9000, 8080])
    mesh.service("db", {}, headless=True, pods=[one, two], ports=[{"name": "tcp", "port": 9000}, {"name": "http", "port": 8080}])
    for target in (one, two):
        eventually(lambda target=target: called(one.tcp(target.address, 9000, b"hello\n")).server == target.name)  # type: ignore[misc]
        assert answer(one, f"http://{target.name}.db:8080/", at=target.address) == target.name


def test_an_external_name_is_another_name_of_its_target(mesh: Mesh) -> None:
    target = mesh.service("target")
    for name, host in (("alias", target.host), ("second", f"alias.{mesh.namespace}.svc.cluster.local")):
        mesh.apply(f"""
            apiVersion: v1
            kind: Service
            metadata: {{name: {name}}}
            spec: {{type: ExternalName, externalName: {host}}}
        """)
    client = mesh.pod("client")
    for name in ("alias", f"alias.{mesh.namespace}.svc.cluster.local", "second"):
        assert answer(client, f"http://{name}/", at=target.address) == "target-v1"


def test_an_external_name_of_the_outside_is_passed_on(mesh: Mesh) -> None:
    mesh.service("web")
    mesh.apply("""
        apiVersion: v1
        kind: Service
        metadata: {name: outside}
        spec: {type: ExternalName, externalName: outside.example.com}
    """)
    assert answer(mesh.pod("client"), "http://outside/", at="203.0.113.201") == "203.0.113.201"


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_other_types_are_called_as_cluster_ips_are(mesh: Mesh, kind: str) -> None:
    mesh.service("web", spec={"type": kind})
    assert answer(mesh.pod("client"), "http://web/") == "web-v1"


def test_a_service_without_a_selector_has_the_endpoints_of_its_slices(mesh: Mesh) -> None:
    application = mesh.application("manual", ports=[8080])
    mesh.service("manual", {}, spec={"selector": None})
    found = mesh.objects["EndpointSlice", mesh.namespace, "manual-1"]
    mesh.put({**found, "endpoints": [{"addresses": [application.address]}]})
    assert answer(mesh.pod("client"), "http://manual/") == "manual"


def test_a_service_may_have_endpoints_of_the_old_form(mesh: Mesh) -> None:
    """Istio: task "Kubernetes Services for Egress Traffic": a Service without a selector, and its Endpoints."""
    web = mesh.service("web", {"v1": 1, "v2": 1})
    mesh.delete("EndpointSlice", "web-1", quiet=True)
    mesh.apply(f"""
        apiVersion: v1
        kind: Endpoints
        metadata: {{name: web}}
        subsets:
        - addresses: [{{ip: {web["v1"].address}}}]
          notReadyAddresses: [{{ip: {web["v2"].address}}}]
          ports: [{{name: http, port: 8080}}]
    """)
    client = mesh.pod("client")
    assert set(client.many("http://web/", 6)) == {"web-v1"}
    found = mesh.objects["Endpoints", mesh.namespace, "web"]
    mesh.put({**found, "subsets": [{**found["subsets"][0], "addresses": [{"ip": web["v2"].address}]}]})
    eventually(lambda: set(client.many("http://web/", 6)) == {"web-v2"})


def test_endpoints_of_several_slices_add_up(mesh: Mesh) -> None:
    mesh.service("web", {"v1": 2})
    found = mesh.objects["EndpointSlice", mesh.namespace, "web-1"]
    first, second = found["endpoints"]
    mesh.put({**found, "endpoints": [first]}, quiet=True)
    mesh.put({**found, "metadata": {**found["metadata"], "name": "web-2"}, "endpoints": [second, first]})
    assert set(mesh.pod("client").many("http://web/", 40)) == {"web-v1-0", "web-v1-1"}


# Endpoints


def test_only_ready_endpoints_are_called(mesh: Mesh) -> None:
    web = mesh.service("web", {"v1": 3})
    client = mesh.pod("client")
    ready, unready, ending = "web-v1-0", "web-v1-1", "web-v1-2"
    endpoints(mesh, web, {ready: READY, unready: {"ready": False}, ending: {"ready": False, "serving": True, "terminating": True}})
    eventually(lambda: client.many("http://web/", 20) == {ready: 20})
    endpoints(mesh, web, {ready: {"ready": False}, unready: READY, ending: {}})  # what is not said is true
    eventually(lambda: set(client.many("http://web/", 20)) == {unready, ending})
    endpoints(mesh, web, {ready: {"ready": False}})
    eventually(lambda: client.get("http://web/").status == 503)


def test_unready_endpoints_are_called_where_the_service_says_so(mesh: Mesh) -> None:
    web = mesh.service("web", {"v1": 2}, spec={"publishNotReadyAddresses": True})
    endpoints(mesh, web, {"web-v1-0": READY, "web-v1-1": {"ready": False}})
    assert set(mesh.pod("client").many("http://web/", 40)) == {"web-v1-0", "web-v1-1"}


def test_a_service_without_endpoints_answers_503(mesh: Mesh) -> None:
    mesh.service("web", {})
    client = mesh.pod("client")
    assert client.get("http://web/").status == 503


def test_local_internal_traffic_stays_on_the_clients_node(mesh: Mesh) -> None:
    mesh.service("web", ["v1", "v2"], nodes={"v1": "node-a", "v2": "node-b"}, spec={"internalTrafficPolicy": "Local"})
    here, nowhere = mesh.pod("client", host="node-b"), mesh.pod("lonely", host="node-c")
    assert here.many("http://web/", 10) == {"web-v2": 10}
    assert nowhere.get("http://web/").status == 503


@pytest.mark.parametrize("field", ["PreferClose", "PreferSameZone", "annotation"])
def test_traffic_is_kept_close_where_the_service_asks_for_it(mesh: Mesh, field: str) -> None:
    for node, zone in (("node-a", "a"), ("node-b", "b")):
        mesh.apply(
            f"""
            apiVersion: v1
            kind: Node
            metadata:
              name: {mesh.namespace}-{node}
              labels: {{topology.kubernetes.io/region: r, topology.kubernetes.io/zone: {zone}}}
            """,
            quiet=True,
        )
    a, b = f"{mesh.namespace}-node-a", f"{mesh.namespace}-node-b"
    more: dict[str, Any] = {"spec": {"trafficDistribution": field}}
    if field == "annotation":
        more = {"meta": {"annotations": {"networking.istio.io/traffic-distribution": "PreferClose"}}}
    web = mesh.service("web", ["v1", "v2"], nodes={"v1": a, "v2": b}, **more)
    client = mesh.pod("client", host=b)
    assert client.many("http://web/", 10) == {"web-v2": 10}
    endpoints(mesh, web, {"web-v1": READY})
    eventually(lambda: set(client.many("http://web/", 10)) == {"web-v1"})


def test_endpoints_come_and_go_without_a_failed_request(mesh: Mesh) -> None:
    web = mesh.service("web", {"v1": 4})
    client = mesh.pod("client")
    seen: Counter[str] = Counter()
    for chosen in ((0,), (0, 1), (1, 2, 3), (3,), (0, 1, 2, 3)):
        names = {f"web-v1-{n}" for n in chosen}
        endpoints(mesh, web, dict.fromkeys(names, READY))

        def reached(names: set[str] = names) -> bool:
            found = client.many("http://web/", 20)
            seen.update(found)
            return set(found) == names

        eventually(reached)
    assert set(seen) == {f"web-v1-{n}" for n in range(4)}  # and no status of a failure


# Visibility


def test_a_service_is_for_the_namespaces_it_is_exported_to(mesh: Mesh) -> None:
    mesh.service("other")  # so that port 80 has a route table
    other = f"{mesh.namespace}-a"
    here, there = mesh.pod("client"), mesh.pod("other", namespace=other)

    def seen(host: str) -> set[str]:
        return {name for name, pod in (("here", here), ("there", there)) if answer(pod, f"http://{host}/") == "web-v1"}

    both = {"here", "there"}
    for export_to, expected in ((".", {"here"}), (other, {"there"}), (f"., {other}", both), ("~", set()), ("", both)):
        web = mesh.service("web", meta={"annotations": {"networking.istio.io/exportTo": export_to}})
        eventually(lambda host=web.host, expected=expected: seen(host) == expected, f"{export_to} to give {expected}")  # type: ignore[misc]


# Live changes


def test_a_service_goes_and_comes_back_with_another_port_and_type(mesh: Mesh) -> None:
    mesh.service("other")
    mesh.service("web")
    client = mesh.pod("client")
    assert answer(client, "http://web/") == "web-v1"
    mesh.delete("Service", "web")
    eventually(lambda: answer(client, "http://web/") != "web-v1")
    mesh.service("web", ["v2"], ports=[{"name": "http", "port": 8080}])
    eventually(lambda: answer(client, "http://web:8080/") == "web-v2")
    mesh.delete("Service", "web")
    service = mesh.service("web", ["v3"], ports=[{"name": "http", "port": 8080}], headless=True)
    eventually(lambda: answer(client, "http://web:8080/", at=service.address) == "web-v3")
    mesh.delete("Service", "web")
    mesh.apply(f"""
        apiVersion: v1
        kind: Service
        metadata: {{name: web}}
        spec: {{type: ExternalName, externalName: other.{mesh.namespace}.svc.cluster.local}}
    """)
    eventually(lambda: answer(client, "http://web/") == "other-v1")


def test_the_address_of_a_service_changes(mesh: Mesh) -> None:
    first = mesh.service("web", ports=[{"name": "tcp", "port": 9000}])
    client = mesh.pod("client")
    assert called(client.tcp(first.address, 9000)).server == "web-v1"
    second = mesh.service("web", ports=[{"name": "tcp", "port": 9000}])
    eventually(lambda: called(client.tcp(second.address, 9000)).server == "web-v1")
    eventually(lambda: called(client.tcp(first.address, 9000)).server == first.address)


# Through the server's own sidecar


class Pair:
    """A client and a server, both with sidecars. The server's service has ports of several protocols."""

    PORTS = (
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "grpc", "port": 81, "targetPort": 8081},
        {"name": "tcp", "port": 82, "targetPort": 8082},
        {"name": "", "port": 83, "targetPort": 8083},
        {"name": "https", "port": 84, "targetPort": 8084},
    )

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.server = mesh.pod("server", ports=[8080, 8081, 8082, 8083, 8084, 9099])
        self.service = mesh.service("server", {}, self.PORTS, pods=[self.server])
        self.client = mesh.pod("client")
        eventually(lambda: self.server.has_cluster("inbound|8080||"))


@pytest.fixture(scope="module")
def pair(world: World) -> Iterator[Pair]:
    with Mesh(world) as mesh:
        yield Pair(mesh)


def test_a_servers_sidecar_takes_http(pair: Pair) -> None:
    reply = pair.client.get("http://server/path")
    call = called(reply.call)
    assert (call.server, call.port, call.path, call.address) == ("server", 8080, "/path", pair.server.address)
    assert pair.server.stat("cluster.inbound|8080||.upstream_rq_total") > 0
    assert call.header("x-forwarded-proto") == "http"


def test_a_servers_sidecar_takes_grpc(pair: Pair) -> None:
    headers = {"content-type": "application/grpc", "te": "trailers"}
    reply = pair.client.http2("http://server:81/a.Service/Method", headers, body=b"\0\0\0\0\0")
    assert (reply.server, reply.header("grpc-status"), called(reply.call).protocol) == ("server", "0", "HTTP/2")


def test_a_servers_sidecar_takes_bytes(pair: Pair) -> None:
    assert called(pair.client.tcp("server", 82)).port == 8082
    assert called(pair.client.tcp("server", 83, b"hello\n")).port == 8083


def test_a_servers_sidecar_finds_out_what_is_not_declared(pair: Pair) -> None:
    assert called(pair.client.get("http://server:83/").call).protocol == "HTTP/1.1"
    assert called(pair.client.http2("http://server:83/").call).protocol == "HTTP/2"
    assert called(pair.client.tls("server", 83, "server.test")).tls


def test_a_servers_sidecar_passes_the_applications_own_tls_on(pair: Pair) -> None:
    call = called(pair.client.tls("server", 84, "server.test"))
    assert (call.port, call.tls, call.sni) == (8084, True, "server.test")


def test_ports_that_no_service_has_are_passed_on_to_the_application(pair: Pair) -> None:
    address = pair.server.address
    assert called(pair.client.get(f"http://{address}:9099/").call).port == 9099
    assert called(pair.client.http2(f"http://{address}:9099/").call).protocol == "HTTP/2"
    assert called(pair.client.tcp(address, 9099, b"hello\n")).port == 9099
    assert called(pair.client.tls(address, 9099, "server.test")).tls
    with pytest.raises((ConnectionError, ssl.SSLError)):
        pair.client.tls(address, 9098, "server.test")  # where nothing listens


def test_a_caller_without_a_sidecar_is_served(pair: Pair) -> None:
    """From the world, which knows nothing of the mesh."""
    with contextlib.closing(pair.mesh.world.namespace.connect(pair.server.address, 8080)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: anything\r\nconnection: close\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)


def test_a_workload_calls_itself_through_its_own_service(pair: Pair) -> None:
    reply = pair.server.get("http://server/")
    assert (reply.status, reply.server) == (200, "server")
    assert called(pair.server.tcp("server", 82)).server == "server"
    assert answer(pair.server, f"http://{pair.server.address}:8080/") == "server"


def test_a_workload_is_called_on_the_loopback_address_by_itself(pair: Pair) -> None:
    assert called(pair.server.get("http://localhost:9099/", at="127.0.0.1").call).address == "127.0.0.1"


def test_the_proxys_own_ports_are_no_way_round(pair: Pair) -> None:
    """What is sent to them was not redirected from anywhere: it would go round for ever."""
    for port in (15001, 15006):
        with contextlib.suppress(ConnectionError, TimeoutError):
            assert pair.client.tcp(pair.server.address, port, b"GET / HTTP/1.1\r\n\r\n") is None


def test_a_pod_joins_and_leaves_a_service(mesh: Mesh) -> None:
    """Its ports' protocols follow what services say of it."""
    server = mesh.pod("server", ports=[8080])
    client = mesh.pod("client")
    mesh.service("one", {}, [{"name": "http", "port": 80, "targetPort": 8080}], pods=[server])
    eventually(lambda: server.has_cluster("inbound|8080||"))
    eventually(lambda: answer(client, "http://one/") == "server")
    mesh.service("one", {}, [{"name": "http", "port": 80, "targetPort": 8080}])
    eventually(lambda: not server.has_cluster("inbound|8080||"))
    assert client.get("http://one/").status == 503
