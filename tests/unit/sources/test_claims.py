"""Which document speaks for an object, and when it is gone."""

from typing import Any

from xds.errors import Problem
from xds.objects import ConfigMap, ObjectMeta
from xds.objects.decoding import Decoded
from xds.objects.meta import Ref
from xds.sources.changes import Change
from xds.sources.claims import Claims, file_ref

PATIENCE = 5.0
THING = Ref("ConfigMap", "default", "thing")


def document(value: str, where: str, ref: Ref = THING) -> Decoded:
    return Decoded(ref, ConfigMap(ObjectMeta(ref.name, ref.namespace), data={"key": value}), where=where)


def value(change: Change) -> Any:
    assert isinstance(change.object, ConfigMap)
    return change.object.data["key"]


def settle(claims: Claims, now: float = 0.0) -> list[Change]:
    return list(claims.settle(now))


def test_a_document_is_told_once() -> None:
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("1", "a.yaml:1")])
    assert [value(change) for change in settle(claims)] == ["1"]
    claims.replace("a.yaml", [document("1", "a.yaml:1")])
    assert settle(claims) == []


def test_the_first_file_in_sorted_order_has_the_object_and_both_are_named() -> None:
    claims = Claims(PATIENCE)
    claims.replace("b.yaml", [document("b", "b.yaml:7")])
    settle(claims)
    claims.replace("a.yaml", [document("a", "a.yaml:3")])
    (change,) = settle(claims)
    assert value(change) == "a"
    assert [(problem.where, problem.warning) for problem in change.problems] == [("a.yaml:3", True)]
    assert "b.yaml:7" in change.problems[0].reason


def test_a_file_that_has_an_object_twice_is_its_own_rival() -> None:
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("1", "a.yaml:1"), document("2", "a.yaml:9")])
    (change,) = settle(claims)
    assert value(change) == "1"
    assert "a.yaml:9" in change.problems[0].reason


def test_a_rival_takes_over_at_once_without_a_deletion() -> None:
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("a", "a.yaml:1")])
    claims.replace("b.yaml", [document("b", "b.yaml:1")])
    settle(claims)
    claims.replace("a.yaml", [])
    (change,) = settle(claims)
    assert value(change) == "b"
    assert change.problems == ()


def test_what_vanishes_is_deleted_after_the_patience() -> None:
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("a", "a.yaml:1")])
    settle(claims)
    assert claims.due is None
    claims.replace("a.yaml", [])
    assert settle(claims, 100) == []
    assert claims.due == 100 + PATIENCE
    assert settle(claims, 100 + PATIENCE) == [Change(THING)]
    assert claims.due is None


def test_what_changes_with_a_deletion_waits_for_it() -> None:
    other = Ref("ConfigMap", "default", "other")
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("a", "a.yaml:1"), document("1", "a.yaml:5", other)])
    settle(claims)
    claims.replace("a.yaml", [document("2", "a.yaml:1", other)])
    assert settle(claims, 100) == []
    changed, deleted = settle(claims, 100 + PATIENCE)
    assert (changed.ref, value(changed)) == (other, "2")
    assert deleted == Change(THING)
    claims.replace("a.yaml", [document("3", "a.yaml:1", other)])
    assert [value(change) for change in settle(claims, 200)] == ["3"]


def test_an_object_that_moves_to_another_file_is_not_deleted_in_between() -> None:
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("a", "a.yaml:1")])
    settle(claims)
    claims.replace("a.yaml", [])
    assert settle(claims, 100) == []
    claims.replace("b.yaml", [document("b", "b.yaml:1")])
    assert [value(change) for change in settle(claims, 101)] == ["b"]
    assert settle(claims, 200) == []


def test_an_unreadable_document_keeps_what_its_file_had_and_lets_the_rest_change() -> None:
    other = Ref("ConfigMap", "default", "other")
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("1", "a.yaml:1"), document("1", "a.yaml:5", other)])
    settle(claims)
    broken = Problem("$", "not YAML", "a.yaml:2")
    claims.replace("a.yaml", [Decoded(problems=(broken,), where="a.yaml:1"), document("2", "a.yaml:5", other)])
    changes = {change.ref: change for change in settle(claims)}
    assert changes.keys() == {other, file_ref("a.yaml")}
    assert value(changes[other]) == "2"
    assert changes[file_ref("a.yaml")].problems == (broken,)
    claims.replace("a.yaml", [document("1", "a.yaml:1"), document("2", "a.yaml:5", other)])
    assert settle(claims, 100) == []
    assert settle(claims, 100 + PATIENCE) == [Change(file_ref("a.yaml"))]


def test_an_unusable_document_of_the_first_file_does_not_let_the_second_in() -> None:
    claims = Claims(PATIENCE)
    claims.replace("a.yaml", [document("a", "a.yaml:1")])
    claims.replace("b.yaml", [document("b", "b.yaml:1")])
    settle(claims)
    claims.replace("a.yaml", [Decoded(THING, problems=(Problem("$.data", "is wrong", "a.yaml:2"),), where="a.yaml:1")])
    (change,) = settle(claims)
    assert change.invalid
