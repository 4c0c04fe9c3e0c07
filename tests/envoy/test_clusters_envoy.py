"""Clusters in a real Envoy: it accepts them all, and calls go where the rules say."""

import itertools
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.cluster_rig import ADDRESSES, PORT, Case, Envoy, Rig, Server, connection_manager
from support.destinations import SIDECAR, Destination, at, decoded, entry, reviews

from xds import pb
from xds.envoy.addresses import address
from xds.envoy.clusters import black_hole_cluster, inbound_cluster, inbound_passthrough_cluster, passthrough_cluster
from xds.envoy.dns import dns_cache
from xds.mesh.model import Client, Endpoint, Health, Inbound, Locality, Mode, Port, Protocol, Resolution, Service
from xds.objects import MeshConfig

pytestmark = pytest.mark.envoy

DUAL = Client("default", addresses=("10.0.0.1", "fd00::1"))
GATEWAY = Client("default", addresses=("fd00::1",), kind="router")
UNCAPTURED = Client("default", addresses=("10.0.0.1",), mode=Mode.NONE)
HERE = Client("default", addresses=("10.0.0.1",), locality=Locality("r1", "z1", "s1"))

EVERY_LIMIT = {
    "tcp": {
        "maxConnections": 1,
        "connectTimeout": "1s",
        "maxConnectionDuration": "1h",
        "idleTimeout": "3s",
        "tcpKeepalive": {"probes": 3, "time": "7200s", "interval": "75s"},
    },
    "http": {
        "http1MaxPendingRequests": 1,
        "http2MaxRequests": 2,
        "maxRequestsPerConnection": 3,
        "maxRetries": 4,
        "idleTimeout": "5s",
        "maxConcurrentStreams": 6,
        "http2KeepAlive": {"interval": "10s"},
    },
}
EVERY_OUTLIER = {
    "consecutive5xxErrors": 0,
    "consecutiveGatewayErrors": 3,
    "splitExternalLocalOriginErrors": True,
    "consecutiveLocalOriginFailures": 2,
    "interval": "5s",
    "baseEjectionTime": "10s",
    "maxEjectionPercent": 100,
    "minHealthPercent": 30,
    "outlierDetectionHttpErrorCodes": [429, 500],
}
POLICIES: tuple[dict[str, Any], ...] = (
    {},
    *({"loadBalancer": {"simple": simple}} for simple in ("ROUND_ROBIN", "LEAST_CONN", "RANDOM", "PASSTHROUGH")),
    {"loadBalancer": {"simple": "ROUND_ROBIN", "warmup": {"duration": "30s", "minimumPercent": 20, "aggression": 2}}},
    {"loadBalancer": {"warmupDurationSecs": "30s"}},
    {"loadBalancer": {"consistentHash": {"httpHeaderName": "x", "maglev": {"tableSize": 1009}}}},
    {"loadBalancer": {"consistentHash": {"httpHeaderName": "x", "ringHash": {"minimumRingSize": 7}}}},
    {"loadBalancer": {"consistentHash": {"useSourceIp": True, "minimumRingSize": 5000}}},
    {"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "r1/*", "to": {"r1/*": 80, "r2/*": 20}}]}}},
    {"loadBalancer": {"zoneAwareLbSetting": {"enabled": True, "minClusterSize": 3}}, "outlierDetection": {"interval": "1s"}},
    {"connectionPool": EVERY_LIMIT, "retryBudget": {"percent": 30, "minRetryConcurrency": 5}},
    {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 5}}, "retryBudget": {}},
    {"connectionPool": {"http": {"useClientProtocol": True}}},
    {"outlierDetection": EVERY_OUTLIER},
    {"outlierDetection": {"outlierDetectionHttpErrorCodes": [429]}},
    {"tls": {"mode": "DISABLE"}},
    {"tls": {"mode": "SIMPLE"}},
    {"tls": {"mode": "SIMPLE", "sni": "a", "subjectAltNames": ["a", "spiffe://b/c", "10.0.0.1"]}},
    {"tls": {"mode": "SIMPLE", "insecureSkipVerify": True, "subjectAltNames": ["a"]}},
    {"tls": {"mode": "SIMPLE", "credentialName": "x"}},
    {"tls": {"mode": "MUTUAL", "credentialName": "x"}},
    {"tls": {"mode": "ISTIO_MUTUAL", "subjectAltNames": ["spiffe://a/b"]}},
    {"proxyProtocol": {"version": "V2"}},
    {"proxyProtocol": {}, "tls": {"mode": "SIMPLE"}},
)
PROTOCOLS = (Protocol.HTTP, Protocol.GRPC, Protocol.TCP, Protocol.TLS, Protocol.AUTO)
KINDS = {
    "told": {},
    "headless": {"headless": True, "resolution": Resolution.PASSTHROUGH},
    "names": {"resolution": Resolution.DNS, "external": True},
    "name": {"resolution": Resolution.DNS_ROUND_ROBIN, "external": True},
    "any-name": {"resolution": Resolution.DYNAMIC_DNS, "external": True},
}
ENDPOINTS = (at("10.0.0.5", place="r1/z1/s1"), at("10.0.0.6", weight=3, place="r1/z2"), at("fd00::5", place="r2"))


def matrix(clients: Iterable[Client]) -> Iterator[Any]:
    """A cluster of every kind of service and every policy, with and without endpoints, for every client."""
    for i, client in enumerate(clients):
        for protocol in PROTOCOLS:
            for j, policy in enumerate(POLICIES):
                for kind, fields in KINDS.items():
                    service = reviews(Port(80, "p", protocol, 8080), hostname=f"{kind}-{i}-{j}-{protocol.name.lower()}", **fields)
                    yield Destination(service, policy, endpoints=ENDPOINTS[: 3 * (j % 2)]).cluster(client)
    config = decoded({"defaultTrafficPolicy": {"connectionPool": EVERY_LIMIT}}, MeshConfig)
    places = ("", "127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "unix:///run/app.sock")
    for number, (protocol, forward_to) in enumerate(itertools.product(Protocol, places), 1):
        yield inbound_cluster(Inbound(number, protocol, reviews(), 80, forward_to=forward_to), DUAL, config)
    yield from (passthrough_cluster(config), inbound_passthrough_cluster(DUAL, config), black_hole_cluster())


class TestAccepted:
    def test_envoy_takes_every_cluster_and_warns_of_none(self, tmp_path: Path) -> None:
        """They come as from a control plane: not all that Envoy takes so may stand in a bootstrap (a cluster of names whose
        certificate comes over ADS crashes Envoy 1.40 there, as ADS is not there yet)."""
        clusters = list(matrix((SIDECAR, DUAL, GATEWAY, UNCAPTURED, HERE)))
        response = pb.DiscoveryResponse(type_url=pb.type_url(pb.Cluster), resources=[pb.any(c) for c in clusters])
        (tmp_path / "cds.pb").write_bytes(response.SerializeToString())
        bootstrap = pb.Bootstrap(
            node={"id": "a", "cluster": "a"},
            static_resources={"clusters": [{"name": "xds", "typed_extension_protocol_options": H2}]},
            dynamic_resources={
                "cds_config": {"path_config_source": {"path": str(tmp_path / "cds.pb")}},
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
            },
        )
        with Envoy(bootstrap) as proxy:
            proxy.eventually(lambda: proxy.stat("cluster_manager.cds.update_attempt"))
            proxy.eventually(lambda: proxy.stat("cluster_manager.cds.update_success"), 10)
            assert proxy.stat("cluster_manager.cds.update_rejected") == 0
            assert proxy.stat("cluster_manager.cluster_added") >= len(clusters) > 1000
        assert "deprecated" not in proxy.log.lower()


H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pb.any(
        pb.HttpProtocolOptions(explicit_http_config={"http2_protocol_options": {}})
    )
}


RIG = Rig()


def servers(count: int, **fields: Any) -> tuple[Endpoint, ...]:
    """Endpoints that are servers of the rig, all at one place."""
    return tuple(at(RIG.server(), PORT, **fields) for _ in range(count))


def case(
    name: str, policy: dict[str, Any] | None, to: Iterable[Endpoint], client: Client = SIDECAR, service: Service | None = None
) -> Case:
    return RIG.case(f"{name}.test", Destination(service, policy, endpoints=to), client)


def addresses(endpoints: Iterable[Endpoint]) -> list[str]:
    return [e.address for e in endpoints]


@pytest.fixture(scope="module", autouse=True)
def _running() -> Iterator[None]:
    with RIG:
        yield


def balanced(simple: str | None = None, **hashing: Any) -> dict[str, Any]:
    return {"loadBalancer": {"simple": simple} if simple else {"consistentHash": hashing}}


ROUND_ROBIN = case("round-robin", balanced("ROUND_ROBIN"), servers(3))
RANDOM = case("random", balanced("RANDOM"), servers(2))
LEAST = case("least-request", None, servers(2))
WEIGHTED = case("weighted", balanced("ROUND_ROBIN"), (*servers(1, weight=3), *servers(1)))
BY_HEADER = {
    "ring-hash": case("ring-hash", balanced(httpHeaderName="x-user", ringHash={}), servers(4)),
    "maglev": case("maglev", balanced(httpHeaderName="x-user", maglev={}), servers(4)),
}
COOKIE = {"name": "user", "path": "/p", "ttl": "60s", "attributes": [{"name": "SameSite", "value": "Strict"}]}
BY_COOKIE = case("cookie", balanced(httpCookie=COOKIE), servers(4))
BY_SOURCE = case("source", balanced(useSourceIp=True), servers(4))
BY_QUERY = case("query", balanced(httpQueryParameterName="user"), servers(4))


class TestLoadBalancing:
    def test_round_robin_takes_turns(self) -> None:
        answers = [ROUND_ROBIN.get().server for _ in range(9)]
        assert answers[:3] * 3 == answers
        assert len(set(answers)) == 3

    def test_random_uses_all(self) -> None:
        assert min(RANDOM.spread(200).values()) > 60

    def test_least_request_avoids_the_busy(self) -> None:
        held, idle = (RIG.servers[e.address] for e in LEAST.view.all_endpoints)
        for server in (held, idle):
            server.release.clear()
        # Both are asked until one request is held by the first; six of them are, in the end.
        holding = [threading.Thread(target=LEAST.get, kwargs={"x_wait": "1"}) for _ in range(12)]
        for thread in holding:
            thread.start()
        LEAST.eventually(lambda _: held.waiting_count + idle.waiting_count == 12)
        idle.release.set()
        LEAST.eventually(lambda _: idle.waiting_count == 0)
        assert held.waiting_count > 0
        spread = LEAST.spread(400)
        held.release.set()
        for thread in holding:
            thread.join()
        # A request goes to the busy one only where both of its two random choices are that one: 300 are expected here, 200 by chance.
        assert spread[idle.address] > 240

    def test_weights(self) -> None:
        heavy, light = addresses(WEIGHTED.view.all_endpoints)
        assert WEIGHTED.spread(40) == {heavy: 30, light: 10}

    @pytest.mark.parametrize("algorithm", list(BY_HEADER))
    def test_equal_headers_meet_the_same_server(self, algorithm: str) -> None:
        found = {user: BY_HEADER[algorithm].spread(4, x_user=user) for user in map(str, range(20))}
        assert {len(spread) for spread in found.values()} == {1}
        assert len({server for spread in found.values() for server in spread}) > 1

    def test_a_cookie_is_made_and_then_followed(self) -> None:
        first = BY_COOKIE.get()
        cookie = first.headers["set-cookie"]
        assert {"Max-Age=60", "Path=/p", "SameSite=Strict"} <= set(cookie.split("; "))
        assert BY_COOKIE.spread(10, cookie=cookie.partition(";")[0]) == {first.server: 10}

    def test_equal_sources_meet_the_same_server(self) -> None:
        found = {BY_SOURCE.get(source=f"127.0.1.{n}").server for n in range(1, 20)}
        assert len(found) > 1
        assert len({BY_SOURCE.get(source="127.0.1.1").server for _ in range(10)}) == 1

    def test_and_so_do_their_tcp_connections(self) -> None:
        assert len({BY_SOURCE.tcp(f"127.0.1.{n}").server for n in range(1, 20)}) > 1
        assert len({BY_SOURCE.tcp("127.0.1.1").server for _ in range(10)}) == 1

    def test_equal_parameters_meet_the_same_server(self) -> None:
        found = {n: {BY_QUERY.get(f"/?user={n}&other={m}").server for m in range(4)} for n in range(20)}
        assert {len(answered) for answered in found.values()} == {1}
        assert len({server for answered in found.values() for server in answered}) > 1


SUBSETS = Destination(
    endpoints=[at(RIG.server(), PORT, labels=(("version", f"v{n}"),)) for n in (1, 2)],
    subsets=[{"name": "v2", "labels": {"version": "v2"}}],
)
SUBSET = RIG.case("subset.test", SUBSETS, subset="v2")
EMPTY = case("empty", None, ())
NOT_READY = case("not-ready", None, (*servers(1), *servers(4, health=Health.UNHEALTHY)))
NONE_READY = case("none-ready", None, servers(2, health=Health.UNHEALTHY))
ALLOWED_PANIC = case("panic", {"outlierDetection": {"minHealthPercent": 50}}, (*servers(1), *servers(1, health=Health.UNHEALTHY)))
SOCKET = Path("/tmp") / f"clusters-{id(RIG)}.sock"  # short: a Unix socket's path has 107 bytes at most
UNIX = case("unix", None, [at(f"unix://{SOCKET}", 0)])


class TestEndpoints:
    def test_a_subset_is_called_alone(self) -> None:
        assert SUBSET.spread(10) == {SUBSETS.all_endpoints[1].address: 10}

    def test_without_endpoints_calls_fail(self) -> None:
        assert EMPTY.get().status == 503

    def test_what_is_not_ready_is_not_called_however_few_are(self) -> None:
        assert NOT_READY.spread(20) == {NOT_READY.view.all_endpoints[0].address: 20}

    def test_not_even_where_nothing_is(self) -> None:
        answer = NONE_READY.get()
        assert (answer.status, answer.body) == (503, "no healthy upstream")

    def test_not_where_panic_is_allowed_either(self) -> None:
        assert ALLOWED_PANIC.spread(10) == {ALLOWED_PANIC.view.all_endpoints[0].address: 10}

    def test_unix_sockets(self) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(SOCKET))
            listening.listen()
            listening.settimeout(60)
            answers = threading.Thread(target=answer_once, args=(listening,))
            answers.start()
            try:
                assert UNIX.get().server == "unix"
            finally:
                SOCKET.unlink()
            answers.join()


def answer_once(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nx-server: unix\r\ncontent-length: 0\r\n\r\n")


def outliers(**settings: Any) -> dict[str, Any]:
    found = {"interval": "0.1s", "baseEjectionTime": "300s", "maxEjectionPercent": 100, **settings}
    return {**balanced("ROUND_ROBIN"), "outlierDetection": found}


EJECTED = case("ejected", outliers(consecutive5xxErrors=3), servers(2))
SPARED = case("spared", outliers(consecutive5xxErrors=0), servers(2))
BY_GATEWAY_ERRORS = case("gateway-errors", outliers(consecutive5xxErrors=0, consecutiveGatewayErrors=3), servers(3))
BY_STATUS = case("by-status", outliers(consecutive5xxErrors=3, outlierDetectionHttpErrorCodes=[429]), servers(3))
NOBODY_LISTENS = at(next(ADDRESSES), PORT)
BY_CONNECTION = case(
    "by-connection",
    outliers(consecutive5xxErrors=0, splitExternalLocalOriginErrors=True, consecutiveLocalOriginFailures=3),
    (NOBODY_LISTENS, *servers(1)),
)
AT_MOST_HALF = case("at-most-half", outliers(consecutive5xxErrors=1, maxEjectionPercent=50), servers(2))


class TestOutlierDetection:
    def fail(self, of: Case, index: int, status: int) -> str:
        """Let one server of a case answer with `status`; its address."""
        server = RIG.servers[of.view.all_endpoints[index].address]
        server.status = status
        return server.address

    def test_a_server_that_fails_often_enough_is_not_called(self) -> None:
        bad = self.fail(EJECTED, 0, 500)
        assert EJECTED.spread(5)[bad] <= 3
        EJECTED.eventually(lambda c: c.spread(10)[bad] == 0)
        assert EJECTED.stat("outlier_detection.ejections_active") == 1

    def test_unless_errors_do_not_count(self) -> None:
        bad = self.fail(SPARED, 0, 500)
        assert SPARED.spread(40)[bad] == 20

    def test_gateway_errors_count_by_themselves(self) -> None:
        broken, unavailable = self.fail(BY_GATEWAY_ERRORS, 0, 500), self.fail(BY_GATEWAY_ERRORS, 1, 503)
        BY_GATEWAY_ERRORS.eventually(lambda c: c.spread(10)[unavailable] == 0)
        assert BY_GATEWAY_ERRORS.spread(10)[broken] == 5

    def test_statuses_that_the_rule_lists_count_and_others_do_not(self) -> None:
        broken, busy = self.fail(BY_STATUS, 0, 500), self.fail(BY_STATUS, 1, 429)
        BY_STATUS.eventually(lambda c: c.spread(10)[busy] == 0)
        assert BY_STATUS.spread(10)[broken] == 5

    def test_a_server_that_cannot_be_reached_is_not_called(self) -> None:
        BY_CONNECTION.eventually(lambda c: c.spread(10) == {BY_CONNECTION.view.all_endpoints[1].address: 10})

    def test_not_more_than_the_percentage_are_left_out(self) -> None:
        for index in (0, 1):
            self.fail(AT_MOST_HALF, index, 500)
        AT_MOST_HALF.eventually(lambda c: c.get() and c.stat("outlier_detection.ejections_active") == 1)
        AT_MOST_HALF.spread(10)
        assert AT_MOST_HALF.stat("outlier_detection.ejections_active") == 1
        assert AT_MOST_HALF.get().status == 500


ONE_CONNECTION = case(
    "one-connection", {"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}}, servers(1)
)
TWO_REQUESTS = case("two-requests", {"connectionPool": {"http": {"http2MaxRequests": 2}}}, servers(1))
ONE_REQUEST_EACH = case("one-request-each", {"connectionPool": {"http": {"maxRequestsPerConnection": 1}}}, servers(1))
KEPT = case("kept", None, servers(1))
UNUSED = case("unused", {"connectionPool": {"http": {"idleTimeout": "0.2s"}}}, servers(1))
AGED = case("aged", {"connectionPool": {"tcp": {"maxConnectionDuration": "0.2s"}}}, servers(1))


class TestConnectionPool:
    def held(self, server: Server, count: int, of: Case) -> bool:
        return server.waiting_count + of.stat("upstream_rq_pending_active") == count

    def overflowing(self, of: Case, held: int) -> list[int]:
        """The statuses of `held` requests that are under way at once, and of one more, sorted."""
        (server,) = (RIG.servers[e.address] for e in of.view.all_endpoints)
        statuses: list[int] = []
        server.release.clear()
        threads = [threading.Thread(target=lambda: statuses.append(of.get(x_wait="1").status)) for _ in range(held)]
        for started, thread in enumerate(threads, 1):
            thread.start()
            # One by one: the first must have its connection before the second can wait for it.
            of.eventually(partial(self.held, server, started))
        statuses.append(of.get().status)
        server.release.set()
        for thread in threads:
            thread.join()
        return sorted(statuses)

    def test_beyond_connections_and_pending_requests_calls_fail(self) -> None:
        assert self.overflowing(ONE_CONNECTION, 2) == [200, 200, 503]

    def test_beyond_the_requests_too(self) -> None:
        assert self.overflowing(TWO_REQUESTS, 2) == [200, 200, 503]

    def test_connections_are_kept(self) -> None:
        KEPT.spread(5)
        assert KEPT.stat("upstream_cx_total") == 1

    def test_for_so_many_requests(self) -> None:
        before = ONE_REQUEST_EACH.stat("upstream_cx_total")
        ONE_REQUEST_EACH.spread(5)
        assert ONE_REQUEST_EACH.stat("upstream_cx_total") - before == 5

    @pytest.mark.parametrize("of", [UNUSED, AGED], ids=["idle", "old"])
    def test_and_for_so_long(self, of: Case) -> None:
        before = of.stat("upstream_cx_total")
        of.get()
        of.eventually(lambda c: c.stat("upstream_cx_total") == before + 1 and c.stat("upstream_cx_active") == 0)


def located(*places: str, **fields: Any) -> tuple[Endpoint, ...]:
    return tuple(at(RIG.server(), PORT, place, **fields) for place in places)


NEAR_FIRST = case("near-first", outliers(consecutive5xxErrors=2), located("r1/z1/s1", "r1/z2/s1", "r2/z1/s1"), HERE)
SHARED = case(
    "shared",
    {"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "r1/*", "to": {"r1/*": 75, "r2/*": 25}}]}}},
    located("r1/z1", "r1/z2", "r2/z1", "r3/z1"),
    HERE,
)
CLOSE = case(
    "close",
    None,
    (*located("r1/z1", health=Health.UNHEALTHY), *located("r1/z2")),
    HERE,
    service=reviews(traffic_distribution="PreferClose"),
)
CLOSER = case("closer", None, located("r1/z1", "r1/z2"), HERE, service=reviews(traffic_distribution="PreferClose"))


class TestLocalities:
    def test_the_next_takes_over_when_the_nearest_fails(self) -> None:
        near, next_, far = addresses(NEAR_FIRST.view.all_endpoints)
        assert NEAR_FIRST.spread(10) == {near: 10}
        # Envoy tells its workers about changes of health once a second (`update_merge_window`).
        RIG.servers[near].status = 500
        NEAR_FIRST.eventually(lambda c: c.spread(10) == {next_: 10})
        RIG.servers[next_].status = 500
        NEAR_FIRST.eventually(lambda c: c.spread(10) == {far: 10})

    def test_shares(self) -> None:
        first, second, other, none = addresses(SHARED.view.all_endpoints)
        spread = SHARED.spread(200)
        assert spread[none] == 0
        assert 40 <= spread[other] <= 60
        assert spread[first] > 40 < spread[second]

    def test_the_closest_is_called_alone(self) -> None:
        assert CLOSER.spread(10) == {CLOSER.view.all_endpoints[0].address: 10}

    def test_and_left_when_it_is_not_ready(self) -> None:
        assert CLOSE.spread(10) == {CLOSE.view.all_endpoints[1].address: 10}


# Envoy itself is the server for what is not HTTP/1.1 in the clear: its answers say how they were asked.

FILES = Path(tempfile.mkdtemp(prefix="clusters-"))
OURS, THEIRS = Authority(FILES, "ours"), Authority(FILES, "theirs")
CERTIFICATE, KEY = OURS.sign("server", "a.example.com", "spiffe://td/ns/default/sa/a", "127.0.0.1")
CLIENT_CERTIFICATE, CLIENT_KEY = OURS.sign("client", "spiffe://td/ns/default/sa/client")
ASKED = {
    "x-server": "envoy",
    "x-protocol": "%PROTOCOL%",
    "x-sni": "%REQUESTED_SERVER_NAME%",
    "x-peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "x-remote": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "x-tls": "%DOWNSTREAM_TLS_VERSION%",
}


def envoy_server(context: Any = None, inspector: str = "", mutual: bool = False) -> Endpoint:
    """An endpoint that answers how it was asked, in TLS where a context is given."""
    own = next(ADDRESSES)
    routes = {
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                "response_headers_to_add": [{"header": {"key": k, "value": v}} for k, v in ASKED.items()],
            }
        ]
    }
    chain: dict[str, Any] = {"filters": [connection_manager(routes)]}
    if context is not None:
        downstream = pb.DownstreamTlsContext(common_tls_context=context, require_client_certificate={"value": mutual})
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": pb.any(downstream)}
    inspectors: dict[str, list[Any]] = {"": [], "tls": [pb.TlsInspector()], "proxy": [pb.ProxyProtocol()]}
    filters = [{"name": "f", "typed_config": pb.any(f)} for f in inspectors[inspector]]
    RIG.listener(f"server-{own}", address(own, PORT), chain, listener_filters=filters)
    return at(own, PORT)


TLS_CONTEXT = {
    "tls_certificates": [{"certificate_chain": {"filename": str(CERTIFICATE)}, "private_key": {"filename": str(KEY)}}],
    "alpn_protocols": ["h2", "http/1.1"],
}
MUTUAL_CONTEXT = {**TLS_CONTEXT, "validation_context": {"trusted_ca": {"filename": str(OURS.path)}}}
PLAIN_SERVER = envoy_server()
TLS_SERVER = envoy_server(TLS_CONTEXT, "tls")
MUTUAL_SERVER = envoy_server(MUTUAL_CONTEXT, "tls", mutual=True)
PROXIED_SERVER = envoy_server(inspector="proxy")


def tls(name: str, settings: dict[str, Any], to: Endpoint = TLS_SERVER, service: Service | None = None) -> Case:
    ours = {} if "caCertificates" in settings else {"caCertificates": str(OURS.path)}
    return case(name, {"tls": {"mode": "SIMPLE", **ours, **settings}}, [to], service=service)


def of_protocol(protocol: Protocol) -> Service:
    return reviews(Port(9080, "p", protocol))


CLIENT_FILES = {"mode": "MUTUAL", "clientCertificate": str(CLIENT_CERTIFICATE), "privateKey": str(CLIENT_KEY)}
NAMED = tls("named", {"sni": "a.example.com", "subjectAltNames": ["spiffe://td/ns/default/sa/a"]})
NAMED_ANY = tls("named-any", {"sni": "a.example.com", "subjectAltNames": ["b.example.com", "127.0.0.1"]})
NAMED_OTHERWISE = tls("named-otherwise", {"sni": "a.example.com", "subjectAltNames": ["b.example.com"]})
UNTRUSTED = tls("untrusted", {"sni": "a.example.com", "caCertificates": str(THEIRS.path)})
UNKNOWN = tls("unknown", {"sni": "a.example.com", "caCertificates": ""})
UNVERIFIED = tls("unverified", {"sni": "b.example.com", "insecureSkipVerify": True, "caCertificates": str(THEIRS.path)})
OF_REQUEST = tls("of-request", {})
OF_REQUEST.view.hosts = ("a.example.com", "c.example.com")
MUTUAL = tls("mutual", CLIENT_FILES | {"sni": "a"}, MUTUAL_SERVER)
ANONYMOUS = tls("anonymous", {"sni": "a"}, MUTUAL_SERVER)
TLS_HTTP2 = tls("tls-http2", {"sni": "a"}, service=of_protocol(Protocol.GRPC))
TLS_SAME = tls("tls-same", {"sni": "a"}, service=of_protocol(Protocol.AUTO))
V1, V2 = (case(f"proxy-protocol-{v}", {"proxyProtocol": {"version": v}}, [PROXIED_SERVER]) for v in ("V1", "V2"))
HTTP1 = case("http1", None, [PLAIN_SERVER])
HTTP2 = case("http2", None, [PLAIN_SERVER], service=of_protocol(Protocol.HTTP2))
UPGRADED = case("upgraded", {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}, [PLAIN_SERVER])
SAME = case("same", {"connectionPool": {"http": {"useClientProtocol": True, "h2UpgradePolicy": "UPGRADE"}}}, [PLAIN_SERVER])


class TestTls:
    def test_the_server_is_asked_for_and_verified_by_the_rules_names(self) -> None:
        answer = NAMED.get()
        assert (answer.status, answer.headers["x-sni"], answer.headers["x-tls"]) == (200, "a.example.com", "TLSv1.3")

    def test_any_of_the_names_will_do(self) -> None:
        assert NAMED_ANY.get().status == 200

    @pytest.mark.parametrize("of", [NAMED_OTHERWISE, UNTRUSTED, UNKNOWN], ids=["other-name", "other-authority", "no-authority"])
    def test_an_unverified_server_gets_no_request(self, of: Case) -> None:
        assert of.get().status == 503
        assert of.stat("ssl.fail_verify_error") + of.stat("ssl.fail_verify_san") > 0

    def test_unless_the_rule_says_so(self) -> None:
        assert UNVERIFIED.get().headers["x-sni"] == "b.example.com"

    def test_the_requests_own_host_is_asked_for_where_the_rule_names_none(self) -> None:
        assert OF_REQUEST.get(host="a.example.com").headers["x-sni"] == "a.example.com"

    def test_and_verified(self) -> None:
        assert OF_REQUEST.get(host="c.example.com").status == 503
        assert OF_REQUEST.stat("ssl.fail_verify_san") > 0

    def test_the_client_shows_its_certificate(self) -> None:
        assert MUTUAL.get().headers["x-peer"] == "spiffe://td/ns/default/sa/client"

    def test_where_it_has_one(self) -> None:
        assert ANONYMOUS.get().status == 503

    @pytest.mark.parametrize(("of", "protocol"), [(NAMED, "HTTP/1.1"), (TLS_HTTP2, "HTTP/2"), (TLS_SAME, "HTTP/1.1")])
    def test_http_versions_inside(self, of: Case, protocol: str) -> None:
        assert of.get().headers["x-protocol"] == protocol


class TestProxyProtocol:
    @pytest.mark.parametrize("of", [V1, V2], ids=["v1", "v2"])
    def test_the_server_learns_of_the_caller(self, of: Case) -> None:
        assert of.get(source="127.0.3.7").headers["x-remote"] == "127.0.3.7"


class TestHttpVersions:
    @pytest.mark.parametrize(("of", "protocol"), [(HTTP1, "HTTP/1.1"), (HTTP2, "HTTP/2"), (UPGRADED, "HTTP/2"), (SAME, "HTTP/1.1")])
    def test_of_a_call_in_http1(self, of: Case, protocol: str) -> None:
        assert of.get().headers["x-protocol"] == protocol

    def test_of_a_call_in_http2(self) -> None:
        call_in_http2(RIG.ports["http"], SAME.name)
        assert SAME.stat("upstream_cx_http2_total") > 0


def call_in_http2(port: int, host: str) -> None:
    """A GET, until the headers of its answer are there."""
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", host.encode())]
    block = b"".join(b"\x00" + bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in fields)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, connection.makefile("rb") as answer:
        settings = b"\0\0\0\4\0\0\0\0\0"
        headers = len(block).to_bytes(3) + b"\1\5\0\0\0\1" + block
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers)
        kind = 0
        while kind != 1:
            frame = answer.read(9)
            kind = frame[3]
            answer.read(int.from_bytes(frame[:3]))


ALL_NAMES = case("all-names", balanced("ROUND_ROBIN"), [at("all.example.com", PORT)], service=entry("all.example.com"))
MANY_NAMES = case(
    "many-names", balanced("ROUND_ROBIN"), [at("all.example.com", PORT), at("more.example.com", PORT)], service=entry("many.x")
)
ONE_NAME = case(
    "one-name",
    None,
    [at("one.example.com", PORT)],
    service=entry("one.example.com", resolution=Resolution.DNS_ROUND_ROBIN),
)
CHANGING = case("changing", None, [at("changing.example.com", PORT)], service=entry("changing.example.com"))
ANY_NAME = case("any-name", None, (), service=entry("*.example.com", resolution=Resolution.DYNAMIC_DNS))
ANY_NAME.view.hosts = ("*.example.com", f"*.example.com:{PORT}")
RECORDS = {name: addresses(servers(n)) for name, n in {"all": 2, "more": 1, "one": 2, "changing": 1, "x": 1}.items()}
RIG.resolver.records.update({f"{name}.example.com": found for name, found in RECORDS.items()})
RESOLVED = pb.DynamicForwardProxyFilter(dns_cache_config=dns_cache(SIDECAR, MeshConfig()))
RIG.resolve_here(RESOLVED.dns_cache_config.typed_dns_resolver_config)
RIG.filters["envoy.filters.http.dynamic_forward_proxy"] = RESOLVED


class TestDns:
    def test_all_addresses_of_a_name_are_used(self) -> None:
        assert ALL_NAMES.spread(10) == dict.fromkeys(RECORDS["all"], 5)

    def test_of_all_names(self) -> None:
        assert set(MANY_NAMES.spread(10)) == {*RECORDS["all"], *RECORDS["more"]}

    def test_or_one_address_at_a_time(self) -> None:
        assert len(ONE_NAME.spread(10)) == 1

    def test_a_names_new_address_is_used_when_its_time_is_over(self) -> None:
        RIG.resolver.records["changing.example.com"] = RECORDS["changing"]
        CHANGING.eventually(lambda c: set(c.spread(2)) == set(RECORDS["changing"]))
        new = RIG.server()
        RIG.resolver.records["changing.example.com"] = [new]
        CHANGING.eventually(lambda c: c.spread(2) == {new: 2})

    def test_the_requests_host_is_resolved_for_wildcards(self) -> None:
        assert ANY_NAME.get(host=f"x.example.com:{PORT}").server == RECORDS["x"][0]
        assert ANY_NAME.get(host=f"nowhere.example.com:{PORT}").status == 503
