"""VirtualService `http[].match`: which requests a rule takes."""

import pytest
from support.traffic import Mesh, Pod
from support.traffic_rules import TO_V1, TO_V2, Rules

RULES = Rules("matches")


@pytest.fixture(scope="module")
def client(shared: Mesh) -> Pod:
    RULES.apply(shared)
    return shared.pod("client", {"tier": "front"})


def taken(client: Pod, host: str, path: str = "/", headers: dict[str, str] | None = None, method: str = "GET") -> bool:
    """Whether the rule's match took the request."""
    reply = client.get(f"http://app{path}", headers, host=host, method=method)
    assert reply.status == 200
    return reply.server == "app-v2"


class TestUri:
    EXACT = RULES.matching("[{uri: {exact: /api}}]")
    PREFIX = RULES.matching("[{uri: {prefix: /api}}]")
    SLASHED = RULES.matching("[{uri: {prefix: /api/}}]")
    REGEX = RULES.matching("[{uri: {regex: '/v[0-9]+/.*'}}]")
    CASELESS_REGEX = RULES.matching("[{uri: {regex: '(?i)/shop'}}]")
    EXACT_ANY_CASE = RULES.matching("[{uri: {exact: /Api}, ignoreUriCase: true}]")
    PREFIX_ANY_CASE = RULES.matching("[{uri: {prefix: /Api/v1}, ignoreUriCase: true}]")
    REGEX_ANY_CASE = RULES.matching("[{uri: {regex: '/api'}, ignoreUriCase: true}]")

    @pytest.mark.parametrize(
        ("host", "path", "expected"),
        [
            (EXACT, "/api", True),
            (EXACT, "/api?x=1", True),
            (EXACT, "/api/", False),
            (EXACT, "/apis", False),
            (EXACT, "/API", False),
            (PREFIX, "/api", True),
            (PREFIX, "/api/x?y=/", True),
            (PREFIX, "/apis", True),
            (PREFIX, "/Api", False),
            (PREFIX, "/x/api", False),
            (SLASHED, "/api", False),
            (SLASHED, "/api/", True),
            (REGEX, "/v12/things", True),
            (REGEX, "/v12/things?q=1", True),
            (REGEX, "/v12", False),
            (REGEX, "/x/v12/things", False),
            (CASELESS_REGEX, "/SHOP", True),
            (CASELESS_REGEX, "/SHOPS", False),
            (EXACT_ANY_CASE, "/aPI", True),
            (EXACT_ANY_CASE, "/aPI/", False),
            (PREFIX_ANY_CASE, "/API/V1/x", True),
            (REGEX_ANY_CASE, "/API", False),
            (REGEX_ANY_CASE, "/api", True),
        ],
    )
    def test_uri(self, client: Pod, host: str, path: str, expected: bool) -> None:
        assert taken(client, host, path) == expected


class TestPseudoHeaders:
    METHOD = RULES.matching("[{method: {exact: POST}}]")
    METHOD_PREFIX = RULES.matching("[{method: {prefix: P}}]")
    METHOD_REGEX = RULES.matching("[{method: {regex: 'PUT|DELETE'}}]")
    SCHEME = RULES.matching("[{scheme: {exact: http}}]")
    SECURE = RULES.matching("[{scheme: {exact: https}}]")

    @pytest.mark.parametrize(
        ("host", "method", "expected"),
        [
            (METHOD, "POST", True),
            (METHOD, "GET", False),
            (METHOD, "PATCH", False),
            (METHOD_PREFIX, "PATCH", True),
            (METHOD_PREFIX, "GET", False),
            (METHOD_REGEX, "DELETE", True),
            (METHOD_REGEX, "PUT", True),
            (METHOD_REGEX, "POST", False),
        ],
    )
    def test_method(self, client: Pod, host: str, method: str, expected: bool) -> None:
        assert taken(client, host, method=method) == expected

    def test_scheme(self, client: Pod) -> None:
        assert taken(client, self.SCHEME)
        assert not taken(client, self.SECURE)

    AUTHORITY = RULES.add(
        f"- match: [{{authority: {{exact: a.many.test}}}}, {{authority: {{regex: 'c[0-9]\\.many\\.test'}}}}, "
        f"{{authority: {{prefix: b}}}}]\n  {TO_V2}\n- {TO_V1}",
        hosts=["*.many.test"],
    )

    @pytest.mark.parametrize(
        ("host", "expected"),
        [("a.many.test", True), ("b-x.many.test", True), ("c1.many.test", True), ("c10.many.test", False), ("ab.many.test", False)],
    )
    def test_authority(self, client: Pod, host: str, expected: bool) -> None:
        assert taken(client, host) == expected


class TestHeaders:
    EXACT = RULES.matching("[{headers: {end-user: {exact: jason}}}]")
    PREFIX = RULES.matching("[{headers: {end-user: {prefix: ja}}}]")
    REGEX = RULES.matching("[{headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}]")
    PRESENT = RULES.matching("[{headers: {end-user: {}}}]")
    EMPTY = RULES.matching("[{headers: {end-user: {exact: ''}}}]")
    STAR = RULES.matching("[{headers: {end-user: {regex: '*'}}}]")
    UPPER = RULES.matching("[{headers: {End-User: {exact: jason}}}]")
    BOTH = RULES.matching("[{headers: {x-a: {exact: a}, x-b: {exact: b}}}]")
    RESERVED = RULES.matching("[{headers: {uri: {exact: /nowhere}, method: {exact: PUT}, scheme: {exact: x}, authority: {exact: x}}}]")

    @pytest.mark.parametrize(
        ("host", "headers", "expected"),
        [
            (EXACT, {"end-user": "jason"}, True),
            (EXACT, {"END-USER": "jason"}, True),
            (EXACT, {"end-user": "Jason"}, False),
            (EXACT, {"end-user": "jasons"}, False),
            (EXACT, {}, False),
            (PREFIX, {"end-user": "jason"}, True),
            (PREFIX, {"end-user": "Jason"}, False),
            (REGEX, {"cookie": "a=b;user=jason"}, True),
            (REGEX, {"cookie": "user=jasons"}, False),
            (PRESENT, {"end-user": "anyone"}, True),
            (PRESENT, {"end-user": ""}, True),
            (PRESENT, {}, False),
            (EMPTY, {"end-user": ""}, True),
            (EMPTY, {"end-user": "x"}, False),
            (EMPTY, {}, False),
            (STAR, {"end-user": "x"}, True),
            (STAR, {}, False),
            (UPPER, {"end-user": "jason"}, True),
            (BOTH, {"x-a": "a", "x-b": "b"}, True),
            (BOTH, {"x-a": "a"}, False),
            (RESERVED, {}, True),
        ],
    )
    def test_headers(self, client: Pod, host: str, headers: dict[str, str], expected: bool) -> None:
        assert taken(client, host, headers=headers) == expected

    WITHOUT = RULES.matching("[{withoutHeaders: {x-debug: {}}}]")
    WITHOUT_VALUE = RULES.matching("[{withoutHeaders: {x-debug: {exact: 'on'}}}]")
    WITHOUT_PREFIX = RULES.matching("[{withoutHeaders: {x-debug: {prefix: o}}}]")
    WITHOUT_REGEX = RULES.matching("[{withoutHeaders: {x-debug: {regex: 'o.*'}}}]")
    WITH_AND_WITHOUT = RULES.matching("[{headers: {x-user: {}}, withoutHeaders: {x-debug: {}, x-trace: {}}}]")

    @pytest.mark.parametrize(
        ("host", "headers", "expected"),
        [
            (WITHOUT, {}, True),
            (WITHOUT, {"x-debug": "x"}, False),
            (WITHOUT, {"x-debug": ""}, False),
            (WITHOUT_VALUE, {}, True),
            (WITHOUT_VALUE, {"x-debug": "on"}, False),
            (WITHOUT_VALUE, {"x-debug": "off"}, True),
            (WITHOUT_PREFIX, {}, True),
            (WITHOUT_PREFIX, {"x-debug": "off"}, False),
            (WITHOUT_PREFIX, {"x-debug": "x"}, True),
            (WITHOUT_REGEX, {}, True),
            (WITHOUT_REGEX, {"x-debug": "on"}, False),
            (WITH_AND_WITHOUT, {"x-user": "a"}, True),
            (WITH_AND_WITHOUT, {}, False),
            (WITH_AND_WITHOUT, {"x-user": "a", "x-trace": "1"}, False),
        ],
    )
    def test_without_headers(self, client: Pod, host: str, headers: dict[str, str], expected: bool) -> None:
        assert taken(client, host, headers=headers) == expected


class TestQueryParameters:
    EXACT = RULES.matching("[{queryParams: {key: {exact: 'true'}}}]")
    FLAG = RULES.matching("[{queryParams: {key: {exact: ''}}}]")
    PREFIX = RULES.matching("[{queryParams: {key: {prefix: ab}}}]")
    REGEX = RULES.matching(r"[{queryParams: {key: {regex: '\d+$'}}}]")
    PRESENT = RULES.matching("[{queryParams: {key: {}}}]")
    BOTH = RULES.matching("[{queryParams: {a: {exact: '1'}, b: {exact: '2'}}}]")

    @pytest.mark.parametrize(
        ("host", "query", "expected"),
        [
            (EXACT, "key=true", True),
            (EXACT, "a=b&key=true", True),
            (EXACT, "key=True", False),
            (EXACT, "key=false", False),
            (EXACT, "KEY=true", False),
            (EXACT, "", False),
            (FLAG, "key", True),
            (FLAG, "key=", True),
            (FLAG, "key=1", False),
            (FLAG, "other", False),
            (PREFIX, "key=abc", True),
            (PREFIX, "key=abx", True),
            (PREFIX, "key=a", False),
            (REGEX, "key=123", True),
            (REGEX, "key=a123", False),
            (REGEX, "key=123a", False),
            (PRESENT, "key", True),
            (PRESENT, "key=1", True),
            (PRESENT, "keys=1", False),
            (BOTH, "b=2&a=1", True),
            (BOTH, "a=1", False),
        ],
    )
    def test_query_parameters(self, client: Pod, host: str, query: str, expected: bool) -> None:
        assert taken(client, host, f"/?{query}" if query else "/") == expected


class TestTogether:
    AND = RULES.matching("[{uri: {prefix: /api}, headers: {x-user: {exact: a}}, method: {exact: GET}, queryParams: {q: {}}}]")
    OR = RULES.matching("[{uri: {exact: /a}}, {headers: {x-b: {}}}, {uri: {exact: /c}, method: {exact: PUT}}]")

    @pytest.mark.parametrize(
        ("host", "path", "headers", "method", "expected"),
        [
            (AND, "/api?q=1", {"x-user": "a"}, "GET", True),
            (AND, "/api", {"x-user": "a"}, "GET", False),
            (AND, "/api?q=1", {}, "GET", False),
            (AND, "/api?q=1", {"x-user": "a"}, "PUT", False),
            (AND, "/?q=1", {"x-user": "a"}, "GET", False),
            (OR, "/a", {}, "GET", True),
            (OR, "/b", {"x-b": "1"}, "GET", True),
            (OR, "/c", {}, "PUT", True),
            (OR, "/c", {}, "GET", False),
        ],
    )
    def test_conditions_of_a_block_all_hold_and_one_block_is_enough(
        self, client: Pod, host: str, path: str, headers: dict[str, str], method: str, expected: bool
    ) -> None:
        assert taken(client, host, path, headers, method) == expected

    ORDER = RULES.add(f"- match: [{{uri: {{prefix: /}}}}]\n  {TO_V1}\n- match: [{{uri: {{exact: /special}}}}]\n  {TO_V2}")
    UNMATCHED = RULES.add(f"- match: [{{uri: {{exact: /only}}}}]\n  {TO_V1}")
    EVERYTHING = RULES.add(f"- match: [{{}}]\n  {TO_V2}\n- {TO_V1}")

    def test_the_first_rule_that_matches_is_used(self, client: Pod) -> None:
        assert client.get("http://app/special", host=self.ORDER).server == "app-v1"

    def test_what_no_rule_matches_is_not_found(self, client: Pod) -> None:
        assert client.get("http://app/only", host=self.UNMATCHED).server == "app-v1"
        assert client.get("http://app/other", host=self.UNMATCHED).status == 404

    def test_an_empty_match_takes_everything(self, client: Pod) -> None:
        assert client.get("http://app/any", host=self.EVERYTHING).server == "app-v2"


class TestSource:
    """Conditions on the caller and the port: a rule that they exclude is not there for this proxy."""

    @staticmethod
    def one_of(condition: str) -> str:
        return RULES.matching(f"[{{{condition}}}]")

    LABELLED = one_of("sourceLabels: {tier: front}")
    UNLABELLED = one_of("sourceLabels: {tier: back}")
    HALF_LABELLED = one_of("sourceLabels: {tier: front, app: other}")
    ELSEWHERE = one_of("sourceNamespace: elsewhere")
    PORT = one_of("port: 80")
    OTHER_PORT = one_of("port: 8080")
    MESH = one_of("gateways: [mesh]")
    MESH_TOO = one_of("gateways: [edge, mesh]")
    GATEWAY = one_of("gateways: [edge]")
    MESH_AND_LABELS = one_of("gateways: [mesh], sourceLabels: {tier: front}")
    MESH_AND_OTHER_LABELS = one_of("gateways: [mesh], sourceLabels: {tier: back}")
    LABELLED_PATH = one_of("sourceLabels: {tier: front}, uri: {prefix: /a}")

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            (LABELLED, True),
            (UNLABELLED, False),
            (HALF_LABELLED, False),
            (ELSEWHERE, False),
            (PORT, True),
            (OTHER_PORT, False),
            (MESH, True),
            (MESH_TOO, True),
            (GATEWAY, False),
            (MESH_AND_LABELS, True),
            (MESH_AND_OTHER_LABELS, False),
            (LABELLED_PATH, False),
        ],
    )
    def test_conditions(self, client: Pod, host: str, expected: bool) -> None:
        assert taken(client, host) == expected

    def test_together_with_conditions_on_the_request(self, client: Pod) -> None:
        assert taken(client, self.LABELLED_PATH, "/a")


class TestStatistics:
    COUNTED = RULES.add(f"- match: [{{uri: {{prefix: /counted}}, statPrefix: counted}}]\n  {TO_V1}\n- {TO_V1}")

    def test_stat_prefix_counts_the_requests_of_a_rule(self, client: Pod) -> None:
        for path in ("/counted", "/other", "/counted/more"):
            client.get(f"http://app{path}", host=self.COUNTED)
        found = client.admin("/stats?filter=route.counted.upstream_rq_total")[1].split()
        assert found[-1:] == ["2"]
