"""YAML as Kubernetes' tools read it, with the line of each field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.objects.documents import documents, parts
from xds.objects.paths import below, steps


def values(text: str) -> list[Any]:
    return [d.value for d in documents(text, "a.yaml")]


class TestScalars:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("yes", True),
            ("Off", False),
            ("y", "y"),
            ("~", None),
            ("", None),
            ("0x10", 16),
            ("010", 8),
            ("0o10", 8),
            ("1_000", 1000),
            ("1e3", 1000.0),
            (".5", 0.5),
            ("-.inf", float("-inf")),
            ("12:30:00", "12:30:00"),
            ("2024-01-01", "2024-01-01"),
            ("1.2.3", "1.2.3"),
            ("'5'", "5"),
            ("5s", "5s"),
        ],
    )
    def test_plain_ones(self, text: str, value: Any) -> None:
        assert values(f"a: {text}") == [{"a": value}]

    def test_keys_are_strings(self) -> None:
        assert values("{1: a, yes: b}") == [{"1": "a", "yes": "b"}]


class TestDocuments:
    def test_empty_ones_and_comments_are_none(self) -> None:
        assert values("# nothing\n---\n---\n# still nothing\n---\na: 1\n...\n") == [{"a": 1}]

    def test_one_that_is_not_yaml_harms_only_itself(self) -> None:
        first, second, third = documents("a: 1\n---\n}\n---\nb: 2\n", "a.yaml")
        assert (first.value, third.value) == ({"a": 1}, {"b": 2})
        assert [(p.where, p.reason.startswith("not YAML")) for p in second.problems] == [("a.yaml:3", True)]

    def test_lists_come_apart(self) -> None:
        assert values("kind: List\nitems:\n- a: 1\n- b: 2\n") == [{"a": 1}, {"b": 2}]

    def test_lines_are_of_the_file(self) -> None:
        _, second = documents("a: 1\n---\nb:\n- c: 2\n- d: {e: 3}\n", "a.yaml")
        assert [second.where(f) for f in ("$", "$.b", "$.b[1]", "$.b[1].d.e", "$.b[1].nope", "$.nope")] == [
            f"a.yaml:{n}" for n in (3, 3, 5, 5, 5, 3)
        ]

    def test_a_key_given_twice_is_told(self) -> None:
        (document,) = documents("a: 1\nb: {c: 1, c: 2}\na: 3\n", "a.yaml")
        assert document.value == {"a": 3, "b": {"c": 2}}
        assert [str(p) for p in document.problems] == [
            "a.yaml:2: $.b.c: given twice; the last one counts",
            "a.yaml:3: $.a: given twice; the last one counts",
        ]

    def test_aliases_and_merges(self) -> None:
        assert values("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == [{"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}]

    @pytest.mark.parametrize(
        "text",
        ["[" * 2000, "a: &a [*a]", "\n".join(["a0: &a0 x"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 20)}]" for i in range(1, 9)])],
        ids=["deep", "endless", "aliases of aliases"],
    )
    def test_what_would_never_end_is_refused(self, text: str) -> None:
        (document,) = documents(text, "a.yaml")
        assert document.node is None
        assert document.problems

    @given(st.text())
    def test_any_text_is_taken_apart_without_loss(self, text: str) -> None:
        found = list(documents(text, "a.yaml"))
        assert all(d.where("$").startswith("a.yaml:") for d in found)
        lines = text.split("\n")
        for line, part in parts(text):
            assert part.split("\n")[0] in lines[line]


class TestPaths:
    @given(st.lists(st.integers(0, 10**6) | st.text()))
    def test_steps_take_apart_what_below_made(self, way: list[int | str]) -> None:
        path = "$"
        for step in way:
            path = below(path, step)
        assert list(steps(path)) == way

    def test_how_they_look(self) -> None:
        assert below(below(below("$", "headers"), "x-user"), "a.b") == '$.headers.x-user["a.b"]'
