"""Documents of a file: read once, as long as they stay what they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from xds import pb
from xds.discovery.authored import Entry, Parsed, parse
from xds.errors import Problem


def cluster(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": pb.type_url(pb.Cluster), "name": name, **fields}


def write(file: Path, *documents: object) -> None:
    file.write_text("\n---\n".join(document if isinstance(document, str) else json.dumps(document) for document in documents))


def names(parsed: Parsed) -> list[tuple[str, str]]:
    """Name and line of each resource."""
    return [(each.resource.name, each.where.rpartition(":")[2]) for each in parsed.found if isinstance(each, Entry)]


def test_a_document_that_stays_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    write(file, cluster("a"), cluster("b"))
    before = parse(file)
    write(file, cluster("a"), cluster("b", alt_stat_name="x"))
    after = parse(file, before)
    assert names(after) == [("a", "1"), ("b", "3")]
    first, second = (each for each in after.found if isinstance(each, Entry))
    (old, *_) = before.found
    assert isinstance(old, Entry)
    assert first.resource is old.resource
    assert b"x" in second.resource.body


def test_a_document_that_moves_knows_its_new_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    write(file, "# first", cluster("a"), cluster("b", connect_timeout="-1s"))
    before = parse(file)
    write(file, "# first\n#\n#", "# more", cluster("a"), cluster("b", connect_timeout="-1s"))
    after = parse(file, before)
    assert after == parse(file)
    (problem,) = (each for each in after.found if isinstance(each, Problem))
    assert (names(before), names(after)) == ([("a", "3")], [("a", "7")])
    assert problem.where == f"{file}:9"


def test_equal_documents_are_both_there(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(cluster("a")) + json.dumps(cluster("a")))
    assert names(parse(file, parse(file))) == [("a", "1"), ("a", "1")]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_the_items_of_a_list_are_resources_and_a_bad_one_harms_only_itself(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    items = [cluster("a"), {"resource": cluster("b"), "ttl": "30s"}, cluster("c", connect_timeout="-1s"), 7, cluster("d")]
    file.write_text("[\n" + ",\n".join(map(json.dumps, items)) + "\n]")
    parsed = parse(file)
    assert names(parsed) == [("a", "2"), ("b", "3"), ("d", "6")]
    problems = [(each.field, each.where) for each in parsed.found if isinstance(each, Problem)]
    assert problems == [("$[2].connect_timeout", f"{file}:4"), ("$[3]", f"{file}:5")]
