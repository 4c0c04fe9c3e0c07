"""Consistent hashing: requests and connections of one key meet the same endpoint."""

import socket
from collections.abc import Iterator

import pytest
from support.traffic import Mesh, Pod, World, exchange

KEYS = [f"key-{n}" for n in range(24)]

RULE = """
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {{name: {name}}}
    spec: {{host: {name}, trafficPolicy: {{loadBalancer: {{consistentHash: {hashing}}}}}}}
    ---
"""


@pytest.fixture(scope="module")
def mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        by_header, by_cookie = (
            "{httpHeaderName: x-user}",
            "{httpCookie: {name: user, path: /shop, ttl: 60s, attributes: [{name: SameSite, value: Strict}, {name: Secure}]}}",
        )
        rules = {
            "header": by_header,
            "maglev": "{httpHeaderName: x-user, maglev: {tableSize: 251}}",
            "ring": "{httpHeaderName: X-User, ringHash: {minimumRingSize: 64}}",
            "old-ring": "{httpHeaderName: x-user, minimumRingSize: 64}",
            "query": "{httpQueryParameterName: user}",
            "cookie": by_cookie,
            "session": "{httpCookie: {name: user, ttl: 0s}}",
            "passive": "{httpCookie: {name: user}}",
            "source": "{useSourceIp: true}",
        }
        for name in rules:
            mesh.service(name, {"v1": 4})
        mesh.service("routed", {"v1": 4})
        mesh.service("halves", {"v1": 3, "v2": 3})
        mesh.service("cookies", {"v1": 1, "v2": 1})
        mesh.service("bytes", {"v1": 4}, [{"name": "tcp", "port": 9000}])
        mesh.apply("".join(RULE.format(name=name, hashing=hashing) for name, hashing in rules.items()), quiet=True)
        mesh.apply(RULE.format(name="routed", hashing=by_header) + RULE.format(name="bytes", hashing="{useSourceIp: true}"), quiet=True)
        mesh.apply("""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: routed}
            spec: {hosts: [routed], http: [{retries: {attempts: 3, retryOn: 5xx}, route: [{destination: {host: routed}}]}]}
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: halves}
            spec:
              host: halves
              subsets:
              - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
              - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: user}}}}
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: cookies}
            spec:
              host: cookies
              trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 1h}}}}
              subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: cookies}
            spec:
              hosts: [cookies]
              http:
              - route:
                - {destination: {host: cookies, subset: v1}, weight: 50}
                - {destination: {host: cookies, subset: v2}, weight: 50}
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: halves}
            spec:
              hosts: [halves]
              http:
              - match: [{uri: {prefix: /one}}]
                route: [{destination: {host: halves, subset: v1}}]
              - route:
                - {destination: {host: halves, subset: v1}, weight: 50}
                - {destination: {host: halves, subset: v2}, weight: 50}
        """)
        yield mesh


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Pod:
    return mesh.pod("client")


class TestKeys:
    @pytest.mark.parametrize("host", ["header", "maglev", "ring", "old-ring", "routed"])
    def test_requests_with_one_header_meet_one_endpoint_and_others_spread(self, client: Pod, host: str) -> None:
        met = {key: set(client.many(f"http://{host}/", 3, {"x-user": key})) for key in KEYS}
        assert {len(servers) for servers in met.values()} == {1}
        assert len(set.union(*met.values())) > 1

    def test_clients_agree(self, mesh: Mesh, client: Pod) -> None:
        other = mesh.pod("other")
        for key in KEYS[:8]:
            assert client.get("http://header/", {"x-user": key}).server == other.get("http://header/", {"x-user": key}).server

    def test_requests_with_one_query_parameter_meet_one_endpoint(self, client: Pod) -> None:
        met = {key: set(client.many(f"http://query/?a=b&user={key}", 3)) for key in KEYS}
        assert {len(servers) for servers in met.values()} == {1}
        assert len(set.union(*met.values())) > 1

    def test_requests_without_the_key_are_spread(self, client: Pod) -> None:
        for url in ("http://header/", "http://query/", "http://passive/"):
            assert len(client.many(url, 120)) == 4  # of a ring, one may have less than a quarter

    @pytest.mark.parametrize("host", ["cookie", "session", "passive"])
    def test_requests_with_one_cookie_meet_one_endpoint(self, client: Pod, host: str) -> None:
        met = {key: set(client.many(f"http://{host}/", 3, {"cookie": f"other=1; user={key}"})) for key in KEYS}
        assert {len(servers) for servers in met.values()} == {1}
        assert len(set.union(*met.values())) > 1

    def test_requests_of_one_source_address_meet_one_endpoint(self, client: Pod) -> None:
        assert len(client.many("http://source/", 20)) == 1


class TestGeneratedCookie:
    def test_it_has_the_rule_s_name_path_and_lifetime_and_keeps_the_endpoint(self, client: Pod) -> None:
        first = client.get("http://cookie/")
        cookie = first.header("set-cookie")
        assert cookie is not None
        value, *attributes = cookie.split("; ")
        assert value.startswith("user=")
        assert {"Max-Age=60", "Path=/shop", "SameSite=Strict", "Secure", "HttpOnly"} <= set(attributes)
        assert set(client.many("http://cookie/", 10, {"cookie": value})) == {first.server}

    def test_none_is_made_where_the_request_has_one(self, client: Pod) -> None:
        assert client.get("http://cookie/", {"cookie": "user=me"}).header("set-cookie") is None

    def test_with_no_lifetime_it_ends_with_the_session(self, client: Pod) -> None:
        cookie = client.get("http://session/").header("set-cookie")
        assert cookie is not None
        assert "Max-Age" not in cookie

    def test_without_a_ttl_none_is_made(self, client: Pod) -> None:
        assert client.get("http://passive/").header("set-cookie") is None


class TestSubsets:
    def test_a_subset_hashes_by_its_own_policy(self, client: Pod) -> None:
        met = {key: set(client.many("http://halves/one", 3, {"x-user": key})) for key in KEYS}
        assert {len(servers) for servers in met.values()} == {1}
        assert len(set.union(*met.values())) > 1

    def test_in_each_of_several_weighted_destinations_a_key_meets_one_endpoint(self, client: Pod) -> None:
        for key in KEYS[:8]:
            seen = client.many(f"http://halves/two?user={key}", 40, {"x-user": key})
            versions = [server.split("-")[1] for server in seen]
            assert sorted(versions) == ["v1", "v2"]

    def test_several_destinations_with_one_key_make_one_cookie(self, client: Pod) -> None:
        reply = client.get("http://cookies/")
        assert [name for name, _ in reply.headers].count("set-cookie") == 1


class TestConnections:
    def test_connections_of_one_source_address_meet_one_endpoint_and_others_spread(self, mesh: Mesh, client: Pod) -> None:
        met: dict[str, set[str]] = {}
        for host in range(10, 30):
            source = f"10.99.{client.link}.{host}"
            client.namespace.ip(f"addr replace {source}/24 dev eth0")
            met[source] = {_from(client, source, mesh.resolves[f"bytes.{mesh.namespace}.svc.cluster.local"]) for _ in range(3)}
        assert {len(servers) for servers in met.values()} == {1}
        assert len(set.union(*met.values())) > 1


def _from(client: Pod, source: str, address: str) -> str:
    """Who answers a connection from this address of the pod."""
    with client.namespace.enter(lambda: socket.create_connection((address, 9000), 20, (source, 0))) as connection:
        call = exchange(connection, b"hello")
    assert call is not None
    assert call.peer
    return call.server
