"""Files on a real disk, changed as editors, git and kubelets change them."""

import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.recorder import Recorder, asynchronous, following

from xds.errors import ConfigError
from xds.objects.meta import Ref
from xds.sources import files
from xds.sources.claims import file_ref
from xds.sources.files import Files


@pytest.fixture
def told_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at but what events tell of."""
    monkeypatch.setattr(files, "RESCAN_SECONDS", 3600.0)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is looked at often, as no event tells of what a link points to."""
    monkeypatch.setattr(files, "RESCAN_SECONDS", 0.2)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone from all files is waited for."""
    monkeypatch.setattr(files, "VANISH_SECONDS", 3600.0)


def rule(name: str, host: str = "reviews") -> str:
    return f"""\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec: {{host: {host}}}
"""


def ref(name: str) -> Ref:
    return Ref("DestinationRule", "default", name)


def host(seen: Recorder, name: str) -> Any:
    found = seen.objects.get(ref(name))
    return found and found.spec.host


async def settled(seen: Recorder, directory: Path) -> None:
    """Until the source has taken everything that was written so far, deletions too: it has taken and deleted another file."""
    marker = directory / "zzz.yaml"
    marker.write_text(rule("zzz"))
    await seen.until(lambda s: host(s, "zzz"), "the marker to be taken")
    marker.unlink()
    await seen.until(lambda s: host(s, "zzz") is None, "the marker to be deleted")


def test_a_path_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or directory"):
        asyncio.run(Files([tmp_path / "none"]).run(Recorder()))


@asynchronous
async def test_all_files_are_read_before_synced(tmp_path: Path) -> None:
    (tmp_path / "mesh" / "deep").mkdir(parents=True)
    (tmp_path / "mesh" / "a.yaml").write_text(f"{rule('a')}---\n{rule('b')}")
    (tmp_path / "mesh" / "deep" / "c.yml").write_text(rule("c"))
    kind = {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule"}
    (tmp_path / "mesh" / "d.json").write_text(json.dumps({**kind, "metadata": {"name": "d"}, "spec": {"host": "d"}}))
    (tmp_path / "single.txt").write_text(rule("single"))
    async with following(Files([tmp_path / "mesh", tmp_path / "single.txt"])) as seen:
        assert seen.synced_after == 1
        assert seen.objects.keys() == {ref(name) for name in ("a", "b", "c", "d", "single")}


@asynchronous
async def test_hidden_files_and_other_suffixes_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".git/a.yaml", ".b.yaml", "c.yaml~", "d.txt"):
        (tmp_path / name).write_text(rule(name[0]))
    (tmp_path / "e.yaml").write_text(rule("e"))
    async with following(Files([tmp_path])) as seen:
        assert seen.objects.keys() == {ref("e")}


@asynchronous
async def test_a_directory_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    (tmp_path / "loop").symlink_to(tmp_path)
    async with following(Files([tmp_path])) as seen:
        assert [change.ref for change in seen.changes] == [ref("a")]
        assert seen.problems == {}


@asynchronous
async def test_a_creation_timestamp_is_kept(tmp_path: Path) -> None:
    text = rule("a").replace("namespace: default", "namespace: default, creationTimestamp: 2020-01-02T03:04:05Z")
    (tmp_path / "a.yaml").write_text(text)
    async with following(Files([tmp_path])) as seen:
        assert seen.objects[ref("a")].meta.creation_timestamp == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


@asynchronous
async def test_a_save_changes_just_what_it_changes_and_promptly(tmp_path: Path, told_by_events: None) -> None:
    (tmp_path / "a.yaml").write_text(f"{rule('a')}---\n{rule('b')}")
    async with following(Files([tmp_path])) as seen:
        count = len(seen.changes)
        (tmp_path / "a.yaml").write_text(f"{rule('a')}---\n{rule('b', 'ratings')}")
        await seen.until(lambda s: host(s, "b") == "ratings", "the change")
        assert [change.ref for change in seen.changes[count:]] == [ref("b")]


@asynchronous
async def test_what_is_written_again_as_it_was_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    async with following(Files([tmp_path])) as seen:
        (tmp_path / "a.yaml").write_text(rule("a"))
        (tmp_path / "b.yaml").write_text("# only a comment\n")
        await settled(seen, tmp_path)
        (tmp_path / "a.yaml").write_text("# a comment\n" + rule("a"))
        await settled(seen, tmp_path)
        assert len(seen.changes_of(ref("a"))) == 1


@asynchronous
async def test_an_atomic_replacement_is_one_change(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    async with following(Files([tmp_path])) as seen:
        for new in ("one", "two"):  # the second replaces a file that came by a replacement
            (tmp_path / ".a.yaml.swp").write_text(rule("a", new))
            (tmp_path / ".a.yaml.swp").replace(tmp_path / "a.yaml")
            await seen.until(lambda s, new=new: host(s, "a") == new, "the change")
        assert [change.object is None for change in seen.changes_of(ref("a"))] == [False] * 3


@asynchronous
async def test_a_single_file_that_is_replaced_is_followed_and_its_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    async with following(Files([tmp_path / "a.yaml"])) as seen:
        for new in ("one", "two"):
            (tmp_path / "neighbour.yaml").write_text(rule("neighbour"))
            (tmp_path / "new").write_text(rule("a", new))
            (tmp_path / "new").replace(tmp_path / "a.yaml")
            await seen.until(lambda s, new=new: host(s, "a") == new, "the change")
        assert seen.objects.keys() == {ref("a")}


@asynchronous
async def test_a_file_that_is_emptied_before_it_is_written_deletes_nothing(tmp_path: Path, patient: None) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    source = Files([tmp_path])
    async with following(source) as seen:
        with (tmp_path / "a.yaml").open("w") as file:
            file.flush()
            await seen.until(lambda _: source._claims.due, "the empty file to be seen")
            file.write(rule("a", "ratings"))
        await seen.until(lambda s: host(s, "a") == "ratings", "the change")
        assert len(seen.changes_of(ref("a"))) == 2


@asynchronous
async def test_a_file_that_is_moved_away_before_it_is_written_deletes_nothing(tmp_path: Path, patient: None) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    source = Files([tmp_path])
    async with following(source) as seen:
        (tmp_path / "a.yaml").rename(tmp_path / "a.yaml~")
        await seen.until(lambda _: source._claims.due, "it to be seen that it is gone")
        (tmp_path / "a.yaml").write_text(rule("a", "ratings"))
        await seen.until(lambda s: host(s, "a") == "ratings", "the change")
        assert len(seen.changes_of(ref("a"))) == 2


@asynchronous
async def test_a_volume_that_is_swapped_by_its_symlink_is_one_step(tmp_path: Path, told_by_events: None) -> None:
    """As a kubelet does with ConfigMap volumes: files link to `..data`, and `..data` is replaced."""

    def write(version: int) -> None:
        directory = tmp_path / f"..{version}"
        directory.mkdir()
        for name in ("a", "b"):
            (directory / f"{name}.yaml").write_text(rule(name, f"v{version}"))
        (tmp_path / "..data_tmp").symlink_to(directory.name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    write(1)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
    async with following(Files([tmp_path])) as seen:
        for version in (2, 3):
            await settled(seen, tmp_path)  # no look is under way, which could see half of it
            steps = len(seen.steps)
            write(version)
            shutil.rmtree(tmp_path / f"..{version - 1}")
            await seen.until(lambda s, version=version: host(s, "a") == host(s, "b") == f"v{version}", "the new volume")
            assert [len(step) for step in seen.steps[steps:] if step] == [2]
        assert seen.problems == {}


@asynchronous
async def test_a_single_file_of_a_swapped_volume_is_followed(tmp_path: Path, told_by_events: None) -> None:
    for version in (1, 2):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "a.yaml").write_text(rule("a", f"v{version}"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    async with following(Files([tmp_path / "a.yaml"])) as seen:
        (tmp_path / "new").symlink_to("..2")
        (tmp_path / "new").replace(tmp_path / "..data")
        await seen.until(lambda s: host(s, "a") == "v2", "the new volume")


@asynchronous
async def test_deleted_and_emptied_files_delete_their_objects(tmp_path: Path, told_by_events: None) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.yaml").write_text(rule(name))
    async with following(Files([tmp_path])) as seen:
        (tmp_path / "a.yaml").unlink()
        (tmp_path / "b.yaml").write_text("")
        await seen.until(lambda s: s.objects.keys() == {ref("c")}, "the deletions")


@asynchronous
async def test_a_document_that_is_removed_deletes_its_object_only(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{rule('a')}---\n{rule('b')}")
    async with following(Files([tmp_path])) as seen:
        (tmp_path / "a.yaml").write_text(rule("b"))
        await seen.until(lambda s: ref("a") not in s.objects, "the deletion")
        assert len(seen.changes_of(ref("b"))) == 1


@asynchronous
async def test_a_half_written_file_keeps_the_last_good_and_says_where_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{rule('a')}---\n{rule('b')}")
    async with following(Files([tmp_path])) as seen:
        path.write_text(f"{rule('a', 'ratings')}---\n{rule('b')[:-8]}")
        await seen.until(lambda s: file_ref(str(path)) in s.problems, "the problem")
        assert host(seen, "a") == "ratings"
        assert host(seen, "b") == "reviews"
        assert f"{path}:" in str(seen.problems[file_ref(str(path))][0])
        path.write_text(f"{rule('a', 'ratings')}---\n{rule('b', 'ratings')}")
        await seen.until(lambda s: host(s, "b") == "ratings" and not s.problems, "the end of the problem")


@asynchronous
async def test_a_bad_value_harms_only_its_object(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{rule('a')}---\n{rule('b')}")
    async with following(Files([tmp_path])) as seen:
        path.write_text(f"{rule('a', '{}')}---\n{rule('b', 'ratings')}")
        await seen.until(lambda s: ref("a") in s.problems, "the problem")
        assert host(seen, "a") == "reviews"
        assert host(seen, "b") == "ratings"
        (problem,) = seen.problems[ref("a")]
        assert (problem.field, problem.where) == ("$.spec.host", f"{path}:4")


@asynchronous
async def test_a_file_that_is_not_text_is_a_problem_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(rule("a"))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    async with following(Files([tmp_path])) as seen:
        assert seen.objects.keys() == {ref("a")}
        assert "UTF-8" in str(seen.problems[file_ref(str(tmp_path / "b.yaml"))][0])


@asynchronous
async def test_the_same_object_in_two_files_is_the_first_files_and_both_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(rule("a", "second"))
    async with following(Files([tmp_path])) as seen:
        (tmp_path / "a.yaml").write_text(rule("a", "first"))
        await seen.until(lambda s: host(s, "a") == "first", "the first file")
        (problem,) = seen.problems[ref("a")]
        assert problem.warning
        assert str(tmp_path / "a.yaml") in str(problem)
        assert str(tmp_path / "b.yaml") in str(problem)
        (tmp_path / "a.yaml").unlink()
        await seen.until(lambda s: host(s, "a") == "second" and not s.problems, "the second file")
        assert all(change.object is not None for change in seen.changes_of(ref("a")))


@asynchronous
async def test_an_object_that_moves_to_another_file_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{rule('a')}---\n{rule('b')}")
    async with following(Files([tmp_path])) as seen:
        (tmp_path / "a.yaml").write_text(rule("a"))
        (tmp_path / "c.yaml").write_text(rule("b", "ratings"))
        await seen.until(lambda s: host(s, "b") == "ratings", "the change")
        await settled(seen, tmp_path)
        assert len(seen.changes_of(ref("b"))) == 2


@asynchronous
async def test_new_directories_are_followed(tmp_path: Path, told_by_events: None) -> None:
    async with following(Files([tmp_path])) as seen:
        (tmp_path / "new" / "deep").mkdir(parents=True)
        (tmp_path / "new" / "deep" / "a.yaml").write_text(rule("a"))
        await seen.until(lambda s: host(s, "a") == "reviews", "the new file")
        (tmp_path / "new" / "deep" / "a.yaml").write_text(rule("a", "ratings"))
        await seen.until(lambda s: host(s, "a") == "ratings", "its change")
        shutil.rmtree(tmp_path / "new")
        await seen.until(lambda s: ref("a") not in s.objects, "its deletion")


@asynchronous
async def test_a_directory_that_is_missing_keeps_its_objects_and_is_followed_when_it_is_back(
    tmp_path: Path, told_by_events: None
) -> None:
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    (mesh / "a.yaml").write_text(rule("a"))
    other = tmp_path / "other"
    other.mkdir()
    async with following(Files([mesh, other])) as seen:
        mesh.rename(tmp_path / "away")
        await settled(seen, other)
        assert host(seen, "a") == "reviews"
        mesh.mkdir()
        (mesh / "a.yaml").write_text(rule("a", "one"))
        await seen.until(lambda s: host(s, "a") == "one", "the directory that is back")
        (mesh / "a.yaml").write_text(rule("a", "two"))
        await seen.until(lambda s: host(s, "a") == "two", "a change in it")


@asynchronous
async def test_a_directory_link_that_is_turned_to_another_directory_is_followed(tmp_path: Path, looked_at: None) -> None:
    """As git-sync does: the path given is a link to a checkout, and is replaced."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(rule("a", version))
    (tmp_path / "current").symlink_to("one")
    async with following(Files([tmp_path / "current"])) as seen:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(tmp_path / "current")
        await seen.until(lambda s: host(s, "a") == "two", "the other directory")
        (tmp_path / "two" / "a.yaml").write_text(rule("a", "three"))
        await seen.until(lambda s: host(s, "a") == "three", "a change in it")
        assert len(seen.changes_of(ref("a"))) == 3
