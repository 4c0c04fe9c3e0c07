"""Istio's Sidecar, `egress` and `outboundTrafficPolicy`: what a workload reaches.

https://istio.io/latest/docs/reference/config/networking/sidecar/
"""

import contextlib
import http.client
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from support.sidecars import open_directory, sidecar
from support.traffic import Mesh, Pod, Service, eventually

from xds.mesh.model import Mode

REGISTRY_ONLY = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"
BLOCKED = "502"
TCP = ({"name": "tcp", "port": 9000},)


def answer(pod: Pod, url: str, at: str | None = None) -> str:
    """Who answers a request; where no application does, its status: BLOCKED too where no service that the client sees has the port."""
    try:
        reply = pod.get(url, at=at)
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return BLOCKED
    return reply.server or str(reply.status)


def hosts(*names: str) -> str:
    return f"egress: [{{hosts: {list(names)}}}]\n{REGISTRY_ONLY}"


class Stage:
    """One client, and services in its own namespace and in others."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.own = mesh.service("own")
        self.near = mesh.service("near", namespace=f"{mesh.namespace}-a")
        self.far = mesh.service("far", namespace=f"{mesh.namespace}-b")
        self.client = mesh.pod("client")

    def sees(self) -> set[str]:
        """Which of the services answer the client, which knows them by their full names."""
        answers = {answer(self.client, f"http://{s.host}/") for s in (self.own, self.near, self.far)}
        return answers - {BLOCKED}


@pytest.fixture
def stage(mesh: Mesh) -> Stage:
    return Stage(mesh)


def test_egress_hosts_say_which_services_a_client_reaches(stage: Stage) -> None:
    mesh = stage.mesh
    for names, seen in (
        (("./*",), {"own-v1"}),
        ((f"{mesh.namespace}-a/*",), {"near-v1"}),
        (("./*", f"{mesh.namespace}-b/*"), {"own-v1", "far-v1"}),
        (("*/*",), {"own-v1", "near-v1", "far-v1"}),
        ((f"*/{stage.near.host}",), {"near-v1"}),
        ((f"./{stage.near.host}",), set()),  # that host is not in the client's namespace
        ((f"{mesh.namespace}-a/{stage.near.host}", f"./{stage.own.host}"), {"own-v1", "near-v1"}),
        ((f"*/*.{mesh.namespace}-b.svc.cluster.local",), {"far-v1"}),
        (("~/*",), set()),
        (("*/*", f"~{mesh.namespace}-a/*"), {"own-v1", "far-v1"}),
        (("*/*", f"~*/{stage.far.host}", "~./*"), {"near-v1"}),
        (("*/*", f"~/{stage.far.host}"), {"own-v1", "near-v1"}),  # a bare ~ is any namespace
        (("./*", "~/*"), set()),
    ):
        sidecar(mesh, hosts(*names))
        eventually(lambda seen=seen: stage.sees() == seen, f"{names} to give {seen}")  # type: ignore[misc]
    assert mesh.problems() == []


def test_a_sidecar_that_goes_gives_back_what_it_took(stage: Stage) -> None:
    sidecar(stage.mesh, hosts("~/*"), name="none")
    eventually(lambda: stage.sees() == set())
    stage.mesh.delete("Sidecar", "none")
    eventually(lambda: stage.sees() == {"own-v1", "near-v1", "far-v1"})


def test_what_is_not_exported_cannot_be_imported(mesh: Mesh) -> None:
    annotation = "networking.istio.io/exportTo"
    other = f"{mesh.namespace}-a"
    private = mesh.service("private", namespace=other, meta={"annotations": {annotation: "."}})
    given = mesh.service("given", namespace=other, meta={"annotations": {annotation: f"somewhere, {mesh.namespace}"}})
    hidden = mesh.service("hidden", meta={"annotations": {annotation: "~"}})
    sidecar(mesh, hosts("*/*", f"{other}/{private.host}"))
    client = mesh.pod("client")
    assert answer(client, f"http://{private.host}/") == BLOCKED
    assert answer(client, f"http://{given.host}/") == "given-v1"
    assert answer(client, f"http://{hidden.host}/") == BLOCKED


def test_the_selecting_sidecar_wins_over_the_namespaces_and_that_over_the_root_namespaces(mesh: Mesh) -> None:
    own = mesh.service("own")
    near = mesh.service("near", namespace=f"{mesh.namespace}-a")
    far = mesh.service("far", namespace=f"{mesh.namespace}-b")
    client = mesh.pod("client", {"team": "red"})

    def seen() -> set[str]:
        return {answer(client, f"http://{s.host}/") for s in (own, near, far)} - {BLOCKED}

    sidecar(mesh, hosts(f"*/{far.host}"), namespace="istio-system")
    eventually(lambda: seen() == {"far-v1"})
    sidecar(mesh, hosts("./*"), name="everyone")
    eventually(lambda: seen() == {"own-v1"})
    sidecar(mesh, f"workloadSelector: {{labels: {{team: red, app: client}}}}\n{hosts(f'*/{near.host}')}", name="some")
    eventually(lambda: seen() == {"near-v1"})
    sidecar(mesh, f"workloadSelector: {{labels: {{team: red, app: other}}}}\n{hosts(f'*/{near.host}')}", name="some")
    eventually(lambda: seen() == {"own-v1"})
    mesh.delete("Sidecar", "everyone")
    eventually(lambda: seen() == {"far-v1"})


def test_a_sidecar_without_egress_has_that_of_its_namespaces_or_the_root_namespaces(mesh: Mesh) -> None:
    own = mesh.service("own")
    near = mesh.service("near", namespace=f"{mesh.namespace}-a")
    far = mesh.service("far", namespace=f"{mesh.namespace}-b")
    sidecar(mesh, f"workloadSelector: {{labels: {{team: red}}}}\n{REGISTRY_ONLY}", name="some")
    client = mesh.pod("client", {"team": "red"})

    def seen() -> set[str]:
        return {answer(client, f"http://{s.host}/") for s in (own, near, far)} - {BLOCKED}

    assert seen() == {"own-v1", "near-v1", "far-v1"}
    sidecar(mesh, hosts("./*", f"*/{far.host}"), namespace="istio-system")
    eventually(lambda: seen() == {"own-v1", "far-v1"})
    sidecar(mesh, hosts(f"*/{near.host}"), name="everyone")
    eventually(lambda: seen() == {"near-v1"})
    sidecar(mesh, REGISTRY_ONLY, name="everyone")
    eventually(lambda: seen() == {"own-v1", "far-v1"})


def test_a_relative_host_of_the_root_namespaces_sidecar_means_each_clients_own_namespace(mesh: Mesh) -> None:
    own = mesh.service("own")
    near = mesh.service("near", namespace=f"{mesh.namespace}-a")
    sidecar(mesh, hosts("./*"), namespace="istio-system")
    here, there = mesh.pod("client"), mesh.pod("other", namespace=f"{mesh.namespace}-a")
    assert [answer(here, f"http://{s.host}/") for s in (own, near)] == ["own-v1", BLOCKED]
    assert [answer(there, f"http://{s.host}/") for s in (own, near)] == [BLOCKED, "near-v1"]


def test_a_relabelled_pod_comes_under_another_sidecar(mesh: Mesh) -> None:
    mesh.service("own")
    sidecar(mesh, f"workloadSelector: {{labels: {{mood: shy}}}}\n{hosts('~/*')}")
    client = mesh.pod("client")
    assert answer(client, "http://own/") == "own-v1"
    mesh.relabel("client", {"app": "client", "mood": "shy"})
    eventually(lambda: answer(client, "http://own/") == BLOCKED)
    mesh.relabel("client", {"app": "client"})
    eventually(lambda: answer(client, "http://own/") == "own-v1")


# VirtualServices


RULE = """
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {{name: rule}}
    spec:
      hosts: [{hosts}]
      {routes}
"""


def test_services_that_only_a_virtual_service_leads_to_are_reached(mesh: Mesh) -> None:
    """Istio imports the destinations of VirtualServices that a Sidecar shows, though it does not list them itself."""
    own, elsewhere = mesh.service("own"), f"{mesh.namespace}-a"
    hidden = mesh.service("hidden", ["v1", "v2"], namespace=elsewhere)
    mirrored = mesh.service("mirrored", namespace=elsewhere)
    mesh.apply(
        f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: hidden, namespace: {elsewhere}}}
        spec:
          host: {hidden.host}
          subsets: [{{name: two, labels: {{version: v2}}}}]
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: rule}}
        spec:
          hosts: [own]
          http:
          - match: [{{uri: {{prefix: /hidden}}}}]
            route: [{{destination: {{host: {hidden.host}, subset: two}}}}]
          - match: [{{uri: {{prefix: /mirrored}}}}]
            route: [{{destination: {{host: own}}}}]
            mirrors: [{{destination: {{host: {mirrored.host}}}}}]
          - route: [{{destination: {{host: own}}}}]
        """
    )
    sidecar(mesh, hosts("./*"))
    client = mesh.pod("client")
    assert answer(client, "http://own/hidden") == "hidden-v2"
    assert answer(client, "http://own/mirrored") == "own-v1"
    eventually(lambda: mirrored["v1"].calls)
    assert answer(client, "http://own/") == "own-v1"
    assert answer(client, f"http://{hidden.host}/") == BLOCKED  # its name is not imported
    assert own["v1"].calls
    mesh.apply(RULE.format(hosts="own", routes=f"http: [{{route: [{{destination: {{host: {mirrored.host}}}}}]}}]"))
    eventually(lambda: answer(client, "http://own/") == "mirrored-v1")
    eventually(lambda: not client.has_cluster(f"outbound|80||{hidden.host}"))


def test_endpoints_of_a_service_that_only_a_virtual_service_leads_to_are_followed(mesh: Mesh) -> None:
    elsewhere = f"{mesh.namespace}-a"
    mesh.service("own")
    hidden = mesh.service("hidden", namespace=elsewhere)
    mesh.apply(RULE.format(hosts="own", routes=f"http: [{{route: [{{destination: {{host: {hidden.host}}}}}]}}]"))
    sidecar(mesh, hosts("./*"))
    client = mesh.pod("client")
    assert answer(client, "http://own/") == "hidden-v1"
    mesh.service("hidden", ["v2"], namespace=elsewhere)
    eventually(lambda: answer(client, "http://own/") == "hidden-v2")


def test_destinations_of_rules_may_be_aliases_and_names_of_a_wildcard(mesh: Mesh) -> None:
    elsewhere = f"{mesh.namespace}-a"
    mesh.service("own")
    hidden = mesh.service("hidden", namespace=elsewhere)
    wild = mesh.application("wild", ports=[80])
    mesh.apply(
        f"""
        apiVersion: v1
        kind: Service
        metadata: {{name: alias, namespace: {elsewhere}}}
        spec: {{type: ExternalName, externalName: {hidden.host}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {{name: wild, namespace: {elsewhere}}}
        spec:
          hosts: ["*.wild.example.com"]
          ports: [{{number: 80, name: http, protocol: HTTP}}]
          resolution: STATIC
          endpoints: [{{address: {wild.address}}}]
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: rule}}
        spec:
          hosts: [own]
          http:
          - match: [{{uri: {{prefix: /alias}}}}]
            route: [{{destination: {{host: alias.{elsewhere}.svc.cluster.local}}}}]
          - route: [{{destination: {{host: a.wild.example.com}}}}]
        """
    )
    client = mesh.pod("client")
    for _ in range(2):  # without a Sidecar, and with one
        eventually(lambda: (answer(client, "http://own/alias"), answer(client, "http://own/")) == ("hidden-v1", "wild"))
        sidecar(mesh, hosts("./*"))
        eventually(lambda: answer(client, f"http://{hidden.host}/") == BLOCKED)
    assert (answer(client, "http://own/alias"), answer(client, "http://own/")) == ("hidden-v1", "wild")


def test_tcp_and_tls_rules_lead_to_services_that_are_not_imported(mesh: Mesh) -> None:
    elsewhere = f"{mesh.namespace}-a"
    tls = ({"name": "tls", "port": 443, "targetPort": 8443},)
    mesh.service("own", ports=TCP)
    mesh.service("secure", ports=tls)
    hidden = mesh.service("hidden", namespace=elsewhere, ports=(*TCP, *tls))
    mesh.apply(
        f"""
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: tcp}}
        spec:
          hosts: [own]
          tcp: [{{route: [{{destination: {{host: {hidden.host}, port: {{number: 9000}}}}}}]}}]
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: tls}}
        spec:
          hosts: [secure]
          tls:
          - match: [{{sniHosts: [a.example.com]}}]
            route: [{{destination: {{host: {hidden.host}, port: {{number: 443}}}}}}]
        """
    )
    sidecar(mesh, hosts("./*"))
    client = mesh.pod("client")
    call = client.tcp("own", 9000)
    assert call is not None
    assert call.server == "hidden-v1"
    call = client.tls("secure", 443, "a.example.com")
    assert call is not None
    assert call.server == "hidden-v1"


def test_a_virtual_service_is_imported_by_its_host_and_namespace(mesh: Mesh) -> None:
    elsewhere = f"{mesh.namespace}-a"
    own, other = mesh.service("own"), mesh.service("other")
    mesh.apply(
        f"""
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: rule, namespace: {elsewhere}}}
        spec:
          hosts: [{own.host}]
          http: [{{route: [{{destination: {{host: {other.host}}}}}]}}]
        """
    )
    client = mesh.pod("client")
    assert answer(client, "http://own/") == "other-v1"
    sidecar(mesh, hosts("./*"))
    eventually(lambda: answer(client, "http://own/") == "own-v1")
    sidecar(mesh, hosts("./*", f"{elsewhere}/{own.host}"))
    eventually(lambda: answer(client, "http://own/") == "other-v1")
    sidecar(mesh, hosts("./*", f"{elsewhere}/{other.host}"))
    eventually(lambda: answer(client, "http://own/") == "own-v1")
    sidecar(mesh, hosts("*/*"))
    eventually(lambda: answer(client, "http://own/") == "other-v1")
    sidecar(mesh, hosts("*/*", f"~{elsewhere}/*"))
    eventually(lambda: answer(client, "http://own/") == "own-v1")


def test_a_host_that_only_a_virtual_service_has_is_served_on_port_80(mesh: Mesh) -> None:
    elsewhere = f"{mesh.namespace}-a"
    hidden = mesh.service("hidden", namespace=elsewhere)
    mesh.service("own")
    mesh.apply(RULE.format(hosts="made.up.example.com", routes=f"http: [{{route: [{{destination: {{host: {hidden.host}}}}}]}}]"))
    sidecar(mesh, hosts("./*"))
    client = mesh.pod("client")
    assert answer(client, "http://made.up.example.com/") == "hidden-v1"


# Egress listeners

HTTP = ({"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-more", "port": 9080})


def with_a_port_of_its_own(mesh: Mesh, ports: Iterable[Mapping[str, Any]], port: str, *, first: bool = True) -> tuple[Service, Service]:
    """Services of the client's namespace and of another one, which an egress listener for `port` shows; first, or after a catch-all."""
    own = mesh.service("own", ports=ports)
    near = mesh.service("near", namespace=f"{mesh.namespace}-a", ports=ports)
    listeners = [f'- port: {port}\n  hosts: ["{mesh.namespace}-a/*"]', "- hosts: [./*]"]
    sidecar(mesh, "\n".join(["egress:", *(listeners if first else reversed(listeners)), REGISTRY_ONLY]))
    return own, near


def test_a_listener_for_one_port_shows_only_that_port_of_its_hosts(mesh: Mesh) -> None:
    own, near = with_a_port_of_its_own(mesh, HTTP, "{number: 9080, protocol: HTTP, name: one}")
    client = mesh.pod("client")
    assert answer(client, f"http://{near.host}:9080/") == "near-v1"
    assert answer(client, f"http://{near.host}/") == BLOCKED
    assert answer(client, f"http://{own.host}/") == "own-v1"
    # The hosts on a port are those of the listener with the most specific port.
    assert answer(client, f"http://{own.host}:9080/") == BLOCKED


def test_the_catch_all_listener_may_come_first(mesh: Mesh) -> None:
    """The reference page's example has it before the one with a port."""
    own, near = with_a_port_of_its_own(mesh, HTTP, "{number: 9080, protocol: HTTP, name: one}", first=False)
    client = mesh.pod("client")
    assert answer(client, f"http://{near.host}:9080/") == "near-v1"
    assert answer(client, f"http://{own.host}:9080/") == BLOCKED
    assert answer(client, f"http://{own.host}/") == "own-v1"


def test_the_catch_all_listener_has_no_tcp_of_a_port_that_another_listener_is_for(mesh: Mesh) -> None:
    """Although TCP services are told apart by their addresses."""
    ports = (*TCP, {"name": "tcp-more", "port": 8443})
    own, near = with_a_port_of_its_own(mesh, ports, "{number: 9000, protocol: TCP, name: one}")
    client = mesh.pod("client")
    for service, port, server in ((near, 9000, "near-v1"), (own, 8443, "own-v1")):
        call = client.tcp(service.address, port)
        assert call is not None
        assert call.server == server
    with contextlib.suppress(ConnectionResetError):
        assert client.tcp(own.address, 9000) is None


def test_a_listener_with_a_bind_address_takes_what_is_sent_there(mesh: Mesh) -> None:
    mesh.service("own")
    mesh.service("raw", ports=TCP)
    sidecar(
        mesh,
        """
egress:
- port: {number: 80, protocol: HTTP, name: http}
  bind: 192.0.2.10
  captureMode: IPTABLES
  hosts: [./*]
- port: {number: 9000, protocol: TCP, name: tcp}
  bind: 192.0.2.11
  hosts: [./raw.*]
""".replace("raw.*", f"raw.{mesh.namespace}.svc.cluster.local"),
    )
    client = mesh.pod("client")
    assert answer(client, "http://own/", at="192.0.2.10") == "own-v1"
    call = client.tcp("192.0.2.11", 9000)
    assert call is not None
    assert call.server == "raw-v1"


def test_without_capture_a_listener_is_on_the_loopback_address(mesh: Mesh) -> None:
    mesh.service("own")
    mesh.service("raw", ports=TCP)
    sidecar(
        mesh,
        f"""
egress:
- port: {{number: 80, protocol: HTTP, name: http}}
  captureMode: NONE
  hosts: [./*]
- port: {{number: 9000, protocol: TCP, name: tcp}}
  bind: 127.0.0.1
  captureMode: NONE
  hosts: [./raw.{mesh.namespace}.svc.cluster.local]
""",
    )
    client = mesh.pod("client")
    assert answer(client, "http://own/", at="127.0.0.1") == "own-v1"
    call = client.tcp("127.0.0.1", 9000)
    assert call is not None
    assert call.server == "raw-v1"


def test_a_listener_may_be_a_unix_socket(mesh: Mesh) -> None:
    mesh.service("own", ports=({"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-two", "port": 8081}))
    mesh.service("raw", ports=TCP)
    with open_directory() as directory:
        sidecar(
            mesh,
            f"""
egress:
- port: {{number: 0, protocol: HTTP, name: http}}
  bind: unix://{directory}/http
  hosts: [./own.{mesh.namespace}.svc.cluster.local]
- port: {{number: 0, protocol: TCP, name: tcp}}
  bind: unix://@{mesh.namespace}
  captureMode: NONE
  hosts: [./raw.{mesh.namespace}.svc.cluster.local]
""",
        )
        client = mesh.pod("client")
        assert answer(client, "http://own/", at=f"unix://{directory}/http") == "own-v1"
        reply = client.get("http://own:8081/", at=f"unix://{directory}/http")
        assert reply.call is not None
        assert reply.call.port == 8081
        call = client.tcp(f"unix://@{mesh.namespace}", 0)
        assert call is not None
        assert call.server == "raw-v1"


def test_a_listeners_protocol_stands_over_its_services_port(mesh: Mesh) -> None:
    mesh.service("own", ports=({"name": "http", "port": 9000},))
    sidecar(mesh, "egress:\n- port: {number: 9000, protocol: TCP, name: tcp}\n  hosts: [./*]")
    client = mesh.pod("client")
    call = client.tcp("own", 9000)
    assert call is not None
    assert (call.server, call.protocol) == ("own-v1", "TCP")


def test_a_listener_of_tls_tells_its_hosts_by_server_name(mesh: Mesh) -> None:
    one, two = mesh.application("one", ports=[8443]), mesh.application("two", ports=[8443])
    for name, application in (("one", one), ("two", two)):
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: {name}}}
            spec:
              hosts: [{name}.example.com]
              ports: [{{number: 8443, name: tls, protocol: TLS}}]
              resolution: STATIC
              endpoints: [{{address: {application.address}}}]
        """)
    listener = "{port: {number: 8443, protocol: TLS, name: tls}, bind: 127.0.0.1, captureMode: NONE, hosts: ['./*']}"
    sidecar(mesh, f"egress: [{listener}]")
    client = mesh.pod("client")
    for name in ("one", "two"):
        call = client.tls("127.0.0.1", 8443, f"{name}.example.com")
        assert call is not None
        assert call.server == name


def test_a_listener_may_be_a_forward_proxy(mesh: Mesh) -> None:
    """Protocol HTTP_PROXY: callers name the service, and its port, in the request line."""
    web = mesh.service("web", ports=({"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-two", "port": 8081}))
    hidden = mesh.service("hidden", namespace=f"{mesh.namespace}-a")
    sidecar(
        mesh,
        f"""
egress:
- port: {{number: 3128, protocol: HTTP_PROXY, name: proxy}}
  bind: 127.0.0.1
  captureMode: NONE
  hosts: [./*]
{REGISTRY_ONLY}
""",
    )
    client = mesh.pod("client")
    with client.session("http://127.0.0.1:3128/") as session:
        for url, port in ((f"http://{web.host}/", 8080), (f"http://{web.host}:8081/", 8081)):
            call = session.forwarded(url).call
            assert call is not None
            assert (call.server, call.port) == ("web-v1", port)
        assert session.forwarded(f"http://{hidden.host}/").status == 502


def test_an_empty_selector_selects_every_workload(mesh: Mesh) -> None:
    mesh.service("own")
    sidecar(mesh, f"workloadSelector: {{labels: {{}}}}\n{hosts('~/*')}")
    client = mesh.pod("client")
    assert answer(client, "http://own/") == BLOCKED


def test_without_capture_services_are_called_on_the_loopback_address(mesh: Mesh) -> None:
    """Interception mode NONE, and no Sidecar: the application calls the proxy, which tells services by their hosts."""
    one, two = mesh.service("one"), mesh.service("two")
    client = mesh.pod("client", mode=Mode.NONE)
    for service in (one, two):
        assert answer(client, f"http://{service.host}/", at="127.0.0.1") == f"{service.name}-v1"


def test_a_listener_of_http_takes_its_services_port_for_http(mesh: Mesh) -> None:
    mesh.service("own", ports=({"name": "tcp", "port": 9000},))
    sidecar(mesh, f"egress:\n- port: {{number: 9000, protocol: HTTP, name: http}}\n  hosts: [./*]\n{REGISTRY_ONLY}")
    client = mesh.pod("client")
    reply = client.get("http://own:9000/")
    assert reply.server == "own-v1"
    assert reply.header("x-envoy-upstream-service-time") is not None
    assert answer(client, "http://unknown.example.com:9000/") == BLOCKED


def test_a_transparent_proxys_client_reaches_its_services(mesh: Mesh) -> None:
    mesh.service("own")
    raw = mesh.service("raw", ports=TCP)
    client = mesh.pod("client", mode=Mode.TPROXY)
    assert answer(client, "http://own/") == "own-v1"
    call = client.tcp(raw.address, 9000)
    assert call is not None
    assert call.server == "raw-v1"
    assert answer(client, "http://unknown.example.com/", at="198.51.100.7") == "198.51.100.7"


def test_a_workload_without_capture_calls_what_its_sidecar_listens_for(mesh: Mesh) -> None:
    """The reference page's MySQL example: mode NONE, a listener on the loopback address, and a ServiceEntry for it."""
    mesh.world.names["mysql.foo.com"] = ["203.0.113.33"]
    database = mesh.application("mysql", "203.0.113.33", [3306])
    database.greeting = b"5.7\n"
    mesh.apply("""
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {name: external-svc-mysql}
        spec:
          hosts: [mysql.foo.com]
          ports: [{number: 3306, name: mysql, protocol: MYSQL}]
          location: MESH_EXTERNAL
          resolution: DNS
    """)
    sidecar(
        mesh,
        """
egress:
- port: {number: 3306, protocol: MYSQL, name: egressmysql}
  captureMode: NONE
  bind: 127.0.0.1
  hosts: ["*/mysql.foo.com"]
""",
    )
    client = mesh.pod("client", mode=Mode.NONE)
    with client.connect("127.0.0.1", 3306) as connection:
        assert connection.recv(4) == b"5.7\n"


# outboundTrafficPolicy


def test_unknown_destinations_are_passed_on_or_refused_as_the_policy_says(mesh: Mesh) -> None:
    mesh.service("own")  # so that port 80 has a route table
    client = mesh.pod("client")
    outside = "198.51.100.7"
    cases = (80, 8080)  # a port that services have, and one that none has

    def passed() -> bool:
        http = all(client.get(f"http://unknown.example.com:{port}/", at=outside).server == outside for port in cases)
        call = client.tcp(outside, 9090)
        tls = client.tls(outside, 443, "unknown.example.com")
        return http and call is not None and call.server == outside and tls is not None and tls.server == outside

    def refused() -> bool:
        if client.get("http://unknown.example.com/", at=outside).status != 502:
            return False
        for port in (8080, 9090):
            with contextlib.suppress(OSError):
                if client.tcp(outside, port) is not None:
                    return False
        with contextlib.suppress(OSError):
            client.tls(outside, 443, "unknown.example.com")
            return False
        return True

    assert passed()
    sidecar(mesh, "egress: [{hosts: [./*]}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    eventually(refused)
    sidecar(mesh, "egress: [{hosts: [./*]}]\noutboundTrafficPolicy: {mode: ALLOW_ANY}")
    eventually(passed)
    sidecar(mesh, "egress: [{hosts: [./*]}]\noutboundTrafficPolicy: {}")  # the first of its values
    eventually(refused)
    sidecar(mesh, "egress: [{hosts: [./*]}]")
    eventually(passed)


def test_unknown_traffic_goes_through_the_egress_proxy(mesh: Mesh) -> None:
    elsewhere = f"{mesh.namespace}-a"
    gateway = mesh.service("gateway", ["v1", "v2"], namespace=elsewhere, ports=({"name": "tls", "port": 8443},))
    mesh.service("own")
    mesh.apply(
        f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: gateway, namespace: {elsewhere}}}
        spec:
          host: {gateway.host}
          subsets: [{{name: two, labels: {{version: v2}}}}]
        """
    )
    sidecar(
        mesh,
        f"""
egress: [{{hosts: [./*, "{elsewhere}/*"]}}]
outboundTrafficPolicy:
  mode: ALLOW_ANY
  egressProxy: {{host: {gateway.host}, subset: two}}
""",
    )
    client = mesh.pod("client")
    assert answer(client, "http://unknown.example.com/", at="198.51.100.7") == "gateway-v2"  # a port that services have
    assert answer(client, "http://unknown.example.com:8080/", at="198.51.100.7") == "gateway-v2"  # and one that none has
    call = client.tcp("198.51.100.7", 9090)
    assert call is not None
    assert call.server == "gateway-v2"
    assert answer(client, "http://own/") == "own-v1"
