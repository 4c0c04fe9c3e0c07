"""Which nodes a NodeMatcher matches: `envoy/type/matcher/v3/{node,struct,value,string,number}.proto`."""

from typing import Any

import pytest

from xds import pb
from xds.discovery import matching
from xds.errors import ProtocolError

NodeMatcher: Any = pb.message_class("envoy.type.matcher.v3.NodeMatcher")

METADATA = {
    "name": "Reviews",
    "weight": 3.0,
    "canary": True,
    "stable": False,
    "nothing": None,
    "tags": ["a", 2.0, None],
    "empty": [],
    "labels": {"app": {"version": "v2"}},
}


def matches(*matchers: Any, node: str = "sidecar~1~reviews.default", metadata: Any = METADATA) -> bool:
    return matching.nodes([NodeMatcher(**each) for each in matchers])(node, metadata)


def value(path: str, **fields: Any) -> dict[str, Any]:
    return {"node_metadatas": [{"path": [{"key": key} for key in path.split("/")], "value": fields}]}


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        ({"exact": "sidecar~1~reviews.default"}, True),
        ({"exact": "SIDECAR~1~reviews.default"}, False),
        ({"exact": "SIDECAR~1~reviews.default", "ignore_case": True}, True),
        ({"prefix": "sidecar"}, True),
        ({"prefix": "1"}, False),
        ({"suffix": ".default"}, True),
        ({"contains": "REVIEWS", "ignore_case": True}, True),
        ({"contains": "ratings"}, False),
        ({"safe_regex": {"regex": r"sidecar~\d~.*"}}, True),
        ({"safe_regex": {"regex": r"sidecar~\d"}}, False),
    ],
)
def test_ids_are_matched_whole_or_in_part(pattern: dict[str, Any], answer: bool) -> None:
    assert matches({"node_id": pattern}) is answer


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        ("name", {"string_match": {"exact": "Reviews"}}, True),
        ("weight", {"string_match": {"exact": "3"}}, False),
        ("labels/app/version", {"string_match": {"prefix": "v"}}, True),
        ("labels/app/version/deeper", {"string_match": {"prefix": ""}}, False),
        ("labels/other/version", {"string_match": {"prefix": ""}}, False),
        ("weight", {"double_match": {"exact": 3}}, True),
        ("weight", {"double_match": {"range": {"start": 3, "end": 4}}}, True),
        ("weight", {"double_match": {"range": {"start": 2, "end": 3}}}, False),
        ("canary", {"double_match": {"exact": 1}}, False),
        ("canary", {"bool_match": True}, True),
        ("stable", {"bool_match": False}, True),
        ("nothing", {"bool_match": False}, False),
        ("missing", {"bool_match": False}, False),
        ("nothing", {"null_match": {}}, True),
        ("missing", {"null_match": {}}, False),
        ("name", {"present_match": True}, True),
        ("nothing", {"present_match": True}, True),
        ("missing", {"present_match": True}, False),
        ("labels", {"present_match": True}, False),
        ("missing", {"present_match": False}, False),
        ("tags", {"list_match": {"one_of": {"string_match": {"exact": "a"}}}}, True),
        ("tags", {"list_match": {"one_of": {"double_match": {"exact": 2}}}}, True),
        ("tags", {"list_match": {"one_of": {"null_match": {}}}}, True),
        ("tags", {"list_match": {"one_of": {"string_match": {"exact": "b"}}}}, False),
        ("empty", {"list_match": {"one_of": {"present_match": True}}}, False),
        ("name", {"list_match": {"one_of": {"present_match": True}}}, False),
        ("weight", {"or_match": {"value_matchers": [{"null_match": {}}, {"double_match": {"exact": 3}}]}}, True),
        ("weight", {"or_match": {"value_matchers": [{"null_match": {}}, {"bool_match": True}]}}, False),
    ],
)
def test_metadata_is_matched_by_path_and_value(path: str, fields: dict[str, Any], answer: bool) -> None:
    assert matches(value(path, **fields)) is answer


def test_all_of_one_matcher_must_match() -> None:
    both = {"node_id": {"prefix": "sidecar"}, **value("canary", bool_match=True)}
    assert matches(both)
    assert not matches({**both, "node_id": {"prefix": "router"}})
    assert not matches({**both, **value("canary", bool_match=False)})
    two = {"node_metadatas": [*value("canary", bool_match=True)["node_metadatas"], *value("stable", bool_match=True)["node_metadatas"]]}
    assert not matches(two)


def test_one_of_several_matchers_is_enough_and_none_match_all() -> None:
    assert matches({"node_id": {"prefix": "router"}}, value("canary", bool_match=True))
    assert not matches({"node_id": {"prefix": "router"}}, value("canary", bool_match=False))
    assert matches()
    assert matches({})


@pytest.mark.parametrize(
    "matcher",
    [
        {"node_id": {}},
        {"node_id": {"custom": {"name": "mine"}}},
        {"node_id": {"safe_regex": {"regex": "("}}},
        {"node_id": {"safe_regex": {"regex": "((a{1,100}){1,100}){1,10}"}}},
        {"node_metadatas": [{}]},
        {"node_metadatas": [{"path": [{"key": "a"}]}]},
        {"node_metadatas": [{"path": [{}], "value": {"present_match": True}}]},
        value("a", double_match={}),
        value("a", list_match={}),
        value("a", or_match={"value_matchers": [{}]}),
    ],
)
def test_what_is_no_matcher_is_refused(matcher: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        matches(matcher)


def test_matchers_in_matchers_have_an_end() -> None:
    nested: dict[str, Any] = {"null_match": {}}
    for _ in range(matching.DEPTH_MAX):
        nested = {"list_match": {"one_of": nested}}
    matches(value("a", **nested))
    with pytest.raises(ProtocolError):
        matches(value("a", list_match={"one_of": nested}))
