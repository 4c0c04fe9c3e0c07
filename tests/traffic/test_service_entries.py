"""Istio's ServiceEntry and WorkloadEntry: services that Kubernetes does not know.

https://istio.io/latest/docs/reference/config/networking/service-entry/ and .../workload-entry/
"""

import contextlib
import ssl
from collections import Counter
from collections.abc import Callable

import pytest
import yaml
from support.applications import Application
from support.sidecars import open_directory, sidecar
from support.traffic import UNKNOWN, Mesh, Pod, eventually

HTTP = "{number: 80, name: http, protocol: HTTP}"
ELSEWHERE = "198.51.100.50"  # an address that no entry knows


def entry(mesh: Mesh, name: str, spec: str, namespace: str | None = None, created: str | None = None) -> None:
    """Write a ServiceEntry; `spec` is YAML whose first level is not indented."""
    mesh.put(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {
                "name": name,
                **({"namespace": namespace} if namespace else {}),
                **({"creationTimestamp": created} if created else {}),
            },
            "spec": yaml.safe_load(spec),
        }
    )


def static(mesh: Mesh, host: str, application: Application, ports: str = HTTP, more: str = "") -> None:
    """A ServiceEntry of one endpoint."""
    entry(
        mesh,
        host.replace("*", "any"),
        f"{{hosts: ['{host}'], ports: [{ports}], resolution: STATIC, endpoints: [{{address: {application.address}}}], {more}}}",
    )


def selecting(mesh: Mesh, app: str, resolution: str = "STATIC") -> None:
    """The ServiceEntry `one.example.com` for workloads of `app`."""
    selector = f"workloadSelector: {{labels: {{app: {app}}}}}"
    entry(mesh, "one", f"{{hosts: [one.example.com], location: MESH_INTERNAL, ports: [{HTTP}], resolution: {resolution}, {selector}}}")


def answer(pod: Pod, url: str, at: str | None = None) -> str:
    reply = pod.get(url, at=at)
    return reply.server or str(reply.status)


def tcp(pod: Pod, host: str, port: int) -> str:
    call = pod.tcp(host, port, b"hello\n")
    return "" if call is None else call.server


def tls(pod: Pod, host: str, port: int, server_name: str) -> str:
    """Who answers a TLS call, empty where it fails."""
    try:
        call = pod.tls(host, port, server_name)
    except (ssl.SSLError, ConnectionError):
        return ""
    return "" if call is None else call.server


# HTTP


def test_http_is_told_by_its_host_whatever_address_it_goes_to(mesh: Mesh) -> None:
    one, other, wild = (mesh.application(name, ports=[80]) for name in ("one", "other", "wild"))
    entry(
        mesh,
        "several",
        f"{{hosts: [One.example.com, also.example.org], ports: [{HTTP}], resolution: STATIC, endpoints: [{{address: {one.address}}}]}}",
    )
    static(mesh, "other.example.com", other)
    static(mesh, "*.wild.example.com", wild)
    client = mesh.pod("client")
    assert answer(client, "http://one.example.com/") == "one"
    assert answer(client, "http://ONE.example.COM/") == "one"
    assert answer(client, "http://one.example.com/", at=ELSEWHERE) == "one"
    assert answer(client, "http://also.example.org/") == "one"
    assert answer(client, "http://other.example.com/") == "other"
    assert answer(client, "http://a.wild.example.com/") == "wild"
    assert answer(client, "http://a.b.wild.example.com/") == "wild"
    assert answer(client, "http://wild.example.com/") == UNKNOWN
    assert answer(client, "http://two.example.com/") == UNKNOWN
    assert mesh.problems() == []


def test_the_exact_host_wins_over_the_wildcard(mesh: Mesh) -> None:
    exact, wild, narrow = (mesh.application(name, ports=[80]) for name in ("exact", "wild", "narrow"))
    static(mesh, "*.example.com", wild)
    static(mesh, "*.api.example.com", narrow)
    static(mesh, "a.example.com", exact)
    client = mesh.pod("client")
    assert answer(client, "http://a.example.com/") == "exact"
    assert answer(client, "http://b.example.com/") == "wild"
    assert answer(client, "http://b.api.example.com/") == "narrow"


def test_virtual_addresses_are_hosts_too(mesh: Mesh) -> None:
    application = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", application, more="addresses: [192.0.2.20]")
    client = mesh.pod("client")
    assert answer(client, "http://192.0.2.20/") == "one"
    assert answer(client, "http://one.example.com/", at="192.0.2.20") == "one"
    assert answer(client, "http://192.0.2.21/") == "192.0.2.21"


@pytest.mark.parametrize("protocol", ["HTTP2", "GRPC", "grpc", "http"])
def test_protocols_of_http(mesh: Mesh, protocol: str) -> None:
    application = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", application, f"{{number: 80, name: any-name, protocol: {protocol}}}")
    client = mesh.pod("client")
    reply = client.http2("http://one.example.com/")
    assert reply.call is not None
    assert (reply.server, reply.call.protocol) == ("one", "HTTP/1.1" if protocol == "http" else "HTTP/2")


def test_ports_of_endpoints(mesh: Mesh) -> None:
    """The port's number, then its `targetPort`, then the endpoint's own `ports`."""
    same, target, own = (mesh.application(name, ports=[80, 8081, 9091]) for name in ("same", "target", "own"))
    static(mesh, "same.example.com", same)
    static(mesh, "target.example.com", target, "{number: 80, name: http, protocol: HTTP, targetPort: 8081}")
    entry(
        mesh,
        "own",
        f"""
hosts: [own.example.com]
ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8081}}, {{number: 81, name: other, protocol: HTTP, targetPort: 8081}}]
resolution: STATIC
endpoints: [{{address: {own.address}, ports: {{http: 9091}}}}]
""",
    )
    client = mesh.pod("client")
    for url, port in (
        ("http://same.example.com/", 80),
        ("http://target.example.com/", 8081),
        ("http://own.example.com/", 9091),
        ("http://own.example.com:81/", 8081),
    ):
        call = client.get(url).call
        assert call is not None
        assert call.port == port, url


def test_weights_of_endpoints(mesh: Mesh) -> None:
    light, heavy = (mesh.application(name, ports=[80]) for name in ("light", "heavy"))
    entry(
        mesh,
        "one",
        f"""
hosts: [one.example.com]
ports: [{HTTP}]
resolution: STATIC
endpoints: [{{address: {light.address}, weight: 10}}, {{address: {heavy.address}, weight: 90}}]
""",
    )
    mesh.apply("""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: one}
        spec: {host: one.example.com, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
    """)
    seen = mesh.pod("client").many("http://one.example.com/", 100)
    assert seen["light"] + seen["heavy"] == 100
    assert 5 <= seen["light"] <= 15


def test_labels_of_endpoints_make_subsets(mesh: Mesh) -> None:
    one, two = (mesh.application(name, ports=[80]) for name in ("one", "two"))
    entry(
        mesh,
        "one",
        f"""
hosts: [one.example.com]
ports: [{HTTP}]
resolution: STATIC
endpoints: [{{address: {one.address}, labels: {{version: v1}}}}, {{address: {two.address}, labels: {{version: v2}}}}]
""",
    )
    mesh.apply("""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: one}
        spec: {host: one.example.com, subsets: [{name: two, labels: {version: v2}}]}
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: one}
        spec:
          hosts: [one.example.com]
          http:
          - match: [{uri: {prefix: /two}}]
            route: [{destination: {host: one.example.com, subset: two}}]
          - route: [{destination: {host: one.example.com}}]
    """)
    client = mesh.pod("client")
    assert client.many("http://one.example.com/two", 10) == {"two": 10}
    assert set(client.many("http://one.example.com/", 40)) == {"one", "two"}


def test_an_endpoint_may_be_a_unix_socket_of_the_client(mesh: Mesh) -> None:
    with open_directory() as directory:
        client = mesh.pod("client")
        application = client.listen_unix(f"unix://{directory}/socket")
        entry(
            mesh,
            "unix",
            f"""
hosts: [example.unix.local]
location: MESH_EXTERNAL
ports: [{HTTP}]
resolution: STATIC
endpoints: [{{address: "unix://{directory}/socket"}}]
""",
        )
        eventually(lambda: answer(client, "http://example.unix.local/") == application.name)


def test_resolution_none_goes_where_the_caller_was_going(mesh: Mesh) -> None:
    """NONE is also what an entry without a `resolution` has."""
    mesh.application("target", ELSEWHERE, ports=[8085, 8086, 8087])
    entry(
        mesh,
        "wild",
        "{hosts: ['*.bar.com'], location: MESH_EXTERNAL, ports: [{number: 8085, name: http, protocol: HTTP}], resolution: NONE}",
    )
    entry(mesh, "moved", "{hosts: [moved.com], ports: [{number: 8086, name: http, protocol: HTTP, targetPort: 8087}]}")
    sidecar(mesh, "egress: [{hosts: ['*/*']}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    client = mesh.pod("client")
    assert answer(client, "http://a.bar.com:8085/", at=ELSEWHERE) == "target"
    assert answer(client, "http://a.baz.com:8085/", at=ELSEWHERE) == "502"
    call = client.get("http://moved.com:8086/", at=ELSEWHERE).call
    assert call is not None
    assert call.port == 8087


# DNS


def test_without_endpoints_the_host_is_resolved(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80, 8081])
    mesh.world.names["dns-host.example.com"] = [one.address]
    entry(
        mesh,
        "one",
        f"{{hosts: [dns-host.example.com], ports: [{HTTP}, {{number: 81, name: two, protocol: HTTP, targetPort: 8081}}], resolution: DNS}}",
    )
    client = mesh.pod("client")
    assert answer(client, "http://dns-host.example.com/") == "one"
    call = client.get("http://dns-host.example.com:81/").call
    assert call is not None
    assert (call.server, call.port) == ("one", 8081)


def test_endpoints_that_are_names_are_resolved_each(mesh: Mesh) -> None:
    """The reference page's `foo.bar.com`, which three other names back, on ports of their own."""
    parts = {"us": 8080, "uk": 9080, "in": 7080}
    for name, port in parts.items():
        application = mesh.application(name, ports=[port])
        mesh.world.names[f"{name}.foo.bar.com"] = [application.address]
    endpoints = ", ".join(f"{{address: {name}.foo.bar.com, ports: {{http: {port}}}}}" for name, port in parts.items())
    entry(mesh, "foo", f"{{hosts: [foo.bar.com], location: MESH_EXTERNAL, ports: [{HTTP}], resolution: DNS, endpoints: [{endpoints}]}}")
    client = mesh.pod("client")
    eventually(lambda: set(client.many("http://foo.bar.com/", 30)) == {"us", "uk", "in"})
    assert client.get("http://foo.bar.com/").call.authority == "foo.bar.com"  # type: ignore[union-attr]


def test_all_addresses_of_a_name_are_used_and_followed(mesh: Mesh) -> None:
    applications = [mesh.application(name, ports=[80]) for name in ("a", "b", "c")]
    a, b, c = (application.address for application in applications)
    mesh.world.names["many.example.com"] = [a, b]
    entry(mesh, "many", f"{{hosts: [many.example.com], ports: [{HTTP}], resolution: DNS}}")
    client = mesh.pod("client")
    eventually(lambda: set(client.many("http://many.example.com/", 20)) == {"a", "b"})
    mesh.world.names["many.example.com"] = [c]
    eventually(lambda: set(client.many("http://many.example.com/", 10)) == {"c"})


def test_round_robin_dns_uses_one_address_and_keeps_its_connections(mesh: Mesh) -> None:
    applications = [mesh.application(name, ports=[80]) for name in ("a", "b")]
    a, b = (application.address for application in applications)
    mesh.world.names["robin.example.com"] = [a, b]
    entry(mesh, "robin", f"{{hosts: [robin.example.com], ports: [{HTTP}], resolution: DNS_ROUND_ROBIN}}")
    client = mesh.pod("client")
    assert client.many("http://robin.example.com/", 10) == {"a": 10}
    mesh.world.names["robin.example.com"] = [b, a]
    applications[0].status = 200
    assert answer(client, "http://robin.example.com/") == "a"  # on a connection that is there


def test_round_robin_dns_resolves_its_one_endpoint(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[8081])
    mesh.world.names["backend.example.com"] = [one.address]
    entry(
        mesh,
        "robin",
        f"{{hosts: [front.example.com], ports: [{HTTP}], resolution: DNS_ROUND_ROBIN, "
        "endpoints: [{address: backend.example.com, ports: {http: 8081}}]}",
    )
    assert answer(mesh.pod("client"), "http://front.example.com/") == "one"


def test_dns_resolution_takes_addresses_for_endpoints_too(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    entry(mesh, "one", f"{{hosts: [one.example.com], ports: [{HTTP}], resolution: DNS, endpoints: [{{address: {one.address}}}]}}")
    assert answer(mesh.pod("client"), "http://one.example.com/") == "one"


def test_dynamic_dns_resolves_the_name_that_is_called(mesh: Mesh) -> None:
    for name in ("a", "b"):
        mesh.world.names[f"{name}.dynamic.example.com"] = [mesh.application(name, ports=[80, 8443]).address]
    ports = f"{HTTP}, {{number: 8443, name: tls, protocol: TLS}}"
    entry(mesh, "dynamic", f"{{hosts: ['*.dynamic.example.com'], location: MESH_EXTERNAL, ports: [{ports}], resolution: DYNAMIC_DNS}}")
    client = mesh.pod("client")
    for name in ("a", "b"):
        assert answer(client, f"http://{name}.dynamic.example.com/") == name
        assert tls(client, UNKNOWN, 8443, f"{name}.dynamic.example.com") == name


# TCP


def test_tcp_is_told_by_its_address(mesh: Mesh) -> None:
    one, other = (mesh.application(name, ports=[9000]) for name in ("one", "other"))
    port = "{number: 9000, name: tcp, protocol: TCP}"
    static(mesh, "one.example.com", one, port, "addresses: [192.0.2.30]")
    static(mesh, "other.example.com", other, port, "addresses: [192.0.2.31, 192.0.2.32/32]")
    client = mesh.pod("client")
    assert tcp(client, "192.0.2.30", 9000) == "one"
    assert tcp(client, "192.0.2.31", 9000) == "other"
    assert tcp(client, "192.0.2.32", 9000) == "other"
    assert tcp(client, "192.0.2.33", 9000) == "192.0.2.33"


@pytest.mark.parametrize("protocol", ["TCP", "MONGO", "mysql", "Redis"])
def test_without_addresses_tcp_is_told_by_its_port_alone(mesh: Mesh, protocol: str) -> None:
    one = mesh.application("one", ports=[9001])
    static(mesh, "one.example.com", one, f"{{number: 9001, name: tcp, protocol: {protocol}}}")
    client = mesh.pod("client")
    assert {tcp(client, address, 9001) for address in ("192.0.2.40", ELSEWHERE)} == {"one"}


def test_networks_are_addresses(mesh: Mesh) -> None:
    """The reference page's `192.192.192.192/24`: host bits count for nothing."""
    one, narrow = (mesh.application(name, ports=[9002]) for name in ("one", "narrow"))
    mesh.application("reached", "203.0.113.9", ports=[9002])
    port = "{number: 9002, name: mongodb, protocol: MONGO}"
    static(mesh, "wide.example.com", one, port, "addresses: [198.51.100.192/24], location: MESH_INTERNAL")
    static(mesh, "narrow.example.com", narrow, port, "addresses: [198.51.100.64/26]")
    entry(mesh, "none", "{hosts: [none.example.com], addresses: [203.0.113.0/28], ports: [{number: 9002, name: tcp, protocol: TCP}]}")
    sidecar(mesh, "egress: [{hosts: ['*/*']}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    client = mesh.pod("client")
    assert tcp(client, "198.51.100.1", 9002) == "one"
    assert tcp(client, "198.51.100.65", 9002) == "narrow"
    assert tcp(client, "203.0.113.9", 9002) == "reached"
    with contextlib.suppress(ConnectionError):
        assert tcp(client, "203.0.113.77", 9002) == ""


def test_an_entry_with_an_address_takes_it_from_one_without(mesh: Mesh) -> None:
    anywhere, there = (mesh.application(name, ports=[9003]) for name in ("anywhere", "there"))
    port = "{number: 9003, name: tcp, protocol: TCP}"
    static(mesh, "a.example.com", anywhere, port)
    static(mesh, "b.example.com", there, port, "addresses: [192.0.2.50]")
    client = mesh.pod("client")
    assert tcp(client, "192.0.2.50", 9003) == "there"
    assert tcp(client, "192.0.2.51", 9003) == "anywhere"


def test_of_two_entries_for_one_port_of_any_address_the_older_has_it(mesh: Mesh) -> None:
    young, old = (mesh.application(name, ports=[9004]) for name in ("young", "old"))
    port = "[{number: 9004, name: tcp, protocol: TCP}]"
    for name, application, created in (("a", young, "2025-01-01T00:00:00Z"), ("b", old, "2024-06-01T00:00:00Z")):
        spec = f"{{hosts: [{name}.example.com], ports: {port}, resolution: STATIC, endpoints: [{{address: {application.address}}}]}}"
        entry(mesh, name, spec, created=created)
    client = mesh.pod("client")
    assert tcp(client, UNKNOWN, 9004) == "old"
    mesh.delete("ServiceEntry", "b")
    eventually(lambda: tcp(client, UNKNOWN, 9004) == "young")


def test_tcp_of_resolution_none_goes_on_to_any_address(mesh: Mesh) -> None:
    mesh.application("there", ELSEWHERE, ports=[9005, 9006])
    entry(
        mesh, "none", "{hosts: [none.example.com], ports: [{number: 9005, name: tcp, protocol: TCP, targetPort: 9006}], resolution: NONE}"
    )
    sidecar(mesh, "egress: [{hosts: ['*/*']}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    call = mesh.pod("client").tcp(ELSEWHERE, 9005)
    assert call is not None
    assert (call.server, call.port) == ("there", 9006)


def test_the_server_may_speak_first(mesh: Mesh) -> None:
    database = mesh.application("mysql", ports=[3306])
    database.greeting = b"5.7\n"
    mesh.world.names["mysql.example.com"] = [database.address]
    entry(mesh, "mysql", "{hosts: [mysql.example.com], ports: [{number: 3306, name: mysql, protocol: MYSQL}], resolution: DNS}")
    client = mesh.pod("client")
    with client.connect(ELSEWHERE, 3306) as connection:
        assert connection.recv(4) == b"5.7\n"


# TLS


@pytest.mark.parametrize("protocol", ["TLS", "HTTPS"])
def test_tls_is_told_by_its_server_name(mesh: Mesh, protocol: str) -> None:
    port = f"{{number: 8443, name: tls, protocol: {protocol}}}"
    for host in ("one.example.com", "two.example.com", "*.wild.example.com"):
        static(mesh, host, mesh.application(host, ports=[8443]), port)
    client = mesh.pod("client")
    assert tls(client, ELSEWHERE, 8443, "one.example.com") == "one.example.com"
    assert tls(client, ELSEWHERE, 8443, "two.example.com") == "two.example.com"
    assert tls(client, ELSEWHERE, 8443, "a.wild.example.com") == "*.wild.example.com"
    assert tls(client, ELSEWHERE, 8443, "three.example.com") not in (
        "one.example.com",
        "two.example.com",
        "*.wild.example.com",
        "",
    )
    reply = client.get("https://one.example.com:8443/", at=ELSEWHERE)
    assert reply.call is not None
    assert (reply.server, reply.call.sni) == ("one.example.com", "one.example.com")


def test_several_hosts_of_one_entry_share_a_port_of_tls(mesh: Mesh) -> None:
    """The reference page's first example: each name is resolved for itself."""
    hosts = ("api.dropboxapi.com", "www.googleapis.com", "api.facebook.com")
    for host in hosts:
        mesh.world.names[host] = [mesh.application(host, ports=[443]).address]
    entry(
        mesh,
        "external-svc-https",
        f"{{hosts: {list(hosts)}, location: MESH_EXTERNAL, ports: [{{number: 443, name: https, protocol: TLS}}], resolution: DNS}}",
    )
    client = mesh.pod("client")
    for host in hosts:
        eventually(lambda host=host: tls(client, UNKNOWN, 443, host) == host, f"{host} to be resolved and called")


def test_tls_with_an_address_is_told_by_both(mesh: Mesh) -> None:
    one, other = (mesh.application(name, ports=[8444]) for name in ("one", "other"))
    port = "{number: 8444, name: tls, protocol: TLS}"
    static(mesh, "one.example.com", one, port, "addresses: [192.0.2.60]")
    static(mesh, "other.example.com", other, port, "addresses: [192.0.2.60]")
    client = mesh.pod("client")
    assert tls(client, "192.0.2.60", 8444, "one.example.com") == "one"
    assert tls(client, "192.0.2.60", 8444, "other.example.com") == "other"


def test_wildcards_of_tls_go_where_the_caller_was_going(mesh: Mesh) -> None:
    """The reference page's Wikipedia, and the VirtualService that leads it elsewhere."""
    mesh.application("wikipedia", ELSEWHERE, ports=[443])
    firewall = mesh.service("internal-egress-firewall", ports=({"name": "tls", "port": 443},))
    entry(
        mesh,
        "external-svc-redirect",
        "{hosts: [wikipedia.org, '*.wikipedia.org'], location: MESH_EXTERNAL, "
        "ports: [{number: 443, name: https, protocol: TLS}], resolution: NONE}",
    )
    sidecar(mesh, "egress: [{hosts: ['*/*']}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    client = mesh.pod("client")
    assert tls(client, ELSEWHERE, 443, "wikipedia.org") == "wikipedia"
    assert tls(client, ELSEWHERE, 443, "en.wikipedia.org") == "wikipedia"
    assert tls(client, ELSEWHERE, 443, "example.com") == ""
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: tls-routing}}
        spec:
          hosts: [wikipedia.org, "*.wikipedia.org"]
          tls:
          - match: [{{sniHosts: [wikipedia.org, "*.wikipedia.org"]}}]
            route: [{{destination: {{host: {firewall.host}}}}}]
    """)
    eventually(lambda: tls(client, ELSEWHERE, 443, "en.wikipedia.org") == "internal-egress-firewall-v1")


# Names in the certificate


def test_the_servers_certificate_must_be_for_one_of_the_names(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[8443])
    client = mesh.pod("client")

    def status(*names: str) -> Callable[[], int]:
        static(
            mesh, "one.example.com", one, "{number: 80, name: http, protocol: HTTP, targetPort: 8443}", f"subjectAltNames: {list(names)}"
        )
        return lambda: client.get("http://one.example.com/").status

    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: one}}
        spec:
          host: one.example.com
          trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {mesh.authority.path}}}}}
    """)
    for names, expected in (
        (("server.test",), 200),
        (("nobody.invalid",), 503),
        (("nobody.invalid", "spiffe://cluster.local/ns/test/sa/server"), 200),
    ):
        found = status(*names)
        eventually(lambda found=found, expected=expected: found() == expected, f"{names} to give {expected}")  # type: ignore[misc]


def test_an_entry_for_a_kubernetes_service_adds_names_to_its_certificate(mesh: Mesh) -> None:
    web = mesh.service("web", ports=[{"name": "http", "port": 80, "targetPort": 8443}])
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: web}}
        spec:
          host: {web.host}
          trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {mesh.authority.path}}}}}
    """)
    client = mesh.pod("client")
    assert client.get("http://web/", host=web.host).status == 503  # the certificate is not for the host
    entry(mesh, "web", f"{{hosts: [{web.host}], ports: [{HTTP}], resolution: STATIC, subjectAltNames: [server.test]}}")
    eventually(lambda: client.get("http://web/", host=web.host).status == 200)


def test_bytes_go_in_tls_with_the_clients_certificate(mesh: Mesh) -> None:
    """The reference page's MongoDB on virtual machines."""
    database = mesh.application("mongo", ports=[27018])
    port = "{number: 27018, name: mongodb, protocol: MONGO}"
    static(mesh, "mymongodb.somedomain", database, port, "addresses: [192.0.2.128/26], location: MESH_INTERNAL")
    certificate, key = mesh.world.certificate
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: mtls-mongocluster}}
        spec:
          host: mymongodb.somedomain
          trafficPolicy:
            tls:
              mode: MUTUAL
              clientCertificate: {certificate}
              privateKey: {key}
              caCertificates: {mesh.authority.path}
    """)
    call = mesh.pod("client").tcp("192.0.2.140", 27018)
    assert call is not None
    assert (call.server, call.tls) == ("mongo", True)
    assert "spiffe://cluster.local/ns/test/sa/server" in call.identity


# Workloads


def workload(mesh: Mesh, name: str, spec: str, labels: dict[str, str]) -> None:
    mesh.put(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {"name": name},
            "spec": {**yaml.safe_load(spec), "labels": labels},
        }
    )


def test_a_selector_finds_workload_entries_and_pods(mesh: Mesh) -> None:
    """The reference page's `details`, which moves from virtual machines to Kubernetes."""
    vm1, vm2 = (mesh.application(name, ports=[80, 8081]) for name in ("vm1", "vm2"))
    mesh.service("details", ports=({"name": "http", "port": 80},))  # its pod has the labels app=details, version=v1
    labels = {"app": "details"}
    workload(mesh, "details-vm-1", f"{{serviceAccount: details, address: {vm1.address}}}", {**labels, "instance-id": "vm1"})
    entry(
        mesh,
        "details-svc",
        f"""
hosts: [details.bookinfo.com]
location: MESH_INTERNAL
ports: [{HTTP}]
resolution: STATIC
workloadSelector: {{labels: {{app: details}}}}
""",
    )
    client = mesh.pod("client")
    url = "http://details.bookinfo.com/"
    eventually(lambda: set(client.many(url, 20)) == {"vm1", "details-v1"})
    workload(mesh, "details-vm-2", f"{{address: {vm2.address}, ports: {{http: 8081}}}}", labels)
    eventually(lambda: set(client.many(url, 30)) == {"vm1", "vm2", "details-v1"})
    assert {call.port for call in vm2.calls} == {8081}
    pod = mesh.objects["Pod", mesh.namespace, "details-v1"]
    mesh.put({**pod, "status": {**pod["status"], "conditions": [{"type": "Ready", "status": "False"}]}})
    eventually(lambda: set(client.many(url, 20)) == {"vm1", "vm2"})
    mesh.delete("WorkloadEntry", "details-vm-1")
    eventually(lambda: set(client.many(url, 20)) == {"vm2"})
    workload(mesh, "details-vm-2", f"{{address: {vm2.address}}}", {"app": "other"})
    eventually(lambda: client.get(url).status == 503)


def test_a_selector_does_not_reach_other_namespaces(mesh: Mesh) -> None:
    here = mesh.application("here", ports=[80])
    mesh.service("there", namespace=f"{mesh.namespace}-a", ports=({"name": "http", "port": 80},))
    workload(mesh, "here", f"{{address: {here.address}}}", {"app": "there"})
    selecting(mesh, "there")
    assert mesh.pod("client").many("http://one.example.com/", 10) == {"here": 10}


def test_weights_of_workload_entries(mesh: Mesh) -> None:
    light, heavy = (mesh.application(name, ports=[80]) for name in ("light", "heavy"))
    workload(mesh, "light", f"{{address: {light.address}, weight: 1}}", {"app": "one"})
    workload(mesh, "heavy", f"{{address: {heavy.address}, weight: 9}}", {"app": "one"})
    selecting(mesh, "one")
    mesh.apply("""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: one}
        spec: {host: one.example.com, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
    """)
    seen = mesh.pod("client").many("http://one.example.com/", 100)
    assert 5 <= seen["light"] <= 15


def test_names_of_workload_entries_are_resolved(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    mesh.world.names["vm.example.com"] = [one.address]
    workload(mesh, "vm", "{address: vm.example.com}", {"app": "one"})
    selecting(mesh, "one", "DNS")
    client = mesh.pod("client")
    eventually(lambda: answer(client, "http://one.example.com/") == "one")


def test_a_kubernetes_service_selects_workload_entries_too(mesh: Mesh) -> None:
    vm = mesh.application("vm", ports=[8080])
    mesh.service("reviews")
    workload(mesh, "vm", f"{{address: {vm.address}, ports: {{http: 8080}}}}", {"app": "reviews"})
    client = mesh.pod("client")
    eventually(lambda: set(client.many("http://reviews/", 20)) == {"reviews-v1", "vm"})


# Who sees it, and rivals


def test_an_entry_is_for_the_namespaces_it_is_exported_to(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    other = f"{mesh.namespace}-a"
    here, there = mesh.pod("client"), mesh.pod("other", namespace=other)
    for export_to, expected in ((".", {"here"}), (other, {"there"}), ("*", {"here", "there"}), ("~", set())):
        static(mesh, "one.example.com", one, more=f"exportTo: ['{export_to}']")

        def seen() -> set[str]:
            return {name for name, pod in (("here", here), ("there", there)) if answer(pod, "http://one.example.com/") == "one"}

        eventually(lambda expected=expected: seen() == expected, f"{export_to} to give {expected}")  # type: ignore[misc]


def test_of_one_host_in_several_namespaces_a_clients_own_is_meant_then_the_oldest(mesh: Mesh) -> None:
    own, old, young = (mesh.application(name, ports=[80]) for name in ("own", "old", "young"))
    spec = f"{{hosts: [one.example.com], ports: [{HTTP}], resolution: STATIC, endpoints: [{{address: %s}}]}}"
    client = mesh.pod("client")
    entry(mesh, "a", spec % young.address, f"{mesh.namespace}-a", "2025-01-01T00:00:00Z")
    entry(mesh, "b", spec % old.address, f"{mesh.namespace}-b", "2024-06-01T00:00:00Z")
    eventually(lambda: answer(client, "http://one.example.com/") == "old")
    entry(mesh, "c", spec % own.address, None, "2026-01-01T00:00:00Z")
    eventually(lambda: answer(client, "http://one.example.com/") == "own")


def test_two_entries_of_one_host_and_namespace_are_one_service(mesh: Mesh) -> None:
    one, two = (mesh.application(name, ports=[80, 8081]) for name in ("one", "two"))
    static(mesh, "one.example.com", one)
    port = "{number: 8081, name: more, protocol: HTTP}"
    spec = f"{{hosts: [one.example.com], ports: [{port}], resolution: STATIC, endpoints: [{{address: {two.address}}}]}}"
    entry(mesh, "two", spec)
    client = mesh.pod("client")
    assert answer(client, "http://one.example.com/") == "one"
    assert answer(client, "http://one.example.com:8081/") == "two"


def test_an_entry_for_a_kubernetes_service_leaves_its_endpoints(mesh: Mesh) -> None:
    """Istio: the entry is "a decorator of the existing Kubernetes service"; of its properties only names in certificates count."""
    reviews = mesh.service("reviews")
    other = mesh.application("other", ports=[8080])
    port = "{number: 80, name: http, protocol: HTTP, targetPort: 8080}"
    spec = f"{{hosts: [{reviews.host}], ports: [{port}], resolution: STATIC, endpoints: [{{address: {other.address}}}]}}"
    entry(mesh, "same-namespace", spec)
    entry(mesh, "other-namespace", spec, f"{mesh.namespace}-a")
    assert mesh.pod("client").many("http://reviews/", 20) == {"reviews-v1": 20}


def test_an_entry_that_goes_leaves_its_host_to_what_is_unknown(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", one)
    client = mesh.pod("client")
    assert answer(client, "http://one.example.com/") == "one"
    mesh.delete("ServiceEntry", "one.example.com")
    eventually(lambda: answer(client, "http://one.example.com/") == UNKNOWN)


def test_endpoints_come_and_go_without_a_failed_request(mesh: Mesh) -> None:
    names = [f"e{n}" for n in range(4)]
    address = {name: mesh.application(name, ports=[80]).address for name in names}

    def write(*chosen: str) -> None:
        endpoints = [{"address": address[name]} for name in chosen]
        entry(mesh, "one", f"{{hosts: [one.example.com], ports: [{HTTP}], resolution: STATIC, endpoints: {endpoints}}}")

    write("e0")
    client = mesh.pod("client")
    seen: Counter[str] = Counter()
    for chosen in (("e0", "e1"), ("e1",), ("e2", "e3"), ("e3", "e0")):
        write(*chosen)

        def reached(chosen: tuple[str, ...] = chosen) -> bool:
            found = client.many("http://one.example.com/", 20)
            seen.update(found)
            return set(found) == set(chosen)

        eventually(reached)
    assert set(seen) == set(names)  # and no status of a failure


def test_a_resolution_changes_live(mesh: Mesh) -> None:
    one, two = (mesh.application(name, ports=[80]) for name in ("one", "two"))
    mesh.world.names["change.example.com"] = [two.address]
    client = mesh.pod("client")
    static(mesh, "change.example.com", one)
    eventually(lambda: answer(client, "http://change.example.com/") == "one")
    entry(mesh, "change.example.com", f"{{hosts: [change.example.com], ports: [{HTTP}], resolution: DNS}}")
    eventually(lambda: answer(client, "http://change.example.com/") == "two")
    entry(mesh, "change.example.com", f"{{hosts: [change.example.com], ports: [{HTTP}], resolution: NONE}}")
    eventually(lambda: answer(client, "http://change.example.com/") == UNKNOWN)
    static(mesh, "change.example.com", one)
    eventually(lambda: answer(client, "http://change.example.com/") == "one")


def test_a_name_that_does_not_resolve_harms_only_itself(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", one)
    entry(mesh, "none", f"{{hosts: [nowhere.example.com], ports: [{HTTP}], resolution: DNS}}")
    client = mesh.pod("client")
    assert answer(client, "http://one.example.com/") == "one"
    assert answer(client, "http://nowhere.example.com/") == "503"


def test_a_name_is_asked_for_again_soon_where_the_dns_server_failed(mesh: Mesh) -> None:
    name = "failing.example.com"
    mesh.world.names[name] = [mesh.application("one", ports=[80]).address]
    mesh.world.failing.add(name)
    entry(mesh, "failing", f"{{hosts: [{name}], ports: [{HTTP}], resolution: DNS}}")
    client = mesh.pod("client")
    assert answer(client, f"http://{name}/") == "503"
    mesh.world.failing.remove(name)
    eventually(lambda: answer(client, f"http://{name}/") == "one")


def test_http_and_tcp_may_ask_for_one_port(mesh: Mesh) -> None:
    """Requests are told by their hosts; bytes that are no HTTP are the TCP entry's."""
    web, raw = (mesh.application(name, ports=[9007]) for name in ("web", "raw"))
    static(mesh, "web.example.com", web, "{number: 9007, name: http, protocol: HTTP}")
    static(mesh, "raw.example.com", raw, "{number: 9007, name: tcp, protocol: TCP}", "addresses: [192.0.2.70]")
    client = mesh.pod("client")
    assert answer(client, "http://web.example.com:9007/", at=ELSEWHERE) == "web"
    assert tcp(client, "192.0.2.70", 9007) == "raw"


def test_a_bad_entry_harms_only_itself(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", one)
    entry(mesh, "both", f"{{hosts: [two.example.com], ports: [{HTTP}], resolution: NONE, endpoints: [{{address: 192.0.2.1}}]}}")
    entry(mesh, "name", f"{{hosts: [three.example.com], ports: [{HTTP}], resolution: STATIC, endpoints: [{{address: a.name}}]}}")
    client = mesh.pod("client")
    assert answer(client, "http://one.example.com/") == "one"
    assert answer(client, "http://two.example.com/") == UNKNOWN
    assert {problem.split()[1] for problem in mesh.problems()} == {f"both.{mesh.namespace}:", f"name.{mesh.namespace}:"}


# More of the same port, and of the same host


def test_a_protocol_that_is_not_given_is_found_out(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[9010])
    static(mesh, "one.example.com", one, "{number: 9010, name: some}")
    client = mesh.pod("client")
    assert answer(client, "http://one.example.com:9010/") == "one"
    assert tcp(client, ELSEWHERE, 9010) == "one"
    assert tls(client, ELSEWHERE, 9010, "server.test") == "one"


def test_http_and_tls_share_a_port(mesh: Mesh) -> None:
    plain, secure = (mesh.application(name, ports=[9011]) for name in ("plain", "secure"))
    static(mesh, "plain.example.com", plain, "{number: 9011, name: http, protocol: HTTP}")
    static(mesh, "secure.example.com", secure, "{number: 9011, name: tls, protocol: TLS}")
    client = mesh.pod("client")
    assert answer(client, "http://plain.example.com:9011/") == "plain"
    assert tls(client, ELSEWHERE, 9011, "secure.example.com") == "secure"
    assert tls(client, ELSEWHERE, 9011, "other.example.com") not in ("secure", "plain", "")


def test_http_of_a_service_and_tcp_of_any_address_share_a_port(mesh: Mesh) -> None:
    web = mesh.service("web", ports=[{"name": "http", "port": 9012}])
    raw = mesh.service("raw", ports=[{"name": "tcp", "port": 9012}])
    anywhere = mesh.application("anywhere", ports=[9012])
    static(mesh, "any.example.com", anywhere, "{number: 9012, name: tcp, protocol: TCP}")
    client = mesh.pod("client")
    assert answer(client, f"http://{web.host}:9012/") == "web-v1"
    assert tcp(client, raw.address, 9012) == "raw-v1"
    assert tcp(client, ELSEWHERE, 9012) == "anywhere"


def test_plain_and_secure_ports_of_one_host(mesh: Mesh) -> None:
    """Istio's task "Egress TLS Origination": HTTP to port 80 goes to 443 in TLS, and the application's own TLS there too."""
    one = mesh.application("one", ports=[443])
    mesh.world.names["edition.example.com"] = [one.address]
    entry(
        mesh,
        "edition",
        """
hosts: [edition.example.com]
ports:
- {number: 80, name: http-port, protocol: HTTP, targetPort: 443}
- {number: 443, name: https-port, protocol: HTTPS}
resolution: DNS
""",
    )
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: originate-tls}}
        spec:
          host: edition.example.com
          trafficPolicy:
            portLevelSettings:
            - port: {{number: 80}}
              tls: {{mode: SIMPLE, caCertificates: {mesh.authority.path}}}
    """)
    client = mesh.pod("client")
    call = client.get("http://edition.example.com/politics").call
    assert call is not None
    assert (call.server, call.port, call.tls, call.sni) == ("one", 443, True, "edition.example.com")
    assert tls(client, UNKNOWN, 443, "edition.example.com") == "one"


def test_an_entry_without_endpoints_answers_503(mesh: Mesh) -> None:
    entry(mesh, "none", f"{{hosts: [none.example.com], ports: [{HTTP}], resolution: STATIC}}")
    assert answer(mesh.pod("client"), "http://none.example.com/") == "503"


@pytest.mark.parametrize("resolution", ["DNS", "DNS_ROUND_ROBIN"])
def test_names_are_resolved_for_tcp_and_tls_too(mesh: Mesh, resolution: str) -> None:
    one = mesh.application("one", ports=[9013, 9014])
    mesh.world.names["bytes.example.com"] = [one.address]
    ports = "{number: 9013, name: tcp, protocol: TCP}, {number: 9014, name: tls, protocol: TLS}"
    entry(mesh, "one", f"{{hosts: [bytes.example.com], addresses: [192.0.2.80], ports: [{ports}], resolution: {resolution}}}")
    client = mesh.pod("client")
    assert tcp(client, "192.0.2.80", 9013) == "one"
    assert tls(client, "192.0.2.80", 9014, "bytes.example.com") == "one"


def test_an_external_name_is_another_name_of_an_entry(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", one)
    mesh.apply("""
        apiVersion: v1
        kind: Service
        metadata: {name: alias}
        spec: {type: ExternalName, externalName: one.example.com}
    """)
    assert answer(mesh.pod("client"), "http://alias/") == "one"


def test_a_sidecar_imports_entries_by_host(mesh: Mesh) -> None:
    one, two, wild = (mesh.application(name, ports=[80]) for name in ("one", "two", "wild"))
    for host, application in (("one.example.com", one), ("two.example.com", two), ("*.wild.example.com", wild)):
        static(mesh, host, application)
    client = mesh.pod("client")

    def seen() -> set[str]:
        names = ("one.example.com", "two.example.com", "a.wild.example.com")
        return {answer(client, f"http://{name}/") for name in names} - {"502"}

    for hosts, expected in (
        (["*/one.example.com", "*/*.wild.example.com"], {"one", "wild"}),
        (["./*.example.com"], {"one", "two", "wild"}),
        ([f"{mesh.namespace}/two.example.com"], {"two"}),
    ):
        sidecar(mesh, f"egress: [{{hosts: {hosts}}}]\noutboundTrafficPolicy: {{mode: REGISTRY_ONLY}}")
        eventually(lambda expected=expected: seen() == expected, f"{hosts} to give {expected}")  # type: ignore[misc]


def test_addresses_and_ports_change_live(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[9015, 9016])
    client = mesh.pod("client")
    first, second = "{number: 9015, name: tcp, protocol: TCP}", "{number: 9016, name: tcp, protocol: TCP}"
    static(mesh, "one.example.com", one, first, "addresses: [192.0.2.90]")
    eventually(lambda: tcp(client, "192.0.2.90", 9015) == "one")
    static(mesh, "one.example.com", one, first, "addresses: [192.0.2.91]")
    eventually(lambda: (tcp(client, "192.0.2.90", 9015), tcp(client, "192.0.2.91", 9015)) == ("192.0.2.90", "one"))
    static(mesh, "one.example.com", one, second, "addresses: [192.0.2.91]")
    eventually(lambda: (tcp(client, "192.0.2.91", 9015), tcp(client, "192.0.2.91", 9016)) == ("192.0.2.91", "one"))
    static(mesh, "one.example.com", one, second)
    eventually(lambda: tcp(client, "192.0.2.92", 9016) == "one")


def test_the_port_of_a_host_header_counts_for_nothing(mesh: Mesh) -> None:
    one = mesh.application("one", ports=[80])
    static(mesh, "one.example.com", one)
    client = mesh.pod("client")
    for host in ("one.example.com:80", "one.example.com:8080", "one.example.com."):
        assert client.get("http://one.example.com/", host=host).server == "one", host


def test_an_entry_that_loses_its_port_to_an_older_one_is_told_so(mesh: Mesh) -> None:
    for name, created in (("older", "2020-01-01T00:00:00Z"), ("younger", "2021-01-01T00:00:00Z")):
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: {name}, creationTimestamp: "{created}"}}
            spec:
              hosts: [{name}.test]
              ports: [{{number: 7171, name: tcp, protocol: TCP}}]
              resolution: STATIC
              endpoints: [{{address: {mesh.application(name, ports=[7171]).address}}}]
        """)
    client = mesh.pod("client")
    assert tcp(client, "198.51.100.9", 7171) == "older"
    (problem,) = mesh.problems()
    assert problem.startswith(f"ServiceEntry younger.{mesh.namespace}: ")
    assert "at 0.0.0.0_7171 never comes to it" in problem
