"""VirtualService `tcp` and `tls`: where connections go that are forwarded as bytes."""

import ssl
import threading
from collections import Counter

import pytest
from support.traffic import Mesh, Pod, eventually
from support.traffic_rules import SUBSETS, TO_V1, TO_V2, virtual_service

TCP = ({"name": "tcp", "port": 3306},)
TWO = ({"name": "tcp", "port": 3306}, {"name": "tcp-admin", "port": 33060})
BYTES = b"\0\1 not HTTP\n"
TLS = ({"name": "tls", "port": 8443},)


@pytest.fixture
def app(mesh: Mesh) -> Mesh:
    """A mesh with the TCP service `app` of the versions v1 and v2, and `other`."""
    mesh.apply(SUBSETS, quiet=True)
    mesh.service("app", ("v1", "v2"), TWO)
    mesh.service("other", ports=TCP)
    return mesh


def rule(routes: str, hosts: str = "[app]", kind: str = "tcp", more: str = "") -> str:
    return virtual_service("rule", routes, hosts=hosts, kind=kind, more=more)


def servers(client: Pod, host: str, port: int, count: int = 6) -> Counter[str]:
    """How often who answered connections."""
    calls = [client.tcp(host, port, BYTES) for _ in range(count)]
    return Counter("" if call is None else call.server for call in calls)


class TestTcp:
    def test_a_rule_without_a_match_takes_everything(self, app: Mesh) -> None:
        app.apply(rule(f"[{{{TO_V2}}}, {{{TO_V1}}}]"))
        client = app.pod("client")
        assert servers(client, "app", 3306) == servers(client, "app", 33060) == {"app-v2": 6}

    def test_another_service_and_port(self, app: Mesh) -> None:
        app.apply(rule("[{match: [{port: 3306}], route: [{destination: {host: other, port: {number: 3306}}}]}]"))
        client = app.pod("client")
        assert servers(client, "app", 3306) == {"other-v1": 6}
        assert servers(client, "app", 33060, 40).keys() == {"app-v1", "app-v2"}

    def test_a_port(self, app: Mesh) -> None:
        app.apply(rule(f"[{{match: [{{port: 33060}}], {TO_V1}}}, {{{TO_V2}}}]"))
        client = app.pod("client")
        assert servers(client, "app", 33060) == {"app-v1": 6}
        assert servers(client, "app", 3306) == {"app-v2": 6}

    def test_one_match_of_several_is_enough(self, app: Mesh) -> None:
        app.apply(rule(f"[{{match: [{{port: 1}}, {{port: 3306}}], {TO_V1}}}, {{{TO_V2}}}]"))
        assert servers(app.pod("client"), "app", 3306) == {"app-v1": 6}

    def test_a_destination_without_a_port_means_the_one_that_was_called(self, app: Mesh) -> None:
        app.apply(rule(f"[{{{TO_V1}}}]"))
        call = app.pod("client").tcp("app", 33060)
        assert call is not None
        assert (call.server, call.port) == ("app-v1", 33060)

    def test_weights(self, app: Mesh) -> None:
        app.apply(
            rule("""[{match: [{port: 3306}], route: [
            {destination: {host: app, subset: v1}, weight: 80}, {destination: {host: app, subset: v2}, weight: 20}]},
            {route: [{destination: {host: app, subset: v1}, weight: 0}, {destination: {host: app, subset: v2}, weight: 1}]}]""")
        )
        client = app.pod("client")
        seen = servers(client, "app", 3306, 200)
        assert 120 <= seen["app-v1"] < 192
        assert seen.keys() == {"app-v1", "app-v2"}
        assert servers(client, "app", 33060) == {"app-v2": 6}

    @pytest.mark.parametrize(
        ("condition", "taken"),
        [
            ("sourceLabels: {app: client}", True),
            ("sourceLabels: {app: client, tier: front}", False),
            ("sourceNamespace: {here}", True),
            ("sourceNamespace: elsewhere", False),
            ("gateways: [mesh]", True),
            ("gateways: [edge]", False),
            ("destinationSubnets: [{address}]", True),
            ("destinationSubnets: [{address}/32, 192.0.2.0/24]", True),
        ],
    )
    def test_conditions(self, app: Mesh, condition: str, taken: bool) -> None:
        service = app.services["app"]
        condition = condition.replace("{here}", app.namespace).replace("{address}", service.address)
        app.apply(rule(f"[{{match: [{{{condition}}}], {TO_V1}}}, {{{TO_V2}}}]"))
        assert servers(app.pod("client"), "app", 3306) == {"app-v1" if taken else "app-v2": 6}

    def test_destination_subnets_of_a_service_of_many_addresses(self, app: Mesh) -> None:
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: range}}
            spec:
              hosts: [range.{app.namespace}.test]
              addresses: [203.0.113.0/24]
              ports: [{{number: 3306, name: tcp, protocol: TCP}}]
              resolution: NONE
        """)
        routes = f"[{{match: [{{destinationSubnets: [203.0.113.128/25]}}], {TO_V1}}}, {{{TO_V2}}}]"
        app.apply(rule(routes, f"[range.{app.namespace}.test]"))
        client = app.pod("client")
        assert servers(client, "203.0.113.200", 3306) == {"app-v1": 6}
        assert servers(client, "203.0.113.20", 3306) == {"app-v2": 6}

    def test_the_first_rule_that_matches_is_used(self, app: Mesh) -> None:
        address = app.services["app"].address
        wide = ".".join(address.split(".")[:2])
        routes = f"""[{{match: [{{destinationSubnets: [{wide}.0.0/16]}}], {TO_V1}}},
            {{match: [{{destinationSubnets: [{address}]}}], {TO_V2}}}]"""
        app.apply(rule(routes))
        assert servers(app.pod("client"), "app", 3306) == {"app-v1": 6}

    def test_what_no_rule_takes_goes_to_the_service(self, app: Mesh) -> None:
        app.apply(rule(f"[{{match: [{{port: 3306}}], {TO_V1}}}]"))
        client = app.pod("client")
        assert servers(client, "app", 3306) == {"app-v1": 6}
        assert servers(client, "app", 33060, 40).keys() == {"app-v1", "app-v2"}

    def test_connections_to_what_does_not_exist_are_closed(self, app: Mesh) -> None:
        app.apply(rule("[{route: [{destination: {host: nobody}}]}]"))
        assert app.pod("client").tcp("app", 3306) is None

    def test_a_service_entry(self, app: Mesh) -> None:
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: db}}
            spec:
              hosts: [db.{app.namespace}.test]
              addresses: [203.0.113.5]
              ports: [{{number: 3306, name: tcp, protocol: TCP}}]
              resolution: STATIC
              endpoints: [{{address: 198.51.100.30}}]
        """)
        app.application("db", "198.51.100.30", [3306])
        app.apply(rule(f"[{{match: [{{sourceLabels: {{app: client}}}}], {TO_V2}}}]", f"[db.{app.namespace}.test]"))
        client, stranger = app.pod("client"), app.pod("stranger")
        assert servers(client, "203.0.113.5", 3306) == {"app-v2": 6}
        assert servers(stranger, "203.0.113.5", 3306) == {"db": 6}

    def test_http_rules_are_not_for_tcp_ports(self, app: Mesh) -> None:
        app.apply(rule("[{directResponse: {status: 418}}]", kind="http"))
        assert servers(app.pod("client"), "app", 3306, 40).keys() == {"app-v1", "app-v2"}

    def test_tcp_rules_are_not_for_http_ports(self, app: Mesh) -> None:
        app.service("web", ("v1", "v2"))
        app.apply(rule("[{route: [{destination: {host: other}}]}]", "[web]"))
        assert app.pod("client").many("http://web/", 40).keys() == {"web-v1", "web-v2"}

    def test_a_port_whose_protocol_is_not_declared_has_rules_of_both_kinds(self, app: Mesh) -> None:
        app.service("auto", ports=[{"name": "any", "port": 9090, "targetPort": 9090}])
        app.apply("""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: auto}
            spec:
              hosts: [auto]
              http: [{directResponse: {status: 418}}]
              tcp: [{route: [{destination: {host: app, subset: v2, port: {number: 3306}}}]}]
        """)
        client = app.pod("client")
        assert client.get("http://auto:9090/").status == 418
        assert servers(client, "auto", 9090) == {"app-v2": 6}

    def test_a_headless_service(self, app: Mesh) -> None:
        app.service("pods", {"v1": 2}, TCP, headless=True)
        app.apply(rule(f"[{{match: [{{port: 3306}}], {TO_V2}}}]", "[pods]"))
        client = app.pod("client")
        for pod in app.services["pods"].applications.values():
            assert servers(client, pod.address, 3306) == {"app-v2": 6}

    def test_a_rule_that_leads_to_a_headless_service(self, app: Mesh) -> None:
        app.service("pods", {"v1": 2}, TCP, headless=True)
        app.apply(rule("[{match: [{port: 3306}], route: [{destination: {host: pods}}]}]"))
        assert servers(app.pod("client"), "app", 3306, 40).keys() == {"pods-v1-0", "pods-v1-1"}

    def test_rules_of_all_kinds_are_each_for_their_ports(self, app: Mesh) -> None:
        ports = [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "tcp", "port": 3306},
            {"name": "tls", "port": 8443},
            {"name": "any", "port": 9090},
        ]
        app.service("many", ports=ports)
        app.service("web")
        app.service("secure", ports=TLS)
        host = f"many.{app.namespace}.svc.cluster.local"
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: many}}
            spec:
              hosts: [many]
              http: [{{route: [{{destination: {{host: web}}}}]}}]
              tcp: [{{route: [{{destination: {{host: other}}}}]}}]
              tls: [{{match: [{{sniHosts: [{host}]}}], route: [{{destination: {{host: secure}}}}]}}]
        """)
        client = app.pod("client")
        assert client.get("http://many/").server == client.get("http://many:9090/").server == "web-v1"
        assert servers(client, "many", 3306) == servers(client, "many", 9090) == {"other-v1": 6}
        call = client.tls("many", 8443, host)
        assert call is not None
        assert call.server == "secure-v1"

    def test_a_canary_takes_over_without_a_failed_connection(self, app: Mesh) -> None:
        def split(v1: int, v2: int) -> str:
            return rule(f"""[{{match: [{{port: 3306}}], route: [{{destination: {{host: app, subset: v1}}, weight: {v1}}},
                {{destination: {{host: app, subset: v2}}, weight: {v2}}}]}}]""")

        app.apply(split(100, 0))
        client = app.pod("client")
        seen: list[str] = []
        done = threading.Event()

        def call() -> None:
            while not done.is_set():
                try:
                    answer = client.tcp("app", 3306, BYTES)
                except OSError as e:
                    seen.append(repr(e))
                else:
                    seen.append("" if answer is None else answer.server)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for share in (50, 100):
                app.apply(split(100 - share, share))
                eventually(lambda: "app-v2" in servers(client, "app", 3306, 10))
            eventually(lambda: servers(client, "app", 3306, 10) == {"app-v2": 10})
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert set(seen) == {"app-v1", "app-v2"}

    def test_a_rule_comes_changes_and_goes(self, app: Mesh) -> None:
        client = app.pod("client")
        assert servers(client, "app", 3306, 40).keys() == {"app-v1", "app-v2"}
        app.apply(rule(f"[{{{TO_V1}}}]"))
        eventually(lambda: servers(client, "app", 3306) == {"app-v1": 6})
        app.apply(rule(f"[{{{TO_V2}}}]"))
        eventually(lambda: servers(client, "app", 3306) == {"app-v2": 6})
        app.delete("VirtualService", "rule")
        eventually(lambda: servers(client, "app", 3306, 40).keys() == {"app-v1", "app-v2"})


class TestTls:
    @pytest.fixture
    def secure(self, mesh: Mesh) -> Mesh:
        """The TLS services `app` (v1, v2) and `other`."""
        mesh.apply(SUBSETS, quiet=True)
        mesh.service("app", ("v1", "v2"), TLS)
        mesh.service("other", ports=TLS)
        return mesh

    @staticmethod
    def server(client: Pod, name: str, host: str = "app") -> str | None:
        """Who answers a TLS connection with this SNI; None where it is closed."""
        try:
            call = client.tls(host, 8443, name)
        except (ssl.SSLError, ConnectionError):
            return None
        return None if call is None else call.server

    def test_sni_hosts(self, secure: Mesh) -> None:
        domain = f"{secure.namespace}.test"
        routes = f"""[
            {{match: [{{sniHosts: [a.{domain}, b.{domain}]}}], {TO_V1}}},
            {{match: [{{sniHosts: ['*.wild.{domain}']}}], {TO_V2}}},
            {{match: [{{port: 8443, sniHosts: [c.{domain}]}}, {{port: 1, sniHosts: [d.{domain}]}}],
              route: [{{destination: {{host: other}}}}]}}]"""
        secure.apply(rule(routes, f"[app, '*.{domain}']", "tls"))
        client = secure.pod("client")
        found = {name: self.server(client, f"{name}.{domain}") for name in ("a", "b", "A", "x.wild", "x.y.wild", "c")}
        assert found == {"a": "app-v1", "b": "app-v1", "A": "app-v1", "x.wild": "app-v2", "x.y.wild": "app-v2", "c": "other-v1"}

    def test_the_application_does_the_handshake(self, secure: Mesh) -> None:
        host = f"app.{secure.namespace}.svc.cluster.local"
        secure.apply(rule(f"[{{match: [{{sniHosts: [{host}]}}], {TO_V2}}}]", f"[{host}]", "tls"))
        call = secure.pod("client").tls("app", 8443, host)
        assert call is not None
        assert (call.server, call.tls, call.sni) == ("app-v2", True, host)

    def test_weights(self, secure: Mesh) -> None:
        host = f"app.{secure.namespace}.svc.cluster.local"
        routes = f"""[{{match: [{{sniHosts: [{host}]}}], route: [
            {{destination: {{host: app, subset: v1}}, weight: 50}}, {{destination: {{host: app, subset: v2}}, weight: 50}}]}}]"""
        secure.apply(rule(routes, f"[{host}]", "tls"))
        client = secure.pod("client")
        seen = Counter(self.server(client, host) for _ in range(30))
        assert seen.keys() == {"app-v1", "app-v2"}

    @pytest.mark.parametrize(
        ("condition", "taken"),
        [
            ("sourceLabels: {app: client}", True),
            ("sourceLabels: {app: other}", False),
            ("sourceNamespace: {here}", True),
            ("sourceNamespace: elsewhere", False),
            ("gateways: [mesh]", True),
            ("gateways: [edge]", False),
            ("destinationSubnets: [{address}]", True),
            ("port: 8443", True),
            ("port: 443", False),
        ],
    )
    def test_conditions(self, secure: Mesh, condition: str, taken: bool) -> None:
        host = f"app.{secure.namespace}.svc.cluster.local"
        condition = condition.replace("{here}", secure.namespace).replace("{address}", secure.services["app"].address)
        routes = f"[{{match: [{{sniHosts: [{host}], {condition}}}], {TO_V1}}}, {{match: [{{sniHosts: [{host}]}}], {TO_V2}}}]"
        secure.apply(rule(routes, f"[{host}]", "tls"))
        assert self.server(secure.pod("client"), host) == ("app-v1" if taken else "app-v2")

    def test_without_a_rule_that_applies_connections_go_to_the_service(self, secure: Mesh) -> None:
        host = f"app.{secure.namespace}.svc.cluster.local"
        secure.apply(rule(f"[{{match: [{{sniHosts: [{host}], port: 1}}], {TO_V1}}}]", f"[{host}]", "tls"))
        client = secure.pod("client")
        assert {self.server(client, host) for _ in range(20)} == {"app-v1", "app-v2"}

    def test_a_service_entry_without_addresses(self, secure: Mesh) -> None:
        domain = f"{secure.namespace}.test"
        secure.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: outside}}
            spec:
              hosts: [a.{domain}, b.{domain}]
              ports: [{{number: 8443, name: tls, protocol: TLS}}]
              resolution: STATIC
              endpoints: [{{address: 198.51.100.40}}]
        """)
        secure.application("outside", "198.51.100.40", [8443])
        secure.apply(rule(f"[{{match: [{{sniHosts: [a.{domain}]}}], {TO_V1}}}]", f"[a.{domain}]", "tls"))
        client = secure.pod("client")
        assert self.server(client, f"a.{domain}", "192.0.2.40") == "app-v1"
        assert self.server(client, f"b.{domain}", "192.0.2.40") == "outside"

    def test_the_first_rule_that_matches_is_used(self, secure: Mesh) -> None:
        domain = f"{secure.namespace}.test"
        routes = f"[{{match: [{{sniHosts: ['*.{domain}']}}], {TO_V1}}}, {{match: [{{sniHosts: [a.{domain}]}}], {TO_V2}}}]"
        secure.apply(rule(routes, f"[app, '*.{domain}']", "tls"))
        client = secure.pod("client")
        assert self.server(client, f"b.{domain}") == "app-v1"
        assert self.server(client, f"a.{domain}") == "app-v1"

    def test_a_rule_for_all_addresses_leaves_others_names_alone(self, secure: Mesh) -> None:
        domain = f"{secure.namespace}.test"
        routes = f"""[
            {{match: [{{sniHosts: [a.{domain}], destinationSubnets: [0.0.0.0/0]}}], {TO_V1}}},
            {{match: [{{sniHosts: [b.{domain}]}}], {TO_V2}}}]"""
        secure.apply(rule(routes, f"[app, '*.{domain}']", "tls"))
        client = secure.pod("client")
        assert [self.server(client, f"{name}.{domain}") for name in "ab"] == ["app-v1", "app-v2"]

    def test_rules_for_some_addresses_leave_others_names_alone(self, secure: Mesh) -> None:
        domain = f"{secure.namespace}.test"
        routes = f"""[
            {{match: [{{sniHosts: [a.{domain}], destinationSubnets: [{secure.services["app"].address}]}}], {TO_V1}}},
            {{match: [{{sniHosts: ['*.{domain}']}}], {TO_V2}}}]"""
        secure.apply(rule(routes, f"[app, '*.{domain}']", "tls"))
        client = secure.pod("client")
        assert [self.server(client, f"{name}.{domain}") for name in "ab"] == ["app-v1", "app-v2"]
