"""How a reflector bears what a real API server can't be made to do at will. The rest is in tests/kubernetes."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kmock
import pytest
import yaml
from support.recorder import Recorder, asynchronous

from xds.objects import KINDS
from xds.objects.meta import Ref
from xds.sources.discovery import Discovery
from xds.sources.kube_client import KubeClient
from xds.sources.reflector import Backoff, Reflector

Answer = kmock.Response


def service(name: str, version: int, port: int = 80) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"ports": [{"port": port}]}}


def listing(version: int, *items: dict[str, Any], more: str = "") -> Answer:
    body = {"metadata": {"resourceVersion": str(version), "continue": more}, "items": items}
    return Answer(status=200, payload=json.dumps(body).encode())


def event(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def refusal(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Answer:
    return Answer(status=status, headers=headers, payload=json.dumps({"kind": "Status", "message": message}).encode())


def watch(*parts: Any, ends: bool = False) -> Answer:
    """A watch that sends `parts`, and then stays open or ends."""
    return Answer(status=200, payload=parts if ends else (*parts, ...))


def ref(name: str) -> Ref:
    return Ref("Service", "default", name)


class Conversation(Recorder):
    """What a reflector asked of the server, with the time, and what it delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, dict[str, str]]] = []
        self.listed = 0

    @property
    def watched_from(self) -> list[str]:
        """The resourceVersions at which watches began."""
        return [query["resourceVersion"] for _, query in self.asked if "watch" in query]

    @property
    def lists(self) -> list[dict[str, str]]:
        return [query for _, query in self.asked if "watch" not in query]


@pytest.fixture
def reflecting(tmp_path: Path) -> Callable[..., Any]:
    """`async with reflecting(*answers) as conversation`: a reflector of Services, whose requests get these answers in turn."""

    @asynccontextmanager
    async def run(*answers: Answer, **options: Any) -> AsyncIterator[Conversation]:
        conversation = Conversation()
        rest = list(answers)

        def answer(request: kmock.Request) -> Answer:
            """The next; what is asked beyond the last gets that again."""
            conversation.asked.append((time.monotonic(), dict(request.params)))
            return rest.pop(0) if len(rest) > 1 else rest[0]

        def listed() -> None:
            conversation.listed += 1

        async with kmock.RawHandler() as handler, kmock.Server(handler):
            handler["get /api/v1/services"] << answer
            config = {
                "clusters": [{"name": "c", "cluster": {"server": str(handler.url).rstrip("/")}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            (tmp_path / "config").write_text(yaml.safe_dump(config))
            async with KubeClient(tmp_path / "config") as client, asyncio.TaskGroup() as tasks:
                reflector = Reflector(KINDS["Service"], client, Discovery(client), conversation, listed, **options)
                running = tasks.create_task(reflector.run())
                try:
                    yield conversation
                finally:
                    running.cancel()

    return run


@asynchronous
async def test_events_are_told_in_their_order(reflecting: Callable[..., Any]) -> None:
    events = [event("ADDED", service("b", 11)), event("MODIFIED", service("b", 12, 81)), event("DELETED", service("a", 13))]
    async with reflecting(listing(10, service("a", 9)), watch(b"".join(events))) as seen:
        await seen.until(lambda s: len(s.changes) == 4, "all changes")
        assert [(change.ref.name, change.object and change.object.spec.ports[0].port) for change in seen.changes] == [
            ("a", 80),
            ("b", 80),
            ("b", 81),
            ("a", None),
        ]
        assert seen.listed == 1


@asynchronous
async def test_an_event_that_comes_in_pieces_is_whole(reflecting: Callable[..., Any]) -> None:
    line = event("ADDED", service("a", 11))
    pieces = [part for i in range(0, len(line), 40) for part in (line[i : i + 40], lambda: asyncio.sleep(0.01))]
    async with reflecting(listing(10), watch(*pieces)) as seen:
        await seen.until(lambda s: ref("a") in s.objects, "the event")


@asynchronous
async def test_a_watch_resumes_after_the_last_whole_event(reflecting: Callable[..., Any]) -> None:
    cut = event("ADDED", service("a", 11)) + event("ADDED", service("b", 12))[:50]
    async with reflecting(listing(10), watch(cut, ends=True), watch(event("ADDED", service("b", 12)))) as seen:
        await seen.until(lambda s: {ref("a"), ref("b")} == s.objects.keys(), "both events")
        assert seen.watched_from == ["10", "11"]
        assert len(seen.lists) == 1


@asynchronous
async def test_a_bookmark_moves_the_place_to_resume_from(reflecting: Callable[..., Any]) -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "99"}})
    async with reflecting(listing(10), watch(bookmark, ends=True), watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 2, "the second watch")
        assert seen.watched_from == ["10", "99"]


@asynchronous
async def test_garbage_in_a_watch_is_answered_with_a_list_that_flaps_nothing(reflecting: Callable[..., Any]) -> None:
    both = [service("a", 9), service("b", 9)]
    async with reflecting(listing(10, *both), watch(b"<html>\n"), listing(20, *both, service("c", 15)), watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 2, "the second watch")
        assert seen.watched_from == ["10", "20"]
        assert [change.ref.name for change in seen.changes] == ["a", "b", "c"]
        assert seen.listed == 1


@pytest.mark.parametrize("code", [410, 500])
@asynchronous
async def test_an_error_event_is_answered_with_a_list_of_what_is_left(reflecting: Callable[..., Any], code: int) -> None:
    expired = event("ERROR", {"kind": "Status", "code": code, "message": "too old resource version"})
    first, second = listing(10, service("a", 9), service("b", 9)), listing(20, service("b", 9))
    async with reflecting(first, watch(event("ADDED", service("c", 11)) + expired), second, watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 2, "the second watch")
        assert seen.objects.keys() == {ref("b")}
        assert [change.ref.name for change in seen.changes] == ["a", "b", "c", "a", "c"]


@asynchronous
async def test_a_version_in_the_servers_future_is_answered_with_a_list(reflecting: Callable[..., Any]) -> None:
    async with reflecting(listing(10), refusal(504, "Too large resource version: 10, current: 5"), listing(5), watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 2, "the second watch")
        assert seen.watched_from == ["10", "5"]


@asynchronous
async def test_retry_after_is_kept_to(reflecting: Callable[..., Any]) -> None:
    async with reflecting(refusal(429, headers={"Retry-After": "1"}), listing(10, service("a", 9)), watch()) as seen:
        await seen.until(lambda s: ref("a") in s.objects, "the list")
        refused, asked_again = (when for when, _ in seen.asked[:2])
        assert asked_again - refused >= 1


@asynchronous
async def test_a_failure_between_two_pages_deletes_nothing(reflecting: Callable[..., Any]) -> None:
    pages = listing(10, service("a", 9), more="next"), listing(10, service("b", 9))
    again = listing(20, service("a", 9), more="next"), refusal(500)
    expired = watch(event("ERROR", {"code": 410, "message": "expired"}))
    async with reflecting(*pages, expired, *again, *pages, watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 2, "the second watch")
        assert [change.ref.name for change in seen.changes] == ["a", "b"]
        assert [query.get("continue") for query in seen.lists] == [None, "next"] * 3


@asynchronous
async def test_a_list_that_expires_between_two_pages_is_asked_for_in_one_piece(reflecting: Callable[..., Any]) -> None:
    whole = listing(20, service("a", 9), service("b", 9))
    async with reflecting(listing(10, service("a", 9), more="next"), refusal(410), whole, watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 1, "the watch")
        assert ["limit" in query for query in seen.lists] == [True, True, False]
        assert seen.objects.keys() == {ref("a"), ref("b")}
        assert seen.listed == 1


@asynchronous
async def test_a_server_that_ends_every_watch_at_once_is_not_hammered(reflecting: Callable[..., Any]) -> None:
    async with reflecting(listing(10), *[watch(b"", ends=True) for _ in range(4)], watch()) as seen:
        await seen.until(lambda s: len(s.watched_from) == 5, "the watch that stays")
        times = [when for when, query in seen.asked if "watch" in query]
        assert all(later - earlier > 0.04 for earlier, later in itertools.pairwise(times))
        assert len(seen.lists) == 1


@asynchronous
async def test_a_silent_watch_is_begun_anew(reflecting: Callable[..., Any]) -> None:
    async with reflecting(listing(10), watch(), watch(event("ADDED", service("a", 11))), idle_seconds=0.2) as seen:
        await seen.until(lambda s: ref("a") in s.objects, "what the second watch tells")
        assert seen.watched_from[:2] == ["10", "10"]


@asynchronous
async def test_one_bad_object_harms_only_itself(reflecting: Callable[..., Any]) -> None:
    bad = service("bad", 9)
    bad["spec"]["ports"] = "none"
    existing = listing(10, service("a", 9), bad, service("b", 9))
    async with reflecting(existing, watch(event("MODIFIED", service("bad", 11)))) as seen:
        await seen.until(lambda s: len(s.changes) == 4, "all changes")
        assert seen.objects.keys() == {ref("a"), ref("b"), ref("bad")}
        assert [change.invalid for change in seen.changes] == [False, True, False, False]
        assert "$.spec.ports" in str(seen.changes[1].problems[0])


def test_pauses_grow_to_a_limit_and_are_spread() -> None:
    backoff = Backoff()
    pauses = [backoff.pause() for _ in range(40)]
    assert 0.05 <= pauses[0] <= 0.1
    assert all(2.5 <= pause <= 5 for pause in pauses[20:])
    assert len(set(pauses[20:])) > 1
    backoff.reset()
    assert backoff.pause() <= 0.1
