"""Clusters in a real Envoy: it accepts them all, and calls go where the rules say."""

import itertools
import json
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import envoy
import pytest
from support.cluster_rig import PORT, Case, Envoy, Rig
from support.destinations import SIDECAR, Destination, at, decoded, entry, reviews

from xds import pb
from xds.envoy.clusters import black_hole_cluster, inbound_cluster, inbound_passthrough_cluster, passthrough_cluster
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
        for protocol in (p for p in Protocol if not p.is_udp):
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


def case(name: str, policy: dict[str, Any] | None, endpoints: Iterable[Endpoint], client: Client = SIDECAR, **fields: Any) -> Case:
    return RIG.case(f"{name}.test", Destination(fields.pop("service", None), policy, endpoints=endpoints, **fields), client)


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
    algorithm: case(f"header-{algorithm.lower()}", balanced(httpHeaderName="x-user", **{algorithm: {}}), servers(4))
    for algorithm in ("ringHash", "maglev")
}
BY_COOKIE = case("cookie", balanced(httpCookie={"name": "user", "path": "/p", "ttl": "60s"}), servers(4))
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
        # Both are asked until one request is held by the first; six of them are, in the end.
        holding = [threading.Thread(target=LEAST.get, kwargs={"x_wait": "1"}) for _ in range(12)]
        for thread in holding:
            thread.start()
        LEAST.eventually(lambda _: held.waiting_count + idle.waiting_count == 12)
        idle.release.set()
        LEAST.eventually(lambda _: idle.waiting_count == 0)
        assert held.waiting_count > 0
        spread = LEAST.spread(40)
        held.release.set()
        for thread in holding:
            thread.join()
        # A request goes to the busy one only where both of its two random choices are that one.
        assert spread[idle.address] > 22

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
        assert 'Max-Age=60; Path=/p' in cookie
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
            answers = threading.Thread(target=answer_once, args=(listening,))
            answers.start()
            assert UNIX.get().server == "unix"
            answers.join()
        SOCKET.unlink()


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
NOBODY_LISTENS = at("127.44.250.1", PORT)
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
    def overflowing(self, of: Case, held: int) -> list[int]:
        """The statuses of `held` requests that are under way at once, and of one more, sorted."""
        (server,) = (RIG.servers[e.address] for e in of.view.all_endpoints)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(of.get(x_wait="1").status)) for _ in range(held)]
        for thread in threads:
            thread.start()
        of.eventually(lambda c: c.stat("upstream_rq_active") + c.stat("upstream_rq_pending_active") == held)
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
        ONE_REQUEST_EACH.spread(5)
        assert ONE_REQUEST_EACH.stat("upstream_cx_total") == 5

    @pytest.mark.parametrize("of", [UNUSED, AGED], ids=["idle", "old"])
    def test_and_for_so_long(self, of: Case) -> None:
        of.get()
        of.eventually(lambda c: c.stat("upstream_cx_total") == 1 and c.stat("upstream_cx_active") == 0)


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
