"""From documents to objects, and what is said of those that are wrong."""

from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xds.objects import KINDS
from xds.objects.decoding import Decoded, from_json, from_yaml
from xds.objects.meta import Ref

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - timeout: 5s
    route:
    - destination: {host: reviews}
"""


words = st.text(st.characters(min_codepoint=32, max_codepoint=126))
scalars = st.none() | st.booleans() | st.floats() | st.integers() | words


BALANCERS = "UNSPECIFIED, LEAST_CONN, RANDOM, PASSTHROUGH, ROUND_ROBIN, LEAST_REQUEST"


def only(text: str, path: str = "rules.yaml") -> Decoded:
    (decoded,) = from_yaml(text, path)
    return decoded


def said(decoded: Decoded) -> list[str]:
    return list(map(str, decoded.problems))


def of(kind: str, spec: Any, **metadata: Any) -> dict[str, Any]:
    """A document of `kind` with this spec."""
    meta = {"name": "it", "namespace": "default", **metadata}
    return {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": meta, "spec": spec}


def both(document: dict[str, Any]) -> Decoded:
    """The document decoded as from a file; the API server's way must come to the same."""
    found = only(msgspec.json.encode(document).decode())
    direct = from_json(msgspec.json.encode(document), KINDS[document["kind"]])
    assert direct.object == found.object
    assert {(p.field, p.reason, p.warning) for p in direct.problems} == {(p.field, p.reason, p.warning) for p in found.problems}
    return found


class TestGood:
    def test_an_object_of_a_file(self) -> None:
        decoded = only(RULE)
        assert (decoded.ref, decoded.problems, decoded.where) == (Ref("VirtualService", "shop", "reviews"), (), "rules.yaml:1")
        found: Any = decoded.object
        assert found.spec.http[0].timeout.total_seconds() == 5

    def test_json_is_yaml(self) -> None:
        text = msgspec.json.encode(yaml.safe_load(RULE)).decode()
        assert only(text, "rules.json").object == only(RULE).object

    def test_the_server_s_way_comes_to_the_same(self) -> None:
        assert both(yaml.safe_load(RULE)).problems == ()

    @pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
    def test_all_versions_are_alike(self, version: str) -> None:
        assert only(RULE.replace("/v1\n", f"/{version}\n")).object == only(RULE).object

    def test_no_namespace_is_the_default_one(self) -> None:
        decoded = only(RULE.replace(", namespace: shop", ""))
        assert decoded.ref == Ref("VirtualService", "default", "reviews")
        assert decoded.object is not None
        assert decoded.object.meta.namespace == "default"

    def test_cluster_scoped_kinds_have_none(self) -> None:
        decoded = only("{apiVersion: v1, kind: Node, metadata: {name: a, namespace: b}}")
        assert decoded.ref == Ref("Node", "", "a")

    def test_null_is_absent(self) -> None:
        document = yaml.safe_load(RULE)
        document["spec"]["http"][0]["retries"] = None
        assert both(document).object == only(RULE).object

    def test_numbers_may_be_quoted_and_whole_numbers_may_be_written_as_fractions(self) -> None:
        route = [{"destination": {"host": "a"}, "weight": "40"}, {"destination": {"host": "b"}, "weight": 60.0}]
        decoded = both(of("VirtualService", {"hosts": ["a"], "http": [{"route": route}]}))
        assert decoded.problems == ()
        found: Any = decoded.object
        assert [d.weight for d in found.spec.http[0].route] == [40, 60]


class TestWrong:
    def test_a_bad_value_names_field_and_line(self) -> None:
        decoded = only(RULE.replace("5s", "5 seconds"))
        assert decoded.object is None
        assert decoded.ref == Ref("VirtualService", "shop", "reviews")
        assert said(decoded) == [
            "rules.yaml:7: $.spec.http[0].timeout: must be a duration such as 5s, 100ms or 1h30m; it is `5 seconds`"
        ]

    def test_an_unknown_field_is_a_warning_with_advice(self) -> None:
        decoded = only(RULE.replace("timeout: 5s", "timeOut: 5s"))
        assert decoded.object is not None
        assert [(str(p), p.warning) for p in decoded.problems] == [
            ("rules.yaml:7: $.spec.http[0].timeOut: unknown field; did you mean `timeout`?", True)
        ]

    def test_one_beside_spec_is_told_too(self) -> None:
        document = {**yaml.safe_load(RULE), "spce": {}}
        assert [p.field for p in only(yaml.safe_dump(document)).problems] == ["$.spce"]

    def test_unknown_fields_of_kubernetes_kinds_are_not_ours_to_judge(self) -> None:
        assert both(of("Service", {"ports": [{"port": 80}], "newField": 1})).problems == ()

    def test_everything_is_told_at_once(self) -> None:
        spec = {"hosts": "reviews", "http": [{"route": [{"weight": "a lot", "destination": {}}], "retry": {}}]}
        decoded = both(of("VirtualService", spec))
        assert {p.field for p in decoded.problems} == {
            "$.spec.hosts",
            "$.spec.http[0].route[0].weight",
            "$.spec.http[0].route[0].destination.host",
            "$.spec.http[0].retry",
        }

    @pytest.mark.parametrize(
        ("spec", "problem"),
        [
            ({"host": 5}, "$.spec.host: must be a string; it is 5; quote it"),
            ({"host": None}, "$.spec.host: is required"),
            ({}, "$.spec.host: is required"),
            ("text", "$.spec: must be an object; it is `text`"),
            ({"host": "a", "subsets": {}}, "$.spec.subsets: must be a list; it is an object"),
            ({"host": "a", "subsets": [None]}, "$.spec.subsets[0]: must not be null"),
            (
                {"host": "a", "subsets": [{"name": "v1", "labels": {"a": 1}}]},
                "$.spec.subsets[0].labels.a: must be a string; it is 1; quote it",
            ),
            (
                {"host": "a", "trafficPolicy": {"loadBalancer": {"simple": "FASTEST"}}},
                f"$.spec.trafficPolicy.loadBalancer.simple: must be one of {BALANCERS}; it is `FASTEST`",
            ),
            (
                {"host": "a", "trafficPolicy": {"tls": {"insecureSkipVerify": "yes"}}},
                "$.spec.trafficPolicy.tls.insecureSkipVerify: must be true or false; it is `yes`",
            ),
        ],
    )
    def test_values_that_do_not_fit(self, spec: Any, problem: str) -> None:
        decoded = both(of("DestinationRule", spec))
        assert decoded.object is None
        assert [f"{p.field}: {p.reason}" for p in decoded.problems] == [problem]

    @pytest.mark.parametrize(
        ("value", "good"),
        [(2**32 - 1, True), (2**32, False), (-1, False), (1.5, False), (True, False), ("12", True), ("1e3", False), (2**70, False)],
    )
    def test_unsigned_integers(self, value: Any, good: bool) -> None:
        policy = {"outlierDetection": {"consecutive5xxErrors": value}}
        assert (both(of("DestinationRule", {"host": "a", "trafficPolicy": policy})).object is not None) is good

    @pytest.mark.parametrize(("value", "good"), [(2**31 - 1, True), (2**31, False), (-(2**31), True), (-(2**31) - 1, False)])
    def test_signed_integers(self, value: int, good: bool) -> None:
        policy = {"outlierDetection": {"consecutiveErrors": value}}
        assert (both(of("DestinationRule", {"host": "a", "trafficPolicy": policy})).object is not None) is good

    @pytest.mark.parametrize(
        ("document", "field"),
        [
            ({"kind": "Service"}, "$.apiVersion"),
            ({"apiVersion": "v1"}, "$.kind"),
            ({"apiVersion": "networking.istio.io/v9", "kind": "VirtualService", "metadata": {"name": "a"}}, "$.apiVersion"),
            ({"apiVersion": "v1", "kind": "Service"}, "$.metadata"),
            ({"apiVersion": "v1", "kind": "Service", "metadata": {}}, "$.metadata.name"),
            ({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "A_b"}}, "$.metadata.name"),
            ({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "a.b"}}, "$.metadata.namespace"),
            ("just text", "$"),
            (["a", "list"], "$"),
        ],
    )
    def test_what_is_no_object(self, document: Any, field: str) -> None:
        decoded = only(yaml.safe_dump(document))
        assert decoded.object is None
        assert [(p.field, p.warning) for p in decoded.problems] == [(field, False)]

    @pytest.mark.parametrize("kind", ["apps/v1, kind: Deployment", "example.com/v1, kind: Service"])
    def test_kinds_that_are_not_ours_are_passed_over(self, kind: str) -> None:
        decoded = only(f"{{apiVersion: {kind}, metadata: {{name: a}}}}")
        assert (decoded.object, decoded.ref) == (None, None)
        assert all(p.warning for p in decoded.problems)

    def test_a_server_that_sends_no_json(self) -> None:
        assert said(from_json(b"<html>", KINDS["Pod"]))[0].startswith("$: not JSON")

    @given(st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(words, v)))
    def test_nothing_that_can_be_written_breaks_it(self, value: Any) -> None:
        for kind in KINDS.values():
            document = {"apiVersion": kind.api_versions[0], "kind": kind.kind, "metadata": {"name": "a"}, "spec": value}
            raw = msgspec.json.encode(document)
            decoded = from_json(raw, kind)
            assert decoded.object is not None or any(not p.warning for p in decoded.problems)
            (filed,) = from_yaml(raw.decode(), "a.json")
            assert (filed.object is None) == (decoded.object is None)
