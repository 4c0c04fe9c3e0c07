"""One kind of object, kept equal to what the API server has: list, then watch from there, and over again when that breaks.

Kubernetes: "API concepts", *Efficient detection of changes*. A list says which `resourceVersion` it shows, and a watch from there
says what changed since. Bookmarks move the version on where nothing changes. A watch that breaks resumes at the last version; 410
means that the server has forgotten it, and then a new list is compared with what is known, so that only real differences are
passed on: neither a restart of the API server nor a lost connection changes anything for those who read us.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import structlog

from xds.errors import Forbidden, Gone, KubeError
from xds.objects import Kind
from xds.objects.decoding import from_json
from xds.objects.meta import Ref
from xds.sources.changes import Change, Differences, Sink
from xds.sources.discovery import POLL_SECONDS, Discovery
from xds.sources.kube_client import KubeClient, Unreachable, kube_error
from xds.sources.pace import Pace

log = structlog.get_logger()

PAGE_OBJECTS = 500
WATCH_SECONDS = (240, 480)  # the server ends a watch within; spread, so that not all kinds reconnect at once
IDLE_SECONDS = 150.0  # a watch this silent is dead: the server sends a bookmark every minute
BRIEF_SECONDS = 1.0  # a watch that ends sooner has failed, even where it ends in good order
ABSENT_SECONDS = 10.0  # what we know of a kind is kept so long after the server has stopped to serve it
RETRY_SECONDS = (0.1, 5.0)  # the first and the longest pause between attempts
LASTING_FAILURES = 6  # so many in a row, over two seconds or so, are more than a restart of the server


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None  # Go writes an empty list as null


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Version(msgspec.Struct, rename="camel"):
    resource_version: str


class _Versioned(msgspec.Struct):
    metadata: _Version


class _Status(msgspec.Struct):
    code: int = 500


_list = msgspec.json.Decoder(_List)
_event = msgspec.json.Decoder(_Event)
_versioned = msgspec.json.Decoder(_Versioned)
_status = msgspec.json.Decoder(_Status)
T = TypeVar("T")


class Garbled(KubeError):  # noqa: N818
    """The server answered with something that is not what it should be. `status` is 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as e:
        raise Garbled(f"an answer that is no Kubernetes JSON: {e}") from e


class KindStatus(msgspec.Struct):
    """How one kind is doing: `state` is listing, watching, absent (the cluster has no such kind) or failing (see `error`)."""

    kind: str
    state: str = "listing"
    version: str = ""
    objects: int = 0
    error: str = ""


class Backoff:
    """Pauses between attempts: each half as long again as the one before, and cut by up to half at random."""

    def __init__(self) -> None:
        self.attempts = 0

    def reset(self) -> None:
        self.attempts = 0

    def pause(self) -> float:
        """Seconds until the next attempt."""
        first, longest = RETRY_SECONDS
        pause = min(first * 1.5 ** min(self.attempts, 32), longest)
        self.attempts += 1
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Reflector:
    """Passes the changes of one kind to `sink`; calls `on_listed` once, when all that existed at the start has been passed on."""

    def __init__(
        self,
        kind: Kind,
        client: KubeClient,
        discovery: Discovery,
        sink: Sink,
        on_listed: Callable[[], None],
        *,
        field_selector: str = "",
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.kind = kind
        self.status = KindStatus(kind.kind)
        self._client = client
        self._discovery = discovery
        self._on_listed: Callable[[], None] | None = on_listed
        self._selection: dict[str, str | int] = {"fieldSelector": field_selector} if field_selector else {}
        self._idle_seconds = idle_seconds
        self._objects = Differences(sink)
        self._resource_version = ""  # where the next watch begins; empty: list first
        self._whole_list = False  # the server forgot a list between two of its pages: ask for the next one in one piece
        self._listed_at = 0.0
        self._missing_since: float | None = None  # since when the server has not had this kind
        self._reported = ""  # the failure that was logged last, and lasts
        self._backoff = Backoff()
        self._log = log.bind(kind=kind.kind)

    async def run(self) -> None:
        """List and watch until cancelled; every failure of the API server is reported and retried."""
        while True:
            try:
                await self._step()
            except KubeError as e:
                if isinstance(e, Gone) and time.monotonic() - self._listed_at > BRIEF_SECONDS:
                    self._backoff.reset()  # routine, unless it comes again at once
                self._recover(e)
                await asyncio.sleep(max(self._backoff.pause(), e.retry_after))

    async def _step(self) -> None:
        """One list or one watch, whichever is next."""
        if not self.status.version and not await self._find_version():
            await asyncio.sleep(POLL_SECONDS)
        elif not self._resource_version:
            await self._list()
        else:
            await self._watch()

    def _recover(self, error: KubeError) -> None:
        """Make the next step the one that helps after `error`, and report it where it is news."""
        if error.status == 404:
            self.status.version = ""
            self._resource_version = ""
        elif error.status in (400, 410, 504):  # 504 also says that our version is in its future, as after etcd was restored
            self._resource_version = ""
        if isinstance(error, Gone):
            self._enter("listing")
            return
        reason = str(error)
        if isinstance(error, Forbidden):
            group = f"API group {self.kind.group}" if self.kind.group else "the core API group"
            reason = f"{error.reason} (needed: list and watch on {self.kind.plural} in {group}, for the whole cluster)"
        self._enter("failing", reason)
        # The client itself reports when the server is not there, and a server that starts answers 503 for a moment.
        passing = isinstance(error, Unreachable) or error.status == 429 or error.status >= 500
        if reason != self._reported and (not passing or self._backoff.attempts > LASTING_FAILURES):
            self._reported = reason
            self._log.warning("watch.failed", error=reason, note="retried; what is known stays in force")

    def _enter(self, state: str, error: str = "") -> None:
        if state == "watching" and self._reported:
            self._reported = ""
            self._log.info("watch.recovered", objects=self.status.objects)
        self.status.state = state
        self.status.error = error

    # Which version of the API

    async def _find_version(self) -> bool:
        """Whether the server has this kind, by one of the versions that we understand."""
        version = await self._discovery.version(self.kind)
        if version is not None:
            self.status.version = version
            self._missing_since = None
            return True
        if self._missing_since is None:
            self._missing_since = time.monotonic()
        if self._objects.known and time.monotonic() - self._missing_since < ABSENT_SECONDS:
            return False
        if self.status.state != "absent":
            self._log.info("kind.absent", group=self.kind.group, note="it is picked up when its CRD is installed")
        self._enter("absent")
        self._pass_on([Change(ref) for ref in self._objects.known])
        self._listed()
        return False

    # List

    async def _list(self) -> None:
        """Read all objects, a page at a time, and pass on what differs from what is known."""
        started = time.monotonic()
        existing: set[Ref] = set()
        changes: list[Change] = []
        changed = 0
        pace = Pace()
        token = ""
        while True:
            page = _decode(_list, await self._page(token))
            for item in page.items or ():
                change = self._change(item)
                if change is not None:
                    existing.add(change.ref)
                    if self._objects.known.get(change.ref) != change:
                        changes.append(change)
                if pace.is_due:
                    await pace.breathe()
            if self._on_listed is not None:  # nothing is served before, so that nobody sees half a step
                changed += self._pass_on(changes)
                changes = []
            token = page.metadata.continue_
            if not token:
                break
        changes += [Change(ref) for ref in self._objects.known if ref not in existing]
        changed += self._pass_on(changes)
        self._resource_version = page.metadata.resource_version
        self._whole_list = False
        self._listed_at = time.monotonic()
        took_ms = round((self._listed_at - started) * 1000, 1)
        self._log.debug("kind.listed", objects=len(existing), changed=changed, took_ms=took_ms)
        self._listed()

    async def _page(self, token: str) -> bytes:
        query = dict(self._selection) if self._whole_list else self._selection | {"limit": PAGE_OBJECTS}
        if token:
            query["continue"] = token
        try:
            return await self._client.request("GET", self.kind.path(self.status.version), query)
        except Gone:
            self._whole_list = True
            raise

    def _listed(self) -> None:
        if self._on_listed is not None:
            on_listed, self._on_listed = self._on_listed, None
            on_listed()

    # Watch

    async def _watch(self) -> None:
        """Pass on changes as they come, until the server ends the watch."""
        query = self._selection | {
            "watch": 1,
            "allowWatchBookmarks": "true",
            "resourceVersion": self._resource_version,
            "timeoutSeconds": random.randint(*WATCH_SECONDS),  # noqa: S311 - no secret
        }
        started = time.monotonic()
        path = self.kind.path(self.status.version)
        async with self._client.open("GET", path, query, read_seconds=self._idle_seconds) as response:
            self._enter("watching")
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if lines:
                    await self._receive(lines)
                    self._backoff.reset()
        if time.monotonic() - started < BRIEF_SECONDS:  # else every answer would be asked for again without a pause
            raise Unreachable(f"{self._client.server} ended a watch at once")

    async def _receive(self, lines: Sequence[bytes]) -> None:
        """Take events in their order; what is decoded without a pause is one step."""
        changes: list[Change] = []
        pace = Pace()
        try:
            for line in lines:
                event = _decode(_event, line)
                if event.type == "ERROR":
                    raise kube_error(_decode(_status, event.object).code, bytes(event.object))
                if event.type != "BOOKMARK" and (change := self._change(event.object)) is not None:
                    changes.append(Change(change.ref) if event.type == "DELETED" else change)
                if pace.is_due:
                    self._pass_on(changes)
                    changes = []
                    await pace.breathe()
            self._pass_on(changes)
            self._resource_version = _decode(_versioned, event.object).metadata.resource_version
        except KubeError:
            self._pass_on(changes)
            self._resource_version = ""
            raise

    def _change(self, raw: msgspec.Raw) -> Change | None:
        """What the server has sent, decoded; None for what has no name, which the server never sends."""
        decoded = from_json(raw, self.kind)
        return None if decoded.ref is None else Change(decoded.ref, decoded.object, decoded.problems)

    def _pass_on(self, changes: Sequence[Change]) -> int:
        changed = self._objects.apply(changes)
        self.status.objects = len(self._objects.known)
        return changed
