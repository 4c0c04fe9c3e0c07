"""Every field of VirtualService `http`, by traffic through Envoy."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import pytest
from support.route_rig import CLIENT, Rig, Rules
from support.seen import Seen, entry, headless, service

from xds import pb
from xds.mesh.model import Client, Protocol
from xds.objects import ConsistentHashLB, HTTPRetry, LoadBalancerSettings, MeshConfig, TrafficPolicy

pytestmark = pytest.mark.envoy

HTTP = Protocol.HTTP
K8S = "default.svc.cluster.local"
LONG = "120"  # seconds that no test waits for
APP = service(f"app.{K8S}", (80, HTTP), at="10.96.0.1")
VIEW = Seen(
    APP,
    service(f"single.{K8S}", (9080, HTTP), at="10.96.0.2"),
    service(f"multi.{K8S}", (80, HTTP), (8080, HTTP), at=("10.96.0.3", "fd00::3")),
    service(f"pair.{K8S}", (80, HTTP), at="10.96.0.4"),
    service(f"sticky.{K8S}", (80, HTTP), at="10.96.0.5"),
    service(f"shadow.{K8S}", (80, HTTP), at="10.96.0.6", aliases=(f"old-shadow.{K8S}",)),
    service("far.other.svc.cluster.local", (80, HTTP), at="10.96.0.7"),
    headless(f"pods.{K8S}", (80, HTTP)),
    entry("*.wild.test", (80, HTTP)),
    entry("api.outside.test", (80, HTTP), at="192.0.2.1"),
    policies={
        f"sticky.{K8S}": TrafficPolicy(
            load_balancer=LoadBalancerSettings(consistent_hash=ConsistentHashLB(http_header_name="x-user"))
        )
    },
)
RULES = Rules(
    VIEW,
    {
        f"outbound|80||app.{K8S}": ("app",),
        f"outbound|80|v1|app.{K8S}": ("app-v1",),
        f"outbound|80|v2|app.{K8S}": ("app-v2",),
        f"outbound|9080||single.{K8S}": ("single",),
        f"outbound|80||multi.{K8S}": ("multi-80",),
        f"outbound|8080||multi.{K8S}": ("multi-8080",),
        f"outbound|80||pair.{K8S}": ("pair-a", "pair-b"),
        f"outbound|80||sticky.{K8S}": ("sticky-a", "sticky-b", "sticky-c"),
        f"outbound|80||shadow.{K8S}": ("shadow",),
        "outbound|80||far.other.svc.cluster.local": ("far",),
        f"outbound|80||pods.{K8S}": ("pods",),
        "outbound|80||*.wild.test": ("wild",),
        "outbound|80||api.outside.test": ("outside",),
    },
)
for seen in VIEW.services.values():
    RULES.service(seen)

TO_APP = f"route: [{{destination: {{host: app.{K8S}}}}}]"
TO_V1 = f"route: [{{destination: {{host: app.{K8S}, subset: v1}}}}]"
TO_V2 = f"route: [{{destination: {{host: app.{K8S}, subset: v2}}}}]"


def rule(http: str, client: Client = CLIENT) -> str:
    return RULES.rule(http, client=client)


def matching(conditions: str, client: Client = CLIENT) -> str:
    """A host whose requests go to v2 when `conditions` (a YAML list of matches) hold, else to v1."""
    return rule(f"- match: {conditions}\n  {TO_V2}\n- {TO_V1}", client)


# Larger than what Envoy takes where its bootstrap does not say otherwise, as this one's does not.
MANY = "/things/(" + "|".join(f"team-{n}" for n in range(40)) + ")/[^/]+"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Rig]:
    with Rig(RULES) as rig:
        yield rig


class TestUriMatch:
    EXACT = matching("[{uri: {exact: /api}}]")
    PREFIX = matching("[{uri: {prefix: /api}}]")
    REGEX = matching("[{uri: {regex: '/v[0-9]+/.*'}}]")
    LARGE = matching(f"[{{uri: {{regex: '{MANY}'}}}}]")
    ANY = matching("[{uri: {prefix: /}}]")
    CASELESS = matching("[{uri: {exact: /Api}, ignoreUriCase: true}, {uri: {prefix: /Shop}, ignoreUriCase: true}]")

    @pytest.mark.parametrize(
        ("host", "path", "taken"),
        [
            (EXACT, "/api", True),
            (EXACT, "/api?x=1", True),
            (EXACT, "/api/", False),
            (EXACT, "/API", False),
            (PREFIX, "/api", True),
            (PREFIX, "/api/x?y", True),
            (PREFIX, "/apis", True),
            (PREFIX, "/Api", False),
            (REGEX, "/v12/things", True),
            (REGEX, "/v12/things?q=1", True),
            (REGEX, "/x/v12/things", False),
            (LARGE, "/things/team-17/x", True),
            (LARGE, "/things/team-47/x", False),
            (ANY, "/whatever", True),
            (CASELESS, "/aPI", True),
            (CASELESS, "/sHOPping", True),
            (CASELESS, "/aPI/x", False),
        ],
    )
    def test_path(self, mesh: Rig, host: str, path: str, taken: bool) -> None:
        assert mesh.call(host, path).server == ("app-v2" if taken else "app-v1")


class TestHeaderMatch:
    EXACT = matching("[{headers: {end-user: {exact: jason}}}]")
    PREFIX = matching("[{headers: {end-user: {prefix: ja}}}]")
    REGEX = matching("[{headers: {end-user: {regex: 'j.*n|a'}}}]")
    LARGE = matching(f"[{{headers: {{end-user: {{regex: '{MANY}'}}}}}}]")
    PRESENT = matching("[{headers: {end-user: {}}}]")
    EMPTY_PREFIX = matching("[{headers: {end-user: {prefix: ''}}}]")
    ANY_REGEX = matching("[{headers: {end-user: {regex: '*'}}}]")
    BOTH = matching("[{headers: {a: {exact: x}, b: {exact: y}}}]")
    EITHER = matching("[{headers: {a: {exact: x}}}, {headers: {b: {exact: y}}}]")
    IGNORED = matching("[{headers: {uri: {exact: nothing-like-it}, end-user: {exact: jason}}}]")

    @pytest.mark.parametrize(
        ("host", "headers", "taken"),
        [
            (EXACT, {"end_user": "jason"}, True),
            (EXACT, {"end_user": "Jason"}, False),
            (EXACT, {}, False),
            (PREFIX, {"end_user": "jane"}, True),
            (PREFIX, {"end_user": "mary"}, False),
            (REGEX, {"end_user": "jason"}, True),
            (REGEX, {"end_user": "jason2"}, False),
            (LARGE, {"end_user": "/things/team-17/x"}, True),
            (PRESENT, {"end_user": "anyone"}, True),
            (PRESENT, {}, False),
            (EMPTY_PREFIX, {"end_user": "anyone"}, True),
            (EMPTY_PREFIX, {}, False),
            (ANY_REGEX, {"end_user": "anyone"}, True),
            (ANY_REGEX, {}, False),
            (BOTH, {"a": "x", "b": "y"}, True),
            (BOTH, {"a": "x"}, False),
            (EITHER, {"b": "y"}, True),
            (EITHER, {"b": "x"}, False),
            (IGNORED, {"end_user": "jason"}, True),
        ],
    )
    def test_headers(self, mesh: Rig, host: str, headers: dict[str, str], taken: bool) -> None:
        assert mesh.call(host, **headers).server == ("app-v2" if taken else "app-v1")

    WITHOUT = matching("[{withoutHeaders: {end-user: {exact: jason}}}]")
    WITHOUT_ANY = matching("[{withoutHeaders: {end-user: {}}}]")
    WITHOUT_PREFIX = matching("[{withoutHeaders: {end-user: {prefix: ja}}}]")
    WITH_AND_WITHOUT = matching("[{headers: {end-user: {prefix: j}}, withoutHeaders: {end-user: {exact: jason}}}]")

    @pytest.mark.parametrize(
        ("host", "headers", "taken"),
        [
            (WITHOUT, {"end_user": "jason"}, False),
            (WITHOUT, {"end_user": "mary"}, True),
            (WITHOUT, {}, True),
            (WITHOUT_ANY, {"end_user": "anyone"}, False),
            (WITHOUT_ANY, {}, True),
            (WITHOUT_PREFIX, {"end_user": "jane"}, False),
            (WITHOUT_PREFIX, {}, True),
            (WITH_AND_WITHOUT, {"end_user": "jane"}, True),
            (WITH_AND_WITHOUT, {"end_user": "jason"}, False),
        ],
    )
    def test_without_headers(self, mesh: Rig, host: str, headers: dict[str, str], taken: bool) -> None:
        assert mesh.call(host, **headers).server == ("app-v2" if taken else "app-v1")


class TestOtherMatches:
    METHOD = matching("[{method: {exact: PUT}}, {method: {regex: 'P(OS|ATC)[TH]'}}]")

    @pytest.mark.parametrize(("method", "taken"), [("PUT", True), ("POST", True), ("PATCH", True), ("GET", False)])
    def test_method(self, mesh: Rig, method: str, taken: bool) -> None:
        assert mesh.call(self.METHOD, method=method).server == ("app-v2" if taken else "app-v1")

    SCHEME = matching("[{scheme: {exact: http}}]")
    OTHER_SCHEME = matching("[{scheme: {prefix: https}}]")

    def test_scheme(self, mesh: Rig) -> None:
        assert mesh.call(self.SCHEME).server == "app-v2"
        assert mesh.call(self.OTHER_SCHEME).server == "app-v1"

    AUTHORITY = matching("[{authority: {regex: '[^:]*:8080'}}]")

    def test_authority_is_the_host_header_with_its_port(self, mesh: Rig) -> None:
        assert mesh.call(f"{self.AUTHORITY}:8080").server == "app-v2"
        assert mesh.call(self.AUTHORITY).server == "app-v1"

    QUERY = matching("[{queryParams: {key: {exact: 'true'}}}]")
    QUERY_EMPTY = matching("[{queryParams: {key: {exact: ''}}}]")
    QUERY_PREFIX = matching("[{queryParams: {key: {prefix: ab}}}]")
    QUERY_REGEX = matching("[{queryParams: {key: {regex: '\\d+$'}}}]")
    QUERY_PRESENT = matching("[{queryParams: {key: {}}}]")
    QUERY_BOTH = matching("[{queryParams: {a: {exact: '1'}, b: {exact: '2'}}}]")

    @pytest.mark.parametrize(
        ("host", "query", "taken"),
        [
            (QUERY, "key=true", True),
            (QUERY, "x=1&key=true", True),
            (QUERY, "key=false", False),
            (QUERY_EMPTY, "key", True),
            (QUERY_EMPTY, "key=x", False),
            (QUERY_EMPTY, "other", False),
            (QUERY_PREFIX, "key=abc", True),
            (QUERY_PREFIX, "key=xab", False),
            (QUERY_REGEX, "key=123", True),
            (QUERY_REGEX, "key=a123", False),
            (QUERY_REGEX, "key=123a", False),
            (QUERY_PRESENT, "key=anything", True),
            (QUERY_PRESENT, "other=1", False),
            (QUERY_BOTH, "b=2&a=1", True),
            (QUERY_BOTH, "a=1", False),
        ],
    )
    def test_query_parameters(self, mesh: Rig, host: str, query: str, taken: bool) -> None:
        assert mesh.call(host, f"/?{query}").server == ("app-v2" if taken else "app-v1")

    @pytest.mark.parametrize(
        ("conditions", "taken"),
        [
            ("[{port: 80}]", True),
            ("[{port: 81}]", False),
            ("[{sourceLabels: {version: v1}}]", True),
            ("[{sourceLabels: {version: v1, app: caller}}]", True),
            ("[{sourceLabels: {version: v2}}]", False),
            ("[{sourceNamespace: default}]", True),
            ("[{sourceNamespace: other}]", False),
            ("[{gateways: [mesh]}]", True),
            ("[{gateways: [front]}]", False),
        ],
    )
    def test_static_conditions_never_reach_envoy(self, conditions: str, taken: bool) -> None:
        rules = Rules(VIEW, {})
        rules.rule(f"- match: {conditions}\n  {TO_V2}\n- {TO_V1}")
        assert [r.route.cluster.split("|")[2] for r in rules.virtual_hosts[0].routes] == (["v2"] if taken else ["v1"])


class TestOrder:
    FIRST = rule(f"- match: [{{uri: {{prefix: /a}}}}]\n  {TO_V1}\n- match: [{{uri: {{exact: /a/b}}}}]\n  {TO_V2}")

    def test_the_first_rule_that_matches_wins_however_specific_a_later_one_is(self, mesh: Rig) -> None:
        assert mesh.call(self.FIRST, "/a/b").server == "app-v1"

    def test_no_rule_that_matches_is_a_404(self, mesh: Rig) -> None:
        assert mesh.call(self.FIRST, "/c").status == 404


class TestDestinations:
    SINGLE_PORT = rule(f"- route: [{{destination: {{host: single.{K8S}}}}}]")
    LISTENER_PORT = rule(f"- route: [{{destination: {{host: multi.{K8S}}}}}]")
    OWN_PORT = rule(f"- route: [{{destination: {{host: multi.{K8S}, port: {{number: 8080}}}}}}]")
    WILDCARD = rule("- route: [{destination: {host: a.wild.test}}]")
    UNKNOWN = rule("- route: [{destination: {host: nowhere.test}}]")
    UNKNOWN_SUBSET = rule(f"- route: [{{destination: {{host: app.{K8S}, subset: v9}}}}]")
    ZERO_ALONE = rule(f"- route: [{{destination: {{host: app.{K8S}}}, weight: 0}}]")

    @pytest.mark.parametrize(
        ("host", "server"),
        [
            (SINGLE_PORT, "single"),
            (LISTENER_PORT, "multi-80"),
            (OWN_PORT, "multi-8080"),
            (WILDCARD, "wild"),
            (UNKNOWN, "503"),
            (UNKNOWN_SUBSET, "503"),
            (ZERO_ALONE, "app"),
        ],
    )
    def test_destination(self, mesh: Rig, host: str, server: str) -> None:
        assert mesh.call(host).server == server

    SPLIT = rule(
        f"- route:\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v1}}, weight: 3}}\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v2}}, weight: 1}}\n"
        f"  - {{destination: {{host: single.{K8S}}}, weight: 0}}\n"
        f"  - {{destination: {{host: multi.{K8S}}}}}\n"
    )
    SHIFTED = rule(
        f"- route:\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v1}}, weight: 0}}\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v2}}, weight: 100}}\n"
    )
    NOBODY = rule(
        f"- route:\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v1}}, weight: 0}}\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v2}}, weight: 0}}\n"
    )

    def test_weights_are_relative_to_their_sum_and_no_weight_gets_nothing(self, mesh: Rig) -> None:
        count = Counter(mesh.call(self.SPLIT).server for _ in range(400))
        assert set(count) == {"app-v1", "app-v2"}
        assert 240 < count["app-v1"] < 360  # 300 expected, standard deviation 8.7

    def test_all_of_the_weight_on_one_sends_it_everything(self, mesh: Rig) -> None:
        assert {mesh.call(self.SHIFTED).server for _ in range(10)} == {"app-v2"}

    def test_no_weight_at_all_is_a_503(self, mesh: Rig) -> None:
        assert mesh.call(self.NOBODY).status == 503


class TestRedirect:
    WHOLE = rule("- match: [{uri: {exact: /old}}]\n  redirect: {uri: /new, authority: other.test}")
    PREFIX = rule("- match: [{uri: {prefix: /foo/}}]\n  redirect: {authority: foo.test, prefixRewrite: /}")
    SCHEME = rule("- redirect: {scheme: https, redirectCode: 308}")
    PORT = rule("- redirect: {port: 8443, scheme: https}")
    REQUEST_PORT = rule("- redirect: {authority: other.test, derivePort: FROM_REQUEST_PORT}")
    DEFAULT_PORT = rule("- redirect: {scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}")

    @pytest.mark.parametrize(
        ("host", "path", "status", "location"),
        [
            (WHOLE, "/old", 301, "http://other.test/new"),
            (WHOLE, "/old?q=1", 301, "http://other.test/new?q=1"),
            (PREFIX, "/foo/bar", 301, "http://foo.test/bar"),
            (SCHEME, "/x?y=z", 308, f"https://{SCHEME}/x?y=z"),
            (PORT, "/x", 301, f"https://{PORT}:8443/x"),
            (REQUEST_PORT, "/x", 301, "http://other.test:80/x"),
            (DEFAULT_PORT, "/x", 301, f"https://{DEFAULT_PORT}/x"),
        ],
    )
    def test_location(self, mesh: Rig, host: str, path: str, status: int, location: str) -> None:
        reply = mesh.call(host, path)
        assert (reply.status, reply.headers["location"]) == (status, location)

    CODES = {code: rule(f"- redirect: {{uri: /x, redirectCode: {code}}}") for code in (301, 302, 303, 307, 308)}

    @pytest.mark.parametrize("code", CODES)
    def test_code(self, mesh: Rig, code: int) -> None:
        assert mesh.call(self.CODES[code]).status == code


class TestDirectResponse:
    STRING = rule("- directResponse: {status: 503, body: {string: unknown error}}")
    BYTES = rule(f"- directResponse: {{status: 200, body: {{bytes: {base64.b64encode(bytes(range(256))).decode()}}}}}")
    EMPTY = rule("- directResponse: {status: 404}")
    TYPED = rule(
        "- directResponse: {status: 503, body: {string: '{}'}}\n"
        "  headers: {response: {set: {content-type: application/json}, add: {x-why: because}}}"
    )
    LARGE = rule(f"- directResponse: {{status: 200, body: {{string: {'x' * 500_000}}}}}")

    def test_body(self, mesh: Rig) -> None:
        assert (mesh.call(self.STRING).status, mesh.call(self.STRING).body) == (503, b"unknown error")
        assert mesh.call(self.BYTES).body == bytes(range(256))
        assert (mesh.call(self.EMPTY).status, mesh.call(self.EMPTY).body) == (404, b"")
        assert len(mesh.call(self.LARGE).body) == 500_000

    def test_its_headers_can_be_set(self, mesh: Rig) -> None:
        headers = mesh.call(self.TYPED).headers
        assert headers.get_all("content-type") == ["application/json"]
        assert headers["x-why"] == "because"


class TestRewrite:
    PREFIX = rule(f"- match: [{{uri: {{prefix: /ratings}}}}]\n  rewrite: {{uri: /v1/bookRatings}}\n  {TO_APP}")
    SLASH = rule(f"- match: [{{uri: {{prefix: /ratings/}}}}]\n  rewrite: {{uri: /}}\n  {TO_APP}")
    EXACT = rule(f"- match: [{{uri: {{exact: /a}}}}]\n  rewrite: {{uri: /b/c}}\n  {TO_APP}")
    REGEX = rule(f"- match: [{{uri: {{regex: '/a/[0-9]+'}}}}]\n  rewrite: {{uri: /b}}\n  {TO_APP}")
    LARGE = rule(f"- rewrite: {{uriRegexRewrite: {{match: '{MANY}', rewrite: /b}}}}\n  {TO_APP}")
    EVERYTHING = rule(f"- rewrite: {{uri: /b}}\n  {TO_APP}")
    CASELESS = rule(f"- match: [{{uri: {{prefix: /Shop}}, ignoreUriCase: true}}]\n  rewrite: {{uri: /s}}\n  {TO_APP}")
    GROUPS = rule(
        f"- rewrite: {{uriRegexRewrite: {{match: '^/service/([^/]+)(/.*)$', rewrite: '/customprefix/\\2/\\1'}}}}\n  {TO_APP}"
    )
    CASE = rule(f"- rewrite: {{uriRegexRewrite: {{match: '(?i)/xxx/', rewrite: /yyy/}}}}\n  {TO_APP}")

    @pytest.mark.parametrize(
        ("host", "path", "rewritten"),
        [
            (PREFIX, "/ratings/7?x=1", "/v1/bookRatings/7?x=1"),
            (PREFIX, "/ratings", "/v1/bookRatings"),
            (SLASH, "/ratings/7", "/7"),
            (EXACT, "/a?q=1", "/b/c?q=1"),
            (REGEX, "/a/12?q=1", "/b?q=1"),
            (LARGE, "/things/team-17/x", "/b"),
            (EVERYTHING, "/x", "/bx"),
            (CASELESS, "/sHOP/x", "/s/x"),
            (GROUPS, "/service/update/v1/api", "/customprefix//v1/api/update"),
            (CASE, "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
        ],
    )
    def test_path(self, mesh: Rig, host: str, path: str, rewritten: str) -> None:
        assert mesh.call(host, path).seen["path"] == rewritten

    def test_the_original_path_goes_along(self, mesh: Rig) -> None:
        assert mesh.call(self.EXACT, "/a").seen["headers"]["x-envoy-original-path"] == ["/a"]

    AUTHORITY = rule(f"- rewrite: {{authority: new.test}}\n  {TO_APP}")
    BOTH = rule(f"- match: [{{uri: {{prefix: /a}}}}]\n  rewrite: {{authority: new.test:81, uri: /b}}\n  {TO_APP}")

    def test_authority(self, mesh: Rig) -> None:
        assert mesh.call(self.AUTHORITY).seen["host"] == "new.test"
        seen = mesh.call(self.BOTH, "/a/x").seen
        assert (seen["host"], seen["path"]) == ("new.test:81", "/b/x")

    def test_without_it_the_host_stays(self, mesh: Rig) -> None:
        assert mesh.call(self.PREFIX, "/ratings").seen["host"] == self.PREFIX


class TestTimeout:
    SHORT = rule(f"- timeout: 0.3s\n  {TO_APP}")
    TOLD = rule(f"- timeout: 1m30.5s\n  {TO_APP}")
    NONE = rule(f"- {TO_APP}")
    ZERO = rule(f"- timeout: 0s\n  {TO_APP}")

    def test_it_ends_a_request(self, mesh: Rig) -> None:
        reply = mesh.call(self.SHORT, x_wait=LONG)
        assert reply.status == 504
        assert reply.seconds > 0.25

    def test_it_is_the_time_that_the_server_is_told(self, mesh: Rig) -> None:
        assert mesh.call(self.TOLD).seen["headers"]["x-envoy-expected-rq-timeout-ms"] == ["90500"]

    @pytest.mark.parametrize("host", [NONE, ZERO])
    def test_none_is_the_default(self, mesh: Rig, host: str) -> None:
        assert "x-envoy-expected-rq-timeout-ms" not in mesh.call(host).seen["headers"]
        assert mesh.call(host, x_wait="0.5").status == 200

    def test_a_grpc_caller_s_own_timeout_holds_where_the_route_has_none(self, mesh: Rig) -> None:
        reply = mesh.call(self.NONE, method="POST", content_type="application/grpc", grpc_timeout="200m", x_wait=LONG)
        assert reply.headers["grpc-status"] in {"4", "14"}

    def test_a_grpc_caller_cannot_have_more_than_the_route_s(self, mesh: Rig) -> None:
        reply = mesh.call(self.SHORT, method="POST", content_type="application/grpc", grpc_timeout="1H", x_wait=LONG)
        assert reply.headers["grpc-status"] in {"4", "14"}


class TestRetries:
    DEFAULT = rule(f"- {TO_APP}")
    THREE = rule(f"- retries: {{attempts: 3, retryOn: 5xx}}\n  {TO_APP}")
    OFF = rule(f"- retries: {{attempts: 0}}\n  {TO_APP}")
    CODES = rule(f"- retries: {{attempts: 1, retryOn: '418,reset'}}\n  {TO_APP}")
    ONLY_ATTEMPTS = rule(f"- retries: {{attempts: 4}}\n  {TO_APP}")
    PER_TRY = rule(f"- retries: {{attempts: 1, perTryTimeout: 0.2s, retryOn: 'gateway-error'}}\n  {TO_APP}")
    ONE_TRY = rule(f"- retries: {{attempts: 0, perTryTimeout: 0.2s}}\n  {TO_APP}")
    BACKOFF = rule(f"- retries: {{attempts: 1, backoff: 2s, retryOn: 5xx}}\n  {TO_APP}")
    PAIR = rule(f"- retries: {{attempts: 1, retryOn: 5xx}}\n  route: [{{destination: {{host: pair.{K8S}}}}}]")
    REMOTE = rule(f"- retries: {{attempts: 1, retryOn: 5xx, retryRemoteLocalities: true}}\n  {TO_APP}")

    def test_the_default_retries_twice_what_never_reached_the_application(self, mesh: Rig) -> None:
        policy = RULES.virtual_hosts[int(self.DEFAULT.split("-")[1].split(".")[0])].routes[0].route.retry_policy
        assert policy.num_retries.value == 2
        assert mesh.call(self.DEFAULT, x_answers="503,200").status == 503
        assert mesh.call(self.DEFAULT, x_answers="reset,200").status == 503

    def test_the_default_retries_grpc_that_is_unavailable(self, mesh: Rig) -> None:
        respond = json.dumps({"grpc-status": "14"})
        mesh.call(self.DEFAULT, method="POST", content_type="application/grpc", x_respond=respond, x_key=(key := uuid4().hex))
        assert [r["attempt"] for r in mesh.servers["app"].got(key, 3)] == [1, 2, 3]

    def test_attempts_and_retry_on(self, mesh: Rig) -> None:
        assert mesh.call(self.THREE, x_answers="500,502,503,200").seen["attempt"] == 4
        assert mesh.call(self.THREE, x_answers="500").seen["attempt"] == 4
        assert mesh.call(self.THREE, x_answers="404").seen["attempt"] == 1

    def test_zero_attempts_switch_retries_off(self, mesh: Rig) -> None:
        respond = json.dumps({"grpc-status": "14"})
        seen = mesh.call(self.OFF, method="POST", content_type="application/grpc", x_respond=respond).seen
        assert seen["attempt"] == 1

    def test_status_codes_among_the_conditions(self, mesh: Rig) -> None:
        assert mesh.call(self.CODES, x_answers="418,200").seen["attempt"] == 2
        assert mesh.call(self.CODES, x_answers="reset,200").seen["attempt"] == 2
        assert mesh.call(self.CODES, x_answers="503,200").seen["attempt"] == 1

    def test_attempts_alone_keep_the_default_conditions(self, mesh: Rig) -> None:
        respond = json.dumps({"grpc-status": "14"})
        mesh.call(self.ONLY_ATTEMPTS, method="POST", content_type="application/grpc", x_respond=respond, x_key=(key := uuid4().hex))
        assert len(mesh.servers["app"].got(key, 5)) == 5

    def test_per_try_timeout(self, mesh: Rig) -> None:
        # Whether the server has heard of a try that was ended is another matter: it may have been too slow.
        counters = [f"cluster.outbound|80||app.{K8S}.upstream_rq_{what}" for what in ("per_try_timeout", "retry")]
        before = [mesh.envoy.stat(name) for name in counters]
        reply = mesh.call(self.PER_TRY, x_wait=LONG)
        assert reply.status == 504
        assert reply.seconds > 0.35
        assert [mesh.envoy.stat(name) - known for name, known in zip(counters, before, strict=True)] == [2, 1]

    def test_per_try_timeout_without_retries_ends_the_only_try(self, mesh: Rig) -> None:
        assert mesh.call(self.ONE_TRY, x_wait=LONG).status == 504

    def test_backoff_is_the_base_of_the_wait_between_tries(self, mesh: Rig) -> None:
        waits = (mesh.call(self.BACKOFF, x_answers="500,200").seconds for _ in range(10))
        assert any(wait > 0.1 for wait in waits)  # up to 2 s at random; the default is up to 25 ms

    def test_a_retry_goes_to_another_endpoint(self, mesh: Rig) -> None:
        for _ in range(6):
            key = uuid4().hex
            mesh.call(self.PAIR, x_answers="500,200", x_key=key)
            assert [len(mesh.servers[name].got(key)) for name in ("pair-a", "pair-b")] == [1, 1]

    def test_remote_localities(self, mesh: Rig) -> None:
        assert mesh.call(self.REMOTE, x_answers="500,200").seen["attempt"] == 2


class TestFault:
    ABORT = rule(f"- fault: {{abort: {{percentage: {{value: 100}}, httpStatus: 418}}}}\n  {TO_APP}")
    GRPC = rule(f"- fault: {{abort: {{percentage: {{value: 100}}, grpcStatus: UNAVAILABLE}}}}\n  {TO_APP}")
    DELAY = rule(f"- fault: {{delay: {{percentage: {{value: 100}}, fixedDelay: 0.4s}}}}\n  {TO_APP}")
    OLD_DELAY = rule(f"- fault: {{delay: {{percent: 100, fixedDelay: 0.4s}}}}\n  {TO_APP}")
    BOTH = rule(
        f"- fault: {{delay: {{percentage: {{value: 100}}, fixedDelay: 0.4s}}, "
        f"abort: {{percentage: {{value: 100}}, httpStatus: 400}}}}\n  {TO_APP}"
    )
    HALF = rule(f"- fault: {{abort: {{percentage: {{value: 50}}, httpStatus: 418}}}}\n  {TO_APP}")
    RARE = rule(f"- fault: {{abort: {{percentage: {{value: 0.0001}}, httpStatus: 418}}}}\n  {TO_APP}")
    UNSAID = rule(f"- fault: {{abort: {{httpStatus: 418}}, delay: {{fixedDelay: 1h}}}}\n  {TO_APP}")
    ONLY_SOME = rule(
        f"- match: [{{headers: {{end-user: {{exact: jason}}}}}}]\n"
        f"  fault: {{abort: {{percentage: {{value: 100}}, httpStatus: 500}}}}\n  {TO_APP}\n- {TO_APP}"
    )

    def test_abort(self, mesh: Rig) -> None:
        reply = mesh.call(self.ABORT)
        assert (reply.status, reply.body) == (418, b"fault filter abort")

    def test_abort_with_a_grpc_status(self, mesh: Rig) -> None:
        reply = mesh.call(self.GRPC, method="POST", content_type="application/grpc")
        assert (reply.status, reply.headers["grpc-status"]) == (200, "14")

    @pytest.mark.parametrize("host", [DELAY, OLD_DELAY])
    def test_delay(self, mesh: Rig, host: str) -> None:
        reply = mesh.call(host)
        assert reply.status == 200
        assert reply.seconds >= 0.39

    def test_both(self, mesh: Rig) -> None:
        reply = mesh.call(self.BOTH)
        assert reply.status == 400
        assert reply.seconds >= 0.39

    def test_percentage(self, mesh: Rig) -> None:
        count = Counter(mesh.call(self.HALF).status for _ in range(300))
        assert set(count) == {200, 418}
        assert 90 < count[418] < 210

    def test_a_percentage_may_be_a_fraction_of_one(self) -> None:
        (host,) = (host for host in RULES.virtual_hosts if host.name == f"{self.RARE}:80")
        (fault,) = host.routes[0].typed_per_filter_config.values()
        share = pb.Fault.FromString(fault.value).abort.percentage
        assert (share.numerator, share.denominator) == (1, 2)  # of a million

    def test_without_a_percentage_nothing_fails(self, mesh: Rig) -> None:
        assert mesh.call(self.UNSAID).status == 200

    def test_it_is_the_rule_s_own(self, mesh: Rig) -> None:
        assert mesh.call(self.ONLY_SOME, end_user="jason").status == 500
        assert mesh.call(self.ONLY_SOME).status == 200


class TestMirror:
    ALL = rule(f"- mirror: {{host: shadow.{K8S}}}\n  {TO_APP}")
    NONE = rule(f"- mirror: {{host: shadow.{K8S}}}\n  mirrorPercentage: {{value: 0}}\n  {TO_APP}")
    HALF = rule(f"- mirror: {{host: shadow.{K8S}}}\n  mirrorPercentage: {{value: 50}}\n  {TO_APP}")
    OLD = rule(f"- mirror: {{host: shadow.{K8S}}}\n  mirror_percent: 100\n  {TO_APP}")
    SEVERAL = rule(
        f"- mirrors:\n"
        f"  - {{destination: {{host: shadow.{K8S}}}}}\n"
        f"  - {{destination: {{host: app.{K8S}, subset: v2}}, percentage: {{value: 100}}}}\n"
        f"  - {{destination: {{host: single.{K8S}}}, percentage: {{value: 0}}}}\n"
        f"  {TO_APP}"
    )

    def test_copies_all_requests_and_answers_with_the_original_s(self, mesh: Rig) -> None:
        reply = mesh.call(self.ALL, "/path?q=1", method="POST", body="hello", x_key="all")
        copy = mesh.servers["shadow"].got("all")[0]
        assert reply.server == "app"
        assert (copy["method"], copy["path"], copy["body"]) == ("POST", "/path?q=1", "hello")
        assert copy["host"] == f"{self.ALL}-shadow"

    def test_deprecated_percent(self, mesh: Rig) -> None:
        mesh.call(self.OLD, x_key="old")
        mesh.servers["shadow"].got("old")

    def test_percentage(self, mesh: Rig) -> None:
        key = uuid4().hex
        for _ in range(200):
            mesh.call(self.HALF, x_key=key)
        assert len(mesh.servers["shadow"].got(key, 50)) < 150
        assert len(mesh.servers["app"].got(key, 200)) == 200

    def test_several(self, mesh: Rig) -> None:
        mesh.call(self.SEVERAL, x_key="several")
        mesh.servers["shadow"].got("several")
        mesh.servers["app-v2"].got("several")

    def test_zero_percent_sends_no_copy(self) -> None:
        by_name = {host.name: host for host in RULES.virtual_hosts}
        assert not by_name[f"{self.NONE}:80"].routes[0].route.request_mirror_policies
        assert len(by_name[f"{self.SEVERAL}:80"].routes[0].route.request_mirror_policies) == 2


class TestCors:
    POLICY = rule(
        "- corsPolicy:\n"
        "    allowOrigins: [{exact: 'https://example.com'}, {prefix: 'https://dev.'}, {regex: 'https://.*[.]test'}]\n"
        "    allowMethods: [POST, GET]\n"
        "    allowCredentials: false\n"
        "    allowHeaders: [X-Foo-Bar, X-Baz]\n"
        "    exposeHeaders: [X-One, X-Two]\n"
        "    maxAge: 24h\n"
        f"  {TO_APP}"
    )
    CREDENTIALS = rule(f"- corsPolicy: {{allowOrigins: [{{exact: '*'}}], allowCredentials: true}}\n  {TO_APP}")
    OLD = rule(f"- corsPolicy: {{allowOrigin: ['https://example.com']}}\n  {TO_APP}")
    IGNORE = rule(
        f"- corsPolicy: {{allowOrigins: [{{exact: 'https://example.com'}}], unmatchedPreflights: IGNORE}}\n  {TO_APP}"
    )

    def test_preflight(self, mesh: Rig) -> None:
        reply = mesh.call(
            self.POLICY, method="OPTIONS", origin="https://example.com", access_control_request_method="POST"
        )
        assert reply.status == 200
        assert not reply.headers.get("x-server")
        assert reply.headers["access-control-allow-origin"] == "https://example.com"
        assert reply.headers["access-control-allow-methods"] == "POST,GET"
        assert reply.headers["access-control-allow-headers"] == "X-Foo-Bar,X-Baz"
        assert reply.headers["access-control-max-age"] == "86400"
        assert "access-control-allow-credentials" not in reply.headers

    @pytest.mark.parametrize("origin", ["https://example.com", "https://dev.example.com", "https://a.test"])
    def test_actual_request(self, mesh: Rig, origin: str) -> None:
        reply = mesh.call(self.POLICY, origin=origin)
        assert reply.server == "app"
        assert reply.headers["access-control-allow-origin"] == origin
        assert reply.headers["access-control-expose-headers"] == "X-One,X-Two"

    def test_other_origins_get_no_permission(self, mesh: Rig) -> None:
        assert "access-control-allow-origin" not in mesh.call(self.POLICY, origin="https://evil.example").headers

    def test_any_origin_with_credentials(self, mesh: Rig) -> None:
        headers = mesh.call(self.CREDENTIALS, origin="https://any.where").headers
        assert headers["access-control-allow-origin"] == "https://any.where"
        assert headers["access-control-allow-credentials"] == "true"

    def test_deprecated_list_of_origins(self, mesh: Rig) -> None:
        assert mesh.call(self.OLD, origin="https://example.com").headers["access-control-allow-origin"]

    def test_other_origins_preflights_go_to_the_application_or_not(self, mesh: Rig) -> None:
        asked = {"origin": "https://evil.example", "access_control_request_method": "POST"}
        assert mesh.call(self.POLICY, method="OPTIONS", **asked).server == "app"
        reply = mesh.call(self.IGNORE, method="OPTIONS", **asked)
        assert reply.status == 200
        assert "x-server" not in reply.headers
        assert "access-control-allow-origin" not in reply.headers


class TestHeaders:
    REQUEST = rule(
        f"- headers: {{request: {{set: {{x-set: new}}, add: {{x-add: more}}, remove: [x-gone]}}}}\n  {TO_APP}"
    )
    RESPONSE = rule(
        f"- headers: {{response: {{set: {{x-set: new}}, add: {{x-add: more}}, remove: [x-gone]}}}}\n  {TO_APP}"
    )
    HOST = rule(f"- headers: {{request: {{set: {{Host: other.test}}}}}}\n  {TO_APP}")
    PSEUDO = rule(f'- headers: {{request: {{set: {{":authority": other.test, ":path": /evil}}}}}}\n  {TO_APP}')
    REWRITE_WINS = rule(
        f"- headers: {{request: {{set: {{host: lost.test}}}}}}\n  rewrite: {{authority: won.test}}\n  {TO_APP}"
    )
    COMMANDS = rule(
        "- headers: {request: {set: {x-port: '%DOWNSTREAM_LOCAL_PORT%', x-proto: 'is %PROTOCOL%', x-literal: '100%%', "
        f"x-method: '%REQ(:METHOD)%'}}}}}}\n  {TO_APP}"
    )
    EMPTY = rule(f"- headers: {{request: {{set: {{x-empty: ''}}}}}}\n  {TO_APP}")

    def test_request(self, mesh: Rig) -> None:
        seen = mesh.call(self.REQUEST, x_set=["old", "older"], x_add="some", x_gone="here", x_kept="yes").seen["headers"]
        assert (seen["x-set"], seen["x-add"], seen["x-kept"]) == (["new"], ["some", "more"], ["yes"])
        assert "x-gone" not in seen

    def test_response(self, mesh: Rig) -> None:
        respond = json.dumps({"x-set": "old", "x-add": "some", "x-gone": "here", "x-kept": "yes"})
        headers = mesh.call(self.RESPONSE, x_respond=respond).headers
        assert headers.get_all("x-set") == ["new"]
        assert headers.get_all("x-add") == ["some", "more"]
        assert headers["x-kept"] == "yes"
        assert "x-gone" not in headers

    def test_host(self, mesh: Rig) -> None:
        assert mesh.call(self.HOST).seen["host"] == "other.test"
        assert mesh.call(self.REWRITE_WINS).seen["host"] == "won.test"

    def test_authority_is_the_host_and_other_pseudo_headers_stay(self, mesh: Rig) -> None:
        seen = mesh.call(self.PSEUDO, "/path").seen
        assert (seen["host"], seen["path"]) == ("other.test", "/path")

    def test_command_operators(self, mesh: Rig) -> None:
        seen = mesh.call(self.COMMANDS).seen["headers"]
        assert seen["x-port"] == [str(mesh.port)]
        assert (seen["x-proto"], seen["x-literal"], seen["x-method"]) == (["is HTTP/1.1"], ["100%"], ["GET"])

    def test_empty_value(self, mesh: Rig) -> None:
        assert mesh.call(self.EMPTY).seen["headers"]["x-empty"] == [""]

    OF_ONE = rule(
        f"- headers: {{request: {{set: {{x-who: rule, x-rule: 'yes'}}}}, response: {{set: {{x-out: rule}}}}}}\n"
        f"  route:\n"
        f"  - destination: {{host: app.{K8S}}}\n"
        f"    headers: {{request: {{set: {{x-who: destination, host: destination.test}}, remove: [x-gone]}}, "
        f"response: {{set: {{x-out: destination}}, remove: [x-gone]}}}}\n"
    )
    OF_SEVERAL = rule(
        f"- headers: {{request: {{set: {{x-who: rule, x-rule: 'yes'}}}}, response: {{set: {{x-out: rule}}}}}}\n"
        f"  route:\n"
        f"  - destination: {{host: app.{K8S}, subset: v1}}\n"
        f"    weight: 50\n"
        f"    headers: {{request: {{set: {{x-who: destination, host: destination.test}}, remove: [x-gone]}}, "
        f"response: {{set: {{x-out: destination}}, remove: [x-gone]}}}}\n"
        f"  - destination: {{host: app.{K8S}, subset: v2}}\n"
        f"    weight: 50\n"
    )

    def test_a_destination_s_own_win_over_the_rule_s(self, mesh: Rig) -> None:
        reply = mesh.call(self.OF_ONE, x_gone="here", x_respond='{"x-gone": "here"}')
        seen = reply.seen["headers"]
        assert (seen["x-who"], seen["x-rule"], reply.seen["host"]) == (["destination"], ["yes"], "destination.test")
        assert "x-gone" not in seen
        assert reply.headers.get_all("x-out") == ["destination"]
        assert "x-gone" not in reply.headers

    def test_a_destination_s_own_are_not_its_neighbours(self, mesh: Rig) -> None:
        replies = {}
        for _ in range(200):
            reply = mesh.call(self.OF_SEVERAL, x_gone="here", x_respond='{"x-gone": "here"}')
            replies[reply.server] = reply
            if len(replies) == 2:
                break
        first, second = replies["app-v1"], replies["app-v2"]
        assert (first.seen["headers"]["x-who"], first.seen["host"]) == (["destination"], "destination.test")
        assert first.headers.get_all("x-out") == ["destination"]
        assert "x-gone" not in first.headers
        assert (second.seen["headers"]["x-who"], second.seen["host"]) == (["rule"], self.OF_SEVERAL)
        assert second.headers.get_all("x-out") == ["rule"]
        assert second.headers["x-gone"] == "here"


class TestHashing:
    BY_RULE = rule(f"- route: [{{destination: {{host: sticky.{K8S}}}}}]")

    @pytest.mark.parametrize("host", [f"sticky.{K8S}", BY_RULE])
    def test_requests_of_one_key_go_to_one_endpoint(self, mesh: Rig, host: str) -> None:
        for user in "abcdef":
            assert len({mesh.call(host, x_user=user).server for _ in range(5)}) == 1
        assert len({mesh.call(host, x_user=str(n)).server for n in range(40)}) == 3


class TestMeshDefaults:
    def test_the_mesh_s_retry_policy_replaces_the_default(self) -> None:
        view = Seen(APP, config=MeshConfig(default_http_retry_policy=HTTPRetry(attempts=7, retry_on="503")))
        rules = Rules(view, {})
        rules.rule(f"- {TO_APP}")
        rules.service(APP)
        for host in rules.virtual_hosts:
            policy = host.routes[0].route.retry_policy
            assert (policy.num_retries.value, policy.retry_on) == (7, "retriable-status-codes")
            assert list(policy.retriable_status_codes) == [503]


class TestVirtualHosts:
    @pytest.mark.parametrize(
        ("host", "server"),
        [
            (f"app.{K8S}", "app"),
            (f"app.{K8S}.", "app"),
            (f"app.{K8S}:80", "app"),
            (f"APP.{K8S}", "app"),
            ("app", "app"),
            ("app:8080", "app"),
            ("app.default", "app"),
            ("app.default.svc", "app"),
            ("10.96.0.1", "app"),
            ("10.96.0.1:80", "app"),
            ("multi", "multi-80"),
            ("[fd00::3]", "multi-80"),
            ("[fd00::3]:80", "multi-80"),
            ("far", "404"),
            ("far.other", "far"),
            ("far.other.svc:80", "far"),
            ("old-shadow", "shadow"),
            (f"old-shadow.{K8S}", "shadow"),
            ("pods", "pods"),
            (f"pod-0.pods.{K8S}", "pods"),
            ("pod-0.pods", "pods"),
            ("a.wild.test", "wild"),
            ("a.b.wild.test:80", "wild"),
            ("wild.test", "404"),
            ("api.outside.test", "outside"),
            ("192.0.2.1", "outside"),
            ("nobody.test", "404"),
        ],
    )
    def test_host_header(self, mesh: Rig, host: str, server: str) -> None:
        assert mesh.call(host).server == server
