"""DestinationRules for services of every kind: headless, of ServiceEntries, of bytes and of TLS."""

from collections import Counter
from collections.abc import Iterator

import pytest
from support.traffic import Mesh, Pod, Service, World, eventually

PORTS = (
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "tcp", "port": 9000, "targetPort": 9090},
    {"name": "tls", "port": 443, "targetPort": 8443},
)
SUBSETS = "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: all}]"


@pytest.fixture(scope="module")
def mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        yield mesh


def routed(host: str, tls: str) -> str:
    """Rules that send all kinds of calls of `host` to its subset v2, but paths below /all to all."""
    return f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: {host}}}
        spec: {{host: {host}, {SUBSETS}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: {host}}}
        spec:
          hosts: [{host}]
          http:
          - {{match: [{{uri: {{prefix: /all}}}}], route: [{{destination: {{host: {host}, subset: all}}}}]}}
          - {{match: [{{uri: {{prefix: /half}}}}], route: [
              {{destination: {{host: {host}, subset: v1}}, weight: 50}}, {{destination: {{host: {host}, subset: v2}}, weight: 50}}]}}
          - {{route: [{{destination: {{host: {host}, subset: v2}}}}]}}
          tcp: [{{match: [{{port: 9000}}], route: [{{destination: {{host: {host}, subset: v2, port: {{number: 9000}}}}}}]}}]
          tls: [{{match: [{{port: 443, sniHosts: ["{tls}"]}}], route: [{{destination: {{host: {host}, subset: v2}}}}]}}]
        ---
    """


class TestKinds:
    """Two versions of a Service, of a headless Service, and of hosts of ServiceEntries, each under the same rules."""

    @pytest.fixture(scope="class")
    @classmethod
    def headless(cls, mesh: Mesh) -> Service:
        return mesh.service("headless", {"v1": 2, "v2": 2}, PORTS, headless=True)

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, mesh: Mesh, headless: Service) -> Pod:
        assert headless.applications
        mesh.service("plain", {"v1": 2, "v2": 2}, PORTS)
        for name, resolution in (("fixed.test", "STATIC"), ("named.test", "DNS")):
            applications = [mesh.application(f"{name}-{v}-{n}", ports=[8080, 9090, 8443]) for v in ("v1", "v2") for n in (0, 1)]
            address = next(mesh.world.virtual_addresses)
            mesh.name(name, address)
            endpoints = []
            for application in applications:
                mesh.name(f"{application.name}.endpoint.test", application.address)
                at = application.address if resolution == "STATIC" else f"{application.name}.endpoint.test"
                version = application.name.split("-")[1]
                endpoints.append({"address": at, "labels": {"version": version}, "ports": {"http": 8080, "tcp": 9090, "tls": 8443}})
            mesh.put(
                {
                    "apiVersion": "networking.istio.io/v1",
                    "kind": "ServiceEntry",
                    "metadata": {"name": name},
                    "spec": {
                        "hosts": [name],
                        "addresses": [address],
                        "resolution": resolution,
                        "ports": [{"number": p["port"], "name": p["name"], "protocol": str(p["name"]).upper()} for p in PORTS],
                        "endpoints": endpoints,
                    },
                },
                quiet=True,
            )
        for host in ("plain", "headless", "fixed.test", "named.test"):
            tls = host if "." in host else f"{host}.{mesh.namespace}.svc.cluster.local"
            mesh.apply(routed(host, tls), quiet=True)
        mesh.write()
        return mesh.pod("kinds")

    @pytest.mark.parametrize("host", ["plain", "headless", "fixed.test", "named.test"])
    def test_requests_go_to_the_subset(self, client: Pod, host: str) -> None:
        eventually(lambda: _versions(client.many(f"http://{host}/", 20)) == {"v2": 20})
        assert set(_versions(client.many(f"http://{host}/half", 30))) == {"v1", "v2"}

    @pytest.mark.parametrize("host", ["plain", "fixed.test", "named.test"])
    def test_a_subset_without_labels_is_all_of_it(self, client: Pod, host: str) -> None:
        assert set(_versions(client.many(f"http://{host}/all", 30))) == {"v1", "v2"}

    def test_of_a_headless_service_it_is_where_the_caller_was_going(self, client: Pod, headless: Service) -> None:
        for application in headless.applications.values():
            assert client.get("http://headless/all", at=application.address).server == application.name

    @pytest.mark.parametrize("host", ["plain", "headless", "fixed.test", "named.test"])
    def test_connections_of_bytes_go_to_the_subset(self, client: Pod, host: str) -> None:
        calls = [client.tcp(host, 9000) for _ in range(10)]
        assert _versions(Counter(call.server for call in calls if call is not None)) == {"v2": 10}

    @pytest.mark.parametrize("host", ["plain", "headless", "fixed.test", "named.test"])
    def test_connections_of_tls_go_to_the_subset(self, mesh: Mesh, client: Pod, host: str) -> None:
        name = host if "." in host else f"{host}.{mesh.namespace}.svc.cluster.local"
        calls = [client.tls(host, 443, name) for _ in range(6)]
        assert _versions(Counter(call.server for call in calls if call is not None)) == {"v2": 6}


def _versions(seen: Counter[str]) -> Counter[str]:
    """By version."""
    found: Counter[str] = Counter()
    for server, count in seen.items():
        found[server.split("-")[1] if "-" in server else server] += count
    return found


class TestServiceEntries:
    RULES = """
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {{name: several}}
        spec:
          hosts: [api.wild.test, www.wild.test, deep.api.wild.test]
          ports: [{{number: 80, name: http, protocol: HTTP}}]
          resolution: STATIC
          endpoints: [{{address: {address}, ports: {{http: 8080}}}}]
        ---
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {{name: any}}
        spec:
          hosts: ["*.any.test"]
          ports: [{{number: 80, name: http, protocol: HTTP}}]
          resolution: NONE
        ---
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: wild}}
        spec: {{host: "*.wild.test", trafficPolicy: {{proxyProtocol: {{version: V1}}}}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: wilder}}
        spec: {{host: "*.test", trafficPolicy: {{proxyProtocol: {{}}}}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: www}}
        spec: {{host: WWW.wild.test, trafficPolicy: {{proxyProtocol: {{version: V2}}}}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: deep}}
        spec: {{host: "*.api.wild.test", trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}
        ---
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: any}}
        spec: {{host: "*.any.test", trafficPolicy: {{proxyProtocol: {{version: V2}}}}}}
    """

    def test_the_most_specific_host_decides_alone(self, mesh: Mesh) -> None:
        application = mesh.application("several", ports=[8080])
        mesh.apply(self.RULES.format(address=application.address))
        client = mesh.pod("wildcards")
        found = {}
        for host in ("api.wild.test", "www.wild.test", "deep.api.wild.test"):
            call = client.get(f"http://{host}/").call
            assert call is not None
            found[host] = call.proxied.partition(" ")[0]
        assert found == {"api.wild.test": "1", "www.wild.test": "2", "deep.api.wild.test": ""}
        reply = client.get("http://one.any.test/", at="203.0.113.77")
        call = reply.call
        assert call is not None, reply
        assert (call.server, call.proxied.partition(" ")[0]) == ("203.0.113.77", "2")

    def test_tls_is_originated_on_the_port_that_the_rule_names(self, mesh: Mesh) -> None:
        application = mesh.application("origin", ports=[8443])
        mesh.name("origin.example.com", application.address)
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: origin}}
            spec:
              hosts: [origin.example.com]
              ports:
              - {{number: 80, name: http-port, protocol: HTTP, targetPort: 8443}}
              - {{number: 443, name: https-port, protocol: HTTPS}}
              resolution: DNS
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: origin}}
            spec:
              host: origin.example.com
              trafficPolicy:
                portLevelSettings:
                - port: {{number: 80}}
                  tls: {{mode: SIMPLE, caCertificates: {mesh.authority.path}}}
        """)
        client = mesh.pod("origin")
        call = client.get("http://origin.example.com/").call
        assert call is not None
        assert (call.tls, call.sni) == (True, "origin.example.com")
        through = client.get("https://origin.example.com/", at=application.address).call
        assert through is not None
        assert (through.tls, through.sni) == (True, "origin.example.com")
