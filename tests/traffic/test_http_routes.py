"""VirtualService `http[]`: what becomes of the requests that a rule takes."""

from collections.abc import Mapping

import pytest
from support.traffic import Mesh, Pod
from support.traffic_rules import TO_APP, TO_V1, TO_V2, Rules

RULES = Rules("routes")

PORTS = """
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {name: double}
    spec:
      hosts: [double]
      http:
      - match: [{uri: {exact: /default}}]
        redirect: {uri: /x, derivePort: FROM_PROTOCOL_DEFAULT}
      - match: [{uri: {exact: /secure}}]
        redirect: {uri: /x, derivePort: FROM_PROTOCOL_DEFAULT, scheme: https}
      - match: [{uri: {exact: /same}}]
        redirect: {uri: /x, derivePort: FROM_REQUEST_PORT}
      - match: [{port: 80}]
        headers: {response: {set: {x-port: '80'}}}
        route: [{destination: {host: double}}]
      - match: [{port: 9000}]
        headers: {response: {set: {x-port: '9000'}}}
        route: [{destination: {host: double}}]
"""
OTHERS = """
    apiVersion: networking.istio.io/v1
    kind: ServiceEntry
    metadata: {name: outside}
    spec:
      hosts: [api.outside.test]
      location: MESH_EXTERNAL
      ports: [{number: 80, name: http, protocol: HTTP}]
      resolution: STATIC
      endpoints: [{address: 198.51.100.80}]
"""
TWO_PORTS = ({"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-admin", "port": 9000, "targetPort": 9090})


@pytest.fixture(scope="module")
def client(shared: Mesh) -> Pod:
    shared.apply(OTHERS, quiet=True)
    shared.apply(PORTS, quiet=True)
    shared.application("outside", "198.51.100.80")
    RULES.apply(shared)
    shared.service("single", ports=[{"name": "http", "port": 9080, "targetPort": 8080}])
    shared.service("double", ports=TWO_PORTS)
    shared.service("far", namespace=f"{shared.namespace}-far")
    shared.service("old", spec={"type": "ExternalName", "externalName": f"single.{shared.namespace}.svc.cluster.local", "clusterIP": ""})
    return shared.pod("client")


class TestDestination:
    SUBSET = RULES.add(f"- {TO_V2}")
    NO_SUBSET = RULES.add("- route: [{destination: {host: app, subset: v9}}]")
    SINGLE_PORT = RULES.add("- route: [{destination: {host: single}}]")
    SAME_PORT = RULES.add("- route: [{destination: {host: double}}]")
    PORT = RULES.add("- route: [{destination: {host: double, port: {number: 9000}}}]")
    NO_PORT = RULES.add("- route: [{destination: {host: double, port: {number: 1234}}}]")
    NOBODY = RULES.add("- route: [{destination: {host: nobody}}]")
    SHORT_FAR = RULES.add("- route: [{destination: {host: far}}]")
    OUTSIDE = RULES.add("- route: [{destination: {host: api.outside.test}}]")
    ALIAS = RULES.add("- route: [{destination: {host: old}}]")

    @pytest.mark.parametrize(
        ("host", "server", "port"),
        [
            (SUBSET, "app-v2", 8080),
            (SINGLE_PORT, "single-v1", 8080),
            (SAME_PORT, "double-v1", 8080),
            (PORT, "double-v1", 9090),
            (OUTSIDE, "outside", 80),
            (ALIAS, "single-v1", 8080),
        ],
    )
    def test_destination(self, client: Pod, host: str, server: str, port: int) -> None:
        reply = client.get("http://app/", host=host)
        assert reply.call is not None
        assert (reply.server, reply.call.port) == (server, port)

    @pytest.mark.parametrize("host", [NO_SUBSET, NO_PORT, NOBODY, SHORT_FAR])
    def test_requests_to_what_does_not_exist_are_dropped(self, client: Pod, host: str) -> None:
        assert client.get("http://app/", host=host).status == 503

    @pytest.mark.parametrize(("port", "target"), [(80, 8080), (9000, 9090)])
    def test_each_port_has_its_rules_and_is_the_default_destination(self, client: Pod, port: int, target: int) -> None:
        reply = client.get(f"http://double:{port}/")
        assert reply.call is not None
        assert (reply.header("x-port"), reply.call.port) == (str(port), target)

    def test_the_host_header_stays_as_it_was(self, client: Pod) -> None:
        reply = client.get("http://app/", host=self.OUTSIDE)
        assert reply.call is not None
        assert reply.call.authority == self.OUTSIDE


class TestWeights:
    QUARTER = RULES.add("- route: [{destination: {host: app, subset: v1}, weight: 75}, {destination: {host: app, subset: v2}, weight: 25}]")
    SMALL = RULES.add("- route: [{destination: {host: app, subset: v1}, weight: 1}, {destination: {host: app, subset: v2}, weight: 1}]")
    ZERO = RULES.add("- route: [{destination: {host: app, subset: v1}, weight: 0}, {destination: {host: app, subset: v2}, weight: 100}]")
    ABSENT = RULES.add("- route: [{destination: {host: app, subset: v1}}, {destination: {host: app, subset: v2}, weight: 7}]")
    ONLY_ZERO = RULES.add("- route: [{destination: {host: app, subset: v2}, weight: 0}]")
    TWO_SERVICES = RULES.add("- route: [{destination: {host: single}, weight: 1}, {destination: {host: api.outside.test}, weight: 1}]")

    def test_requests_follow_the_weights(self, client: Pod) -> None:
        seen = client.many("http://app/", 400, host=self.QUARTER)
        assert 0.12 < seen["app-v2"] / 400 < 0.4
        assert sum(seen.values()) == seen["app-v1"] + seen["app-v2"] == 400

    def test_weights_are_relative_to_their_sum(self, client: Pod) -> None:
        seen = client.many("http://app/", 200, host=self.SMALL)
        assert 0.25 < seen["app-v1"] / 200 < 0.75

    @pytest.mark.parametrize("host", [ZERO, ABSENT])
    def test_no_weight_among_several_gets_nothing(self, client: Pod, host: str) -> None:
        assert client.many("http://app/", 20, host=host) == {"app-v2": 20}

    def test_a_single_destination_gets_everything_whatever_its_weight(self, client: Pod) -> None:
        assert client.many("http://app/", 5, host=self.ONLY_ZERO) == {"app-v2": 5}

    def test_traffic_can_be_split_between_services(self, client: Pod) -> None:
        assert set(client.many("http://app/", 40, host=self.TWO_SERVICES)) == {"single-v1", "outside"}


class TestHeaders:
    RULE = RULES.add(f"""
        - headers:
            request: {{set: {{x-set: new, X-Case: 'yes'}}, add: {{x-add: more}}, remove: [x-gone, X-Gone-Too]}}
            response: {{set: {{x-set: new}}, add: {{x-add: more}}, remove: [x-gone]}}
          {TO_V1}
    """)
    ASKED: Mapping[str, str] = {
        "x-set": "old", "x-add": "first", "x-gone": "1", "x-gone-too": "1", "x-stays": "1",
        "x-answer": '{"x-set": "old", "x-add": "first", "x-gone": "1", "x-stays": "1"}',
    }  # fmt: skip

    def test_of_requests(self, client: Pod) -> None:
        call = client.get("http://app/", self.ASKED, host=self.RULE).call
        assert call is not None
        names = ("x-set", "x-case", "x-add", "x-gone", "x-gone-too", "x-stays")
        assert [call.header(n) for n in names] == ["new", "yes", "first,more", None, None, "1"]

    def test_of_responses(self, client: Pod) -> None:
        reply = client.get("http://app/", self.ASKED, host=self.RULE)
        assert [reply.header(n) for n in ("x-set", "x-add", "x-gone", "x-stays")] == ["new", "first,more", None, "1"]

    def test_set_makes_headers_that_are_not_there(self, client: Pod) -> None:
        reply = client.get("http://app/", host=self.RULE)
        assert reply.call is not None
        assert (reply.call.header("x-set"), reply.header("x-set"), reply.call.header("x-add"), reply.header("x-add")) == (
            "new", "new", "more", "more",
        )  # fmt: skip

    HOST = RULES.add(f"- headers: {{request: {{set: {{Host: other.example.com}}}}}}\n  {TO_V1}")
    AUTHORITY = RULES.add(f"- headers: {{request: {{set: {{':authority': other.example.com}}}}}}\n  {TO_V1}")

    @pytest.mark.parametrize("host", [HOST, AUTHORITY])
    def test_the_host_can_be_set(self, client: Pod, host: str) -> None:
        call = client.get("http://app/", host=host).call
        assert call is not None
        assert call.authority == "other.example.com"

    DESTINATIONS = RULES.add("""
        - headers:
            request: {set: {x-rule: rule, x-who: rule}}
            response: {set: {x-rule: rule, x-who: rule}}
          route:
          - destination: {host: app, subset: v1}
            weight: 50
            headers: {request: {set: {x-who: v1}, remove: [x-gone]}, response: {set: {x-who: v1}, remove: [x-gone]}}
          - destination: {host: app, subset: v2}
            weight: 50
    """)

    def test_of_one_destination_of_several_win_over_the_rule_s(self, client: Pod) -> None:
        asked = {"x-gone": "1", "x-answer": '{"x-gone": "1"}'}
        found: dict[str, set[str]] = {}
        for _ in range(40):
            reply = client.get("http://app/", asked, host=self.DESTINATIONS)
            assert reply.call is not None
            values = [of.header(name) for of in (reply.call, reply) for name in ("x-rule", "x-who", "x-gone")]
            found.setdefault(reply.server, set()).add(" ".join(value or "-" for value in values))
        assert found == {"app-v1": {"rule v1 - rule v1 -"}, "app-v2": {"rule rule 1 rule rule 1"}}

    VARIABLES = RULES.add(f"- headers: {{request: {{set: {{x-caller: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%'}}}}}}\n  {TO_V1}")

    def test_values_may_have_envoy_s_variables(self, client: Pod) -> None:
        call = client.get("http://app/", host=self.VARIABLES).call
        assert call is not None
        assert call.header("x-caller") == client.address


class TestRedirect:
    @staticmethod
    def to(redirect: str, path: str = "/old") -> str:
        return RULES.add(f"- match: [{{uri: {{prefix: {path}}}}}]\n  redirect: {{{redirect}}}\n- {TO_APP}")

    URI = to("uri: /new")
    BOTH = to("uri: /new, authority: other.test")
    AUTHORITY = to("authority: other.test")
    SCHEME = to("scheme: https")
    PORT = to("port: 8443")
    ALL = to("uri: /new, authority: other.test, port: 8443, scheme: https")
    REQUEST_PORT = to("authority: other.test, derivePort: FROM_REQUEST_PORT")
    DEFAULT_PORT = to("authority: other.test, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT")
    PREFIX = to("prefixRewrite: /new")
    STRIPPED = to("authority: other.test, prefixRewrite: /", "/old/")

    @pytest.mark.parametrize(
        ("host", "path", "location"),
        [
            (URI, "/old/thing?x=1", "http://{host}/new?x=1"),
            (BOTH, "/old", "http://other.test/new"),
            (AUTHORITY, "/old/thing?x=1", "http://other.test/old/thing?x=1"),
            (SCHEME, "/old/thing", "https://{host}/old/thing"),
            (PORT, "/old", "http://{host}:8443/old"),
            (ALL, "/old", "https://other.test:8443/new"),
            (REQUEST_PORT, "/old", "http://other.test:80/old"),
            (DEFAULT_PORT, "/old", "https://other.test/old"),
            (PREFIX, "/old/thing?x=1", "http://{host}/new/thing?x=1"),
            (STRIPPED, "/old/thing", "http://other.test/thing"),
        ],
    )
    def test_location(self, client: Pod, host: str, path: str, location: str) -> None:
        reply = client.get(f"http://app{path}", host=host)
        assert (reply.status, reply.header("location")) == (301, location.format(host=host))

    def test_the_default_port_of_a_protocol(self, client: Pod) -> None:
        found = [client.get(f"http://double:9000/{path}").header("location") for path in ("default", "secure", "same")]
        assert found == ["http://double:80/x", "https://double:443/x", "http://double:9000/x"]

    def test_other_requests_are_forwarded(self, client: Pod) -> None:
        assert client.get("http://app/other", host=self.URI).status == 200

    CODES = {code: RULES.add(f"- redirect: {{uri: /new, redirectCode: {code}}}") for code in (301, 302, 303, 307, 308)}

    @pytest.mark.parametrize("code", CODES)
    def test_code(self, client: Pod, code: int) -> None:
        assert client.get("http://app/", host=self.CODES[code]).status == code


class TestDirectResponse:
    TEXT = RULES.add("- directResponse: {status: 503, body: {string: out of order}}\n  headers: {response: {set: {content-type: text/x}}}")
    BYTES = RULES.add("- directResponse: {status: 200, body: {bytes: AAEC}}")
    EMPTY = RULES.add("- directResponse: {status: 404}")

    def test_body(self, client: Pod) -> None:
        replies = [client.get("http://app/", host=host) for host in (self.TEXT, self.BYTES, self.EMPTY)]
        assert [(r.status, r.body) for r in replies] == [(503, "out of order"), (200, "\x00\x01\x02"), (404, "")]
        assert replies[0].header("content-type") == "text/x"


class TestRewrite:
    @staticmethod
    def of(match: str, rewrite: str) -> str:
        return RULES.add(f"- match: [{{uri: {{{match}}}}}]\n  rewrite: {{{rewrite}}}\n  {TO_V1}\n- {TO_V2}")

    PREFIX = of("prefix: /ratings", "uri: /v1/bookRatings")
    ROOT = of("prefix: /ratings/", "uri: /")
    EXACT = of("exact: /ratings", "uri: /new")
    REGEX = of("regex: '/r[a-z]+/.*'", "uri: /new")
    EVERYTHING = RULES.add(f"- rewrite: {{uri: /base/}}\n  {TO_V1}")
    GROUPS = of("prefix: /service", r"uriRegexRewrite: {match: '^/service/([^/]+)(/.*)$', rewrite: '/customprefix/\2/\1'}")
    CASELESS = of("prefix: /aaa", "uriRegexRewrite: {match: '(?i)/xxx/', rewrite: /yyy/}")

    @pytest.mark.parametrize(
        ("host", "path", "rewritten"),
        [
            (PREFIX, "/ratings/7?x=1", "/v1/bookRatings/7?x=1"),
            (PREFIX, "/ratings", "/v1/bookRatings"),
            (ROOT, "/ratings/7", "/7"),
            (EXACT, "/ratings?x=1", "/new?x=1"),
            (REGEX, "/ratings/7?x=1", "/new?x=1"),
            (EVERYTHING, "/a/b", "/base/a/b"),
            (GROUPS, "/service/update/v1/api", "/customprefix//v1/api/update"),
            (CASELESS, "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            (PREFIX, "/other", "/other"),
        ],
    )
    def test_path(self, client: Pod, host: str, path: str, rewritten: str) -> None:
        call = client.get(f"http://app{path}", host=host).call
        assert call is not None
        assert call.path == rewritten

    AUTHORITY = of("prefix: /", "authority: other.example.com")
    OVER_HEADERS = RULES.add(f"- rewrite: {{authority: rewritten.test}}\n  headers: {{request: {{set: {{host: header.test}}}}}}\n  {TO_V1}")

    @pytest.mark.parametrize(("host", "authority"), [(AUTHORITY, "other.example.com"), (OVER_HEADERS, "rewritten.test")])
    def test_authority(self, client: Pod, host: str, authority: str) -> None:
        call = client.get("http://app/", host=host).call
        assert call is not None
        assert call.authority == authority
