"""VirtualService `http[]`: timeouts, retries, faults, mirrors and CORS."""

import time
import uuid
from collections.abc import Iterator, Mapping

import pytest
from support.applications import Application
from support.traffic import Mesh, Pod, Reply, eventually
from support.traffic_rules import TO_APP, TO_V1, Rules

from xds.mesh.model import Locality, Mode

RULES = Rules("failures")


ONE = """
    apiVersion: networking.istio.io/v1
    kind: ServiceEntry
    metadata: {name: one}
    spec:
      hosts: [one.test]
      ports: [{number: 80, name: http, protocol: HTTP}]
      resolution: STATIC
      endpoints: [{address: 198.51.100.7}]
"""
DEAD = """
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: half-dead, labels: {kubernetes.io/service-name: half}}
    addressType: IPv4
    ports: [{name: http, port: 4321, protocol: TCP}]  # where nobody listens
    endpoints: [{addresses: [198.51.100.9], conditions: {ready: true}}]
"""
# Draws nobody twice in two, where the default would once in 64 times.
IN_TURN = """
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {name: in-turn}
    spec: {host: HOST, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
"""


@pytest.fixture(scope="module")
def client(shared: Mesh) -> Pod:
    shared.apply(ONE, quiet=True)
    shared.service("pair", {"v1": 2})
    shared.service("shadow")
    shared.apply(DEAD, quiet=True)
    shared.apply(IN_TURN.replace("HOST", "half"), quiet=True)
    shared.service("half")
    RULES.apply(shared)
    return shared.pod("client")


@pytest.fixture(scope="module")
def one(shared: Mesh) -> Application:
    """The only endpoint of one.test."""
    return shared.application("one", "198.51.100.7")


@pytest.fixture
def shadow(shared: Mesh, client: Pod) -> Application:
    return shared.services["shadow"]["v1"]


class TestTimeout:
    SHORT = RULES.add(f"- timeout: 0.2s\n  {TO_APP}")
    LONG = RULES.add(f"- timeout: 1h\n  {TO_APP}")
    MINUTES = RULES.add(f"- timeout: 1m30.5s\n  {TO_APP}")
    ZERO = RULES.add(f"- timeout: 0s\n  {TO_APP}")
    NONE = RULES.add(f"- {TO_APP}")

    def test_a_request_that_takes_longer_ends_with_504(self, client: Pod) -> None:
        assert client.get("http://app/", {"x-hold": "1"}, host=self.SHORT).status == 504

    def test_others_are_not_touched(self, client: Pod) -> None:
        assert client.get("http://app/", host=self.MINUTES).status == 200

    @pytest.mark.parametrize(("host", "timeout"), [(MINUTES, "90500"), (LONG, "3600000"), (ZERO, None), (NONE, None)])
    def test_the_application_is_told(self, client: Pod, host: str, timeout: str | None) -> None:
        call = client.get("http://app/", host=host).call
        assert call is not None
        assert call.header("x-envoy-expected-rq-timeout-ms") == timeout

    @pytest.mark.parametrize("headers", [{}, {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https"}])
    @pytest.mark.parametrize("host", [LONG, NONE])
    def test_a_caller_may_set_its_own(self, client: Pod, host: str, headers: Mapping[str, str]) -> None:
        """Istio: task "Request Timeouts": overridden for one request by a header of the application's."""
        assert client.get("http://app/", {**headers, "x-hold": "1", "x-envoy-upstream-rq-timeout-ms": "200"}, host=host).status == 504

    def test_a_caller_s_own_may_be_the_longer_one(self, client: Pod) -> None:
        call = client.get("http://app/", {"x-envoy-upstream-rq-timeout-ms": "60000", "x-forwarded-proto": "https"}, host=self.SHORT).call
        assert call is not None
        told = {name: value for name, value in call.headers if name.endswith(("-timeout-ms", "-proto"))}
        assert told == {"x-envoy-expected-rq-timeout-ms": "60000", "x-forwarded-proto": "https"}


class TestRetries:
    @staticmethod
    def tried(client: Pod, one: Application, host: str, statuses: list[int], headers: Mapping[str, str] | None = None) -> tuple[int, int]:
        """The status that a caller gets, and the number of calls, where each call is answered by the next of `statuses`."""
        before = len(one.calls)
        one.statuses = list(statuses)
        reply = client.get("http://app/", headers, host=host)
        return reply.status, len(one.calls) - before

    @staticmethod
    def to_one(retries: str) -> str:
        return RULES.add(f"- retries: {retries}\n  route: [{{destination: {{host: one.test}}}}]")

    THREE = to_one("{attempts: 3, retryOn: 5xx}")
    CODES = to_one("{attempts: 3, retryOn: '503,reset'}")
    SPACED = to_one("{attempts: 3, retryOn: 'gateway-error, 418'}")
    NONE = to_one("{attempts: 0}")
    DEFAULTS = RULES.add("- route: [{destination: {host: one.test}}]")
    ATTEMPTS_ONLY = to_one("{attempts: 1}")
    PER_TRY = to_one("{attempts: 2, perTryTimeout: 0.2s, retryOn: 5xx}")
    BACKOFF = to_one("{attempts: 1, retryOn: 5xx, backoff: 0.4s}")

    @pytest.mark.parametrize(
        ("host", "statuses", "expected"),
        [
            (THREE, [500, 502, 200], (200, 3)),
            (THREE, [500, 500, 500, 500, 200], (500, 4)),
            (THREE, [404, 200], (404, 1)),
            (CODES, [503, 503, 200], (200, 3)),
            (CODES, [500, 200], (500, 1)),
            (SPACED, [418, 503, 200], (200, 3)),
            (SPACED, [500, 200], (500, 1)),
            (NONE, [503, 200], (503, 1)),
            (DEFAULTS, [503, 200], (503, 1)),
            (ATTEMPTS_ONLY, [503, 200], (503, 1)),
        ],
    )
    def test_attempts_and_conditions(
        self, client: Pod, one: Application, host: str, statuses: list[int], expected: tuple[int, int]
    ) -> None:
        assert self.tried(client, one, host, statuses) == expected

    def test_per_try_timeout_ends_every_attempt(self, client: Pod, one: Application) -> None:
        ended, again = (f"cluster.outbound|80||one.test.upstream_rq_{what}" for what in ("per_try_timeout", "retry"))
        before = client.stat(ended), client.stat(again)
        # Whether the application has heard of an attempt that was ended is another matter: it may have been too slow.
        assert self.tried(client, one, self.PER_TRY, [], {"x-hold": "1"})[0] == 504
        assert (client.stat(ended) - before[0], client.stat(again) - before[1]) == (3, 2)

    def test_backoff_is_the_least_wait_between_attempts_but_for_jitter(self, client: Pod, one: Application) -> None:
        def wait() -> float:
            started = time.monotonic()
            assert self.tried(client, one, self.BACKOFF, [500, 200]) == (200, 2)
            return time.monotonic() - started

        assert any(wait() > 0.1 for _ in range(20))  # each time by chance three of four


class TestRetriesElsewhere:
    OTHER = RULES.add("- retries: {attempts: 5, retryOn: 5xx}\n  route: [{destination: {host: pair}}]")
    HALF = RULES.add("- route: [{destination: {host: half}}]")

    @pytest.fixture
    def bad(self, shared: Mesh, client: Pod) -> Iterator[Application]:
        """The one endpoint of two that is bad while the test runs."""
        bad = shared.services["pair"]["pair-v1-0"]
        yield bad
        bad.status, bad.refuses = 200, False

    def test_retries_go_to_endpoints_that_were_not_tried(self, client: Pod, bad: Application) -> None:
        bad.status = 503
        assert self.servers(client, self.OTHER) == {"pair-v1-1"}

    @pytest.mark.parametrize("host", [HALF, "half"], ids=["rule", "no rule"])
    def test_by_default_what_could_not_connect_is_tried_elsewhere(self, client: Pod, host: str) -> None:
        # Of two retries, both meet the dead one again once in 8 000 requests; without any, half of the requests would fail.
        assert client.many("http://app/", 40, host=host)["half-v1"] >= 37

    def test_by_default_what_a_pod_did_not_listen_to_is_tried_elsewhere(self, mesh: Mesh) -> None:
        """Its own sidecar accepts the connection, and says that the request came no further."""
        deaf = mesh.pod("deaf")
        mesh.apply(IN_TURN.replace("HOST", "some"), quiet=True)
        mesh.service("some", pods=[deaf])
        client, outside = mesh.pod("client"), mesh.pod("outside", mode=Mode.NONE)
        client.settle()
        deaf.settle()
        assert self.servers(client, "some") == {"some-v1"}
        refused = outside.get("http://some/", at=deaf.address)
        assert (refused.status, refused.header("grpc-status")) == (503, "14")

    RESET = RULES.add("- retries: {attempts: 5, retryOn: reset}\n  route: [{destination: {host: pair}}]")

    def test_a_connection_that_breaks_is_a_reset(self, client: Pod, bad: Application) -> None:
        bad.refuses = True
        assert self.servers(client, self.RESET) == {"pair-v1-1"}

    @staticmethod
    def servers(client: Pod, host: str) -> set[str]:
        """Who answers requests, one after the other. An endpoint that was tried is drawn again once in 64 times (Istio)."""
        return {client.get("http://app/", host=host).server for _ in range(6)}

    @pytest.mark.parametrize(("remote", "expected"), [("true", (200, "app-south")), ("false", (503, "app-north"))])
    def test_in_other_localities_where_the_rule_says_so(self, mesh: Mesh, remote: str, expected: tuple[int, str]) -> None:
        nodes = {region: f"{mesh.namespace}-{region}" for region in ("north", "south")}
        for region, name in nodes.items():
            labels = {"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": "1"}
            mesh.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}, quiet=True)
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: app}}
            spec:
              host: app
              trafficPolicy: {{outlierDetection: {{consecutive5xxErrors: 1000}}}}
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: app}}
            spec:
              hosts: [app]
              http:
              - retries: {{attempts: 3, retryOn: 5xx, retryRemoteLocalities: {remote}}}
                route: [{{destination: {{host: app}}}}]
        """)
        service = mesh.service("app", ("north", "south"), nodes=nodes)
        service["north"].status = 503
        client = mesh.pod("client", locality=Locality("north", "1", ""))
        reply = client.get("http://app/")
        assert (reply.status, reply.server) == expected


class TestFaults:
    ABORT = RULES.add(f"- fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n  {TO_APP}")
    GRPC = RULES.add(f"- fault: {{abort: {{grpcStatus: UNAVAILABLE, percentage: {{value: 100}}}}}}\n  {TO_APP}")
    HALF = RULES.add(f"- fault: {{abort: {{httpStatus: 418, percentage: {{value: 50}}}}}}\n  {TO_APP}")
    NO_SHARE = RULES.add(f"- fault: {{abort: {{httpStatus: 418}}, delay: {{fixedDelay: 1h}}}}\n  {TO_APP}")
    NOBODY = RULES.add(f"- fault: {{abort: {{httpStatus: 418, percentage: {{value: 0}}}}}}\n  {TO_APP}")
    DELAY = RULES.add(f"- fault: {{delay: {{fixedDelay: 0.5s, percentage: {{value: 100}}}}}}\n  {TO_APP}")
    OLD_DELAY = RULES.add(f"- fault: {{delay: {{fixedDelay: 0.5s, percent: 100}}}}\n  {TO_APP}")
    BOTH = RULES.add(
        f"- fault: {{delay: {{fixedDelay: 0.5s, percentage: {{value: 100}}}}, "
        f"abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n  {TO_APP}"
    )
    MATCHED = RULES.add(
        f"- match: [{{headers: {{end-user: {{exact: jason}}}}}}]\n"
        f"  fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n  {TO_APP}\n- {TO_APP}"
    )
    BEFORE_TIMEOUT = RULES.add(
        f"- timeout: 0.2s\n  retries: {{attempts: 3, retryOn: 5xx}}\n"
        f"  fault: {{delay: {{fixedDelay: 0.5s, percentage: {{value: 100}}}}}}\n  {TO_APP}"
    )

    def test_abort(self, client: Pod) -> None:
        reply = client.get("http://app/", host=self.ABORT)
        assert (reply.status, reply.server) == (418, "")

    def test_abort_with_a_grpc_status(self, client: Pod) -> None:
        reply = client.http2(f"http://{self.GRPC}/a.B/C", {"content-type": "application/grpc"}, body=b"\0\0\0\0\0", at="app")
        assert (reply.status, reply.header("grpc-status")) == (200, "14")

    def test_abort_of_some(self, client: Pod) -> None:
        assert 20 < client.many("http://app/", 100, host=self.HALF)["418"] < 80

    @pytest.mark.parametrize("host", [NO_SHARE, NOBODY])
    def test_without_a_percentage_nothing_fails(self, client: Pod, host: str) -> None:
        assert client.many("http://app/", 10, host=host).keys() <= {"app-v1", "app-v2"}

    @pytest.mark.parametrize(("host", "status"), [(DELAY, 200), (OLD_DELAY, 200), (BOTH, 418)])
    def test_delay(self, client: Pod, host: str, status: int) -> None:
        started = time.monotonic()
        assert client.get("http://app/", host=host).status == status
        assert time.monotonic() - started > 0.45  # Envoy's clock ticks coarsely

    def test_a_timeout_begins_after_the_delay(self, client: Pod) -> None:
        # The delay is longer than the timeout, which leaves the application little time: it may be too slow now and then.
        eventually(lambda: client.get("http://app/", host=self.BEFORE_TIMEOUT).status == 200)

    def test_it_is_the_rule_s_own(self, client: Pod) -> None:
        assert client.get("http://app/", {"end-user": "jason"}, host=self.MATCHED).status == 418
        assert client.get("http://app/", host=self.MATCHED).status == 200


class TestMirrors:
    MIRROR = RULES.add(f"- mirror: {{host: shadow}}\n  {TO_V1}")
    SEVERAL = RULES.add(
        f"- mirrors: [{{destination: {{host: shadow}}}}, {{destination: {{host: app, subset: v2}}, percentage: {{value: 100}}}}]\n  {TO_V1}"
    )
    NOTHING = RULES.add(f"- mirror: {{host: shadow}}\n  mirrorPercentage: {{value: 0}}\n  {TO_V1}")
    HALF = RULES.add(f"- mirror: {{host: shadow}}\n  mirrorPercentage: {{value: 50}}\n  {TO_V1}")
    NOBODY = RULES.add(f"- mirror: {{host: nobody}}\n  {TO_V1}")

    @staticmethod
    def call(client: Pod, host: str) -> tuple[Reply, str]:
        key = str(uuid.uuid4())
        return client.get("http://app/path?x=1", {"x-key": key}, host=host, method="POST", body=b"body"), key

    def test_a_copy_goes_to_the_mirror_and_the_answer_is_the_original_s(self, client: Pod, shadow: Application) -> None:
        reply, key = self.call(client, self.MIRROR)
        assert reply.server == "app-v1"
        copy = eventually(lambda: next((c for c in shadow.calls if c.header("x-key") == key), None))
        assert copy is not None
        assert (copy.method, copy.path, copy.body, copy.authority) == ("POST", "/path?x=1", "body", f"{self.MIRROR}-shadow")

    def test_nobody_waits_for_the_mirror(self, client: Pod, shadow: Application) -> None:
        shadow.refuses = True
        try:
            assert self.call(client, self.MIRROR)[0].server == "app-v1"
        finally:
            shadow.refuses = False

    def test_several_mirrors(self, client: Pod, shadow: Application) -> None:
        reply, key = self.call(client, self.SEVERAL)
        assert reply.server == "app-v1"
        eventually(lambda: any(c.header("x-key") == key for c in shadow.calls))

    def test_a_share_of_the_requests(self, client: Pod, shadow: Application) -> None:
        keys = {self.call(client, self.HALF)[1] for _ in range(100)}
        _, last = self.call(client, self.MIRROR)
        eventually(lambda: any(c.header("x-key") == last for c in shadow.calls))
        eventually(lambda: sum(c.header("x-key") in keys for c in shadow.calls) > 20)
        assert sum(c.header("x-key") in keys for c in shadow.calls) < 80

    def test_zero_percent_copies_nothing(self, client: Pod, shadow: Application) -> None:
        _, key = self.call(client, self.NOTHING)
        _, last = self.call(client, self.MIRROR)
        eventually(lambda: any(c.header("x-key") == last for c in shadow.calls))
        assert not any(c.header("x-key") == key for c in shadow.calls)

    def test_a_mirror_that_does_not_exist_harms_no_request(self, client: Pod) -> None:
        assert self.call(client, self.NOBODY)[0].server == "app-v1"


class TestCors:
    POLICY = RULES.add(f"""
        - corsPolicy:
            allowOrigins: [{{exact: "https://example.com"}}, {{prefix: "https://a."}}, {{regex: "https://[^.]+[.]dev"}}]
            allowMethods: [POST, GET]
            allowHeaders: [x-foo-bar, content-type]
            exposeHeaders: [x-exposed, x-more]
            maxAge: 24h
            allowCredentials: true
          {TO_V1}
    """)
    ANY = RULES.add(f"- corsPolicy: {{allowOrigins: [{{exact: '*'}}]}}\n  {TO_V1}")
    NO_CREDENTIALS = RULES.add(f"- corsPolicy: {{allowOrigins: [{{exact: 'https://example.com'}}], allowCredentials: false}}\n  {TO_V1}")
    IGNORE = RULES.add(f"- corsPolicy: {{allowOrigins: [{{exact: 'https://example.com'}}], unmatchedPreflights: IGNORE}}\n  {TO_V1}")
    OLD = RULES.add(f"- corsPolicy: {{allowOrigin: ['https://example.com']}}\n  {TO_V1}")

    @staticmethod
    def preflight(client: Pod, host: str, origin: str) -> Reply:
        asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-foo-bar"}
        return client.get("http://app/", asked, host=host, method="OPTIONS")

    def test_a_preflight_is_answered_for_the_application(self, client: Pod) -> None:
        reply = self.preflight(client, self.POLICY, "https://example.com")
        names = ("origin", "methods", "headers", "credentials")
        found = [reply.header(f"access-control-allow-{name}") for name in names]
        assert (reply.status, reply.server) == (200, "")
        assert found == ["https://example.com", "POST,GET", "x-foo-bar,content-type", "true"]
        assert reply.header("access-control-max-age") == "86400"

    @pytest.mark.parametrize("origin", ["https://example.com", "https://a.test", "https://b.dev"])
    def test_a_request_of_an_allowed_origin(self, client: Pod, origin: str) -> None:
        reply = client.get("http://app/", {"origin": origin}, host=self.POLICY)
        assert (reply.server, reply.header("access-control-allow-origin")) == ("app-v1", origin)
        assert reply.header("access-control-expose-headers") == "x-exposed,x-more"
        assert reply.header("access-control-allow-credentials") == "true"

    @pytest.mark.parametrize("origin", ["https://example.com.evil", "http://example.com", "https://b.c.dev", "https://EXAMPLE.com"])
    def test_another_origin_gets_its_answer_without_permission(self, client: Pod, origin: str) -> None:
        reply = client.get("http://app/", {"origin": origin}, host=self.POLICY)
        assert (reply.server, reply.header("access-control-allow-origin")) == ("app-v1", None)

    def test_any_origin(self, client: Pod) -> None:
        assert client.get("http://app/", {"origin": "https://x.test"}, host=self.ANY).header("access-control-allow-origin") in (
            "*", "https://x.test",
        )  # fmt: skip

    def test_without_credentials(self, client: Pod) -> None:
        reply = self.preflight(client, self.NO_CREDENTIALS, "https://example.com")
        assert reply.header("access-control-allow-credentials") is None

    def test_other_preflights_go_to_the_application_or_not(self, client: Pod) -> None:
        assert self.preflight(client, self.POLICY, "https://evil.test").server == "app-v1"
        ignored = self.preflight(client, self.IGNORE, "https://evil.test")
        assert (ignored.server, ignored.header("access-control-allow-origin")) == ("", None)

    def test_the_deprecated_list_of_origins(self, client: Pod) -> None:
        reply = client.get("http://app/", {"origin": "https://example.com"}, host=self.OLD)
        assert reply.header("access-control-allow-origin") == "https://example.com"
