"""What both variants of the protocol share: the types of one stream, and what is due on it next.

A `Session` is the server's side of one stream without the stream. `receive` takes a request, `due` says what to send, `sent` that
it is on its way. There is no clock and no I/O: times are passed in, in seconds of any clock that only goes forward.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from xds.discovery.protocol.knowledge import ABSENT, UNSURE, Known, Rejected, difference, newest, offered
from xds.discovery.protocol.rejection import named
from xds.discovery.protocol.resolution import moves, resolved
from xds.discovery.protocol.response import Response, Responses
from xds.discovery.protocol.subscription import NONE, Names, Subscription
from xds.discovery.protocol.types import CLUSTER, ENDPOINTS, ROUTE, VIRTUAL_HOST, TypeRules, rules_of
from xds.discovery.protocol.unsettled import Unsettled
from xds.discovery.resources import Assignment, Group, Resource
from xds.errors import ProtocolError

PATIENCE: Final = 1.0  # seconds that what follows a response waits for its acknowledgement
BEATS: Final = 3  # heartbeats in the shortest time to live
UNACKED_MAX: Final = 32  # responses whose acknowledgement may be outstanding; older ones count as taken
DOUBTED_MAX: Final = 10_000  # names of rejected responses that are kept in doubt


class Nack(NamedTuple):
    """A client rejected a response."""

    type: str  # `cds`
    nonce: str
    message: str  # the client's text, which may quote the resource
    resources: tuple[str, ...]  # names of those it means, as far as they are known


class Tried(NamedTuple):
    """A resource that may be why a response was rejected, and what the client held before."""

    resource: Resource
    instead: Resource | None


Trial = dict[str, Tried]


class Refuted(NamedTuple):
    """A version that a client rejected when another response was already on its way, which believes that it holds that."""

    version: str
    held: str  # what it holds in truth
    instead: Resource | None


class Watch:
    """One type on one stream."""

    __slots__ = (
        "acked_version", "asked", "beat_at", "bodies", "dirty", "doubt", "doubted", "error", "forced", "known", "named", "owed", "refuted",
        "rejected", "returning", "rules", "sent_at", "sent_version", "sequence", "subscription", "trials", "unacked", "wake",
    )  # fmt: skip

    def __init__(
        self, rules: TypeRules, asked: Subscription, subscription: Subscription, known: Known, wake: Callable[[], None]
    ) -> None:
        self.rules = rules
        self.asked = asked  # as the client says it
        self.subscription = subscription  # what that stands for: other names only where it asks for collections or by aliases
        self.known = known  # what the client holds once it has taken what was sent
        self.wake = wake
        self.bodies: dict[str, Resource] = {}  # what it holds that no group has any more, of types that need it (R1)
        self.forced = NONE  # names to send whether the client holds them or not
        self.owed = False  # a response is due even if it is empty
        self.dirty = True  # something may be due
        self.rejected: dict[str, Rejected] = {}
        self.named = False  # some request held names
        self.returning = False  # it holds what an earlier stream gave it, and has not yet taken anything from this one
        self.trials: list[Trial] = []  # parts of a rejected response, to be tried one by one
        self.unacked: list[Response] = []
        self.refuted: dict[str, Refuted] = {}
        self.doubt = 0  # responses up to this sequence were sent before the last rejection came: full ones hold the same once more
        self.doubted: dict[str, str] = {}  # name -> version of what it rejected, and may have taken a part of (V10)
        self.sequence = 0  # of the last response sent
        self.sent_at = 0.0
        self.beat_at: float | None = None  # when what expires is to be told to live on
        self.sent_version = ""
        self.acked_version = ""
        self.error = ""  # the client's text, while what it rejected last is unresolved

    def attach(self) -> None:
        for group in self.known.groups:
            group.listeners.add(self.changed)

    def detach(self) -> None:
        for group in self.known.groups:
            group.leave(self.changed)

    def changed(self, _: Group) -> None:
        """A group has changed."""
        self.dirty = True
        self.wake()

    def force(self, names: Names) -> None:
        """Send `names`, as far as they are subscribed to, whether the client holds them or not."""
        if not self.subscription.wildcard and not names <= self.subscription.names:
            names &= self.subscription.names
        if names:
            self.forced = self.forced | names if self.forced else names
            self.dirty = True

    def add(self, names: Iterable[str]) -> None:
        """The client subscribes to `names`, which it did not before, and so it holds nothing of them."""
        self.known = self.known.but({name: ABSENT for name in names if self.known.held(name) != ABSENT})

    def advance(self, known: Known) -> None:
        """The client is going to hold `known`."""
        if self.rules.full_state:
            for name, held in known.deviations.items():
                body = self.body(self.known, name, held)
                if body is not None:
                    self.bodies[name] = body
        self.known = known

    def body(self, known: Known, name: str, version: str) -> Resource | None:
        """The resource that the client holds as `name` in `version`, if it still is to be had."""
        for resource in (known.resource(name), self.bodies.get(name)):
            if resource is not None and resource.version == version:
                return resource
        return None

    def unsettled(self) -> Unsettled | None:
        """What the client may hold otherwise than it will say on its next stream; None where all is certain."""
        unanswered = tuple(response.claims for response in self.unacked if response.claims)
        return Unsettled(self.doubted, unanswered) if self.doubted or unanswered else None

    def waiting(self, now: float) -> bool:
        """Whether the client may still be busy with the last response."""
        return bool(self.unacked) and now < self.sent_at + PATIENCE

    def settle(self, nonce: str) -> Response | None:
        """The unacknowledged response of `nonce`, which the client now answers, if there is one; forgets those before it."""
        for index, response in enumerate(self.unacked):
            if response.nonce == nonce:
                del self.unacked[: index + 1]
                if self.refuted and response.sequence > self.doubt:
                    self.refuted = {}
                return response
        return None


class Session:
    """One stream: its types, and the order of what is due. Subclasses speak a variant of the protocol."""

    def __init__(self, responses: Responses, wake: Callable[[], None], only: str = "") -> None:
        """`wake` is called when something may have become due; `only` is the type URL of a stream that serves just one type."""
        self.responses = responses
        self.wake = wake
        self.only = only
        self.assignment: Assignment | None = None
        self.watches: dict[str, Watch] = {}
        self.wake_at: float | None = None  # when `due` should be asked again though nothing else happens
        self.expired = ""  # the type of the last request, where its nonce was of a response that has been superseded
        self.recall: Callable[[str], Sequence[Unsettled]] = _nothing  # what earlier streams of the client left of a type
        self._ordered: list[Watch] = []
        self._tables = NONE  # route tables that the client holds, so that it can take virtual hosts of them
        self._left = NONE  # route tables that it had and unsubscribed from, so that it has no virtual hosts of them
        self._awaited = NONE  # assignments that changed clusters wait for, while EDS has not been asked for yet

    # For whoever owns the stream

    def receive(self, request: Any) -> Nack | None:
        """Take a request. ProtocolError ends the stream."""
        raise NotImplementedError

    def assign(self, assignment: Assignment) -> None:
        """The groups are these from now on; what differs becomes due."""
        self.assignment = assignment
        for watch in self._ordered:
            self._regroup(watch)

    def pending(self) -> bool:
        """Whether something may be due."""
        for watch in self._ordered:  # noqa: SIM110 - every push asks this more than once, and `any` takes three times as long
            if watch.dirty:
                return True
        return False

    def due(self, now: float) -> Response | None:
        """The next response to send, the newest state of it. It is due until `sent`."""
        self.wake_at = None
        for watch in self._ordered:
            if watch.beat_at is not None and (response := self._beat(watch, now)) is not None:
                return response
        if not self.pending():
            return None
        clusters = self.watches.get(CLUSTER)
        kept = False
        for watch in self._ordered:
            if not watch.dirty:
                continue
            if watch.waiting(now):
                self._wake_at(watch)
                continue
            if watch.rules.routes and clusters is not None and clusters.waiting(now):
                self._wake_at(clusters)
                continue
            kept = watch is clusters and self._in_use(now)
            response = self._response(watch, keep_removed=kept)
            if response is not None:
                return response
        if clusters is not None and clusters.dirty and not clusters.waiting(now) and not self._in_use(now):
            return self._response(clusters)
        return None

    def sent(self, response: Response, now: float) -> None:
        """`response`, which was due, is on its way."""
        watch = self.watches[response.rules.type_url]
        if response.heartbeat:
            shortest = min(resource.ttl_ms for group in watch.known.groups for resource in group.expiring.values())
            watch.beat_at = now + shortest / 1000 / BEATS
            watch.sequence = response.sequence
            watch.unacked.append(response)
            return
        watch.advance(response.after)
        if response.expires and watch.beat_at is None:
            watch.beat_at = now + min(resource.ttl_ms for resource in response.resources if resource.ttl_ms) / 1000 / BEATS
        if response.only is None:
            watch.forced = NONE
            watch.owed = False
        watch.sequence = response.sequence
        watch.sent_at = now
        watch.sent_version = response.after.version
        watch.unacked.append(response)
        del watch.unacked[:-UNACKED_MAX]
        watch.dirty = bool(response.after.deviations or watch.trials or response.after.outdated())
        if response.rules.type_url == CLUSTER and not self.only and response.assignments:
            endpoints = self.watches.get(ENDPOINTS)
            if endpoints is not None:
                endpoints.force(response.assignments)
            else:
                self._awaited |= response.assignments
        elif response.rules.type_url == ROUTE and not self.only:
            tables = self._tables.difference(response.removed).union([resource.name for resource in response.resources])
            self._hold_tables(tables)

    def close(self) -> None:
        """The stream has ended: let go of its owner, of the groups, and of what only this client was trying out."""
        self.wake, self.recall = _nobody, _nothing
        for watch in self._ordered:
            watch.detach()
            for trial in watch.trials:
                for group in watch.known.groups:
                    group.release([name for name, tried in trial.items() if group.resources.get(name) == tried.resource])
        self._ordered.clear()
        self.watches.clear()

    # For the variants

    def _regroup(self, watch: Watch) -> None:
        """The groups of `watch` may be others now."""
        groups = self._groups(watch.rules.type_url)
        if groups != watch.known.groups:
            watch.detach()
            watch.advance(watch.known.rebased(groups, watch.subscription))
            watch.attach()
            watch.dirty = True
            self.wake()

    def _hold_tables(self, tables: Names) -> None:
        """The client holds these route tables: it is due their virtual hosts, and told to remove those of others.

        Envoy asks for virtual hosts once, and for all: those of a table that it gets later it does not ask for, and those of one
        that it has not got yet, it takes and forgets. With a table it drops its virtual hosts, but goes on counting them as held.
        """
        assert self.assignment is not None
        if tables == self._tables or not self.assignment.groups.get(VIRTUAL_HOST):
            self._tables = tables
            return
        before, self._tables = self._tables, tables
        watch = self.watches.get(VIRTUAL_HOST)
        if watch is not None:
            gone = before - tables
            dropped = (name for group in watch.known.groups if group.table in gone for name in group.resources)
            watch.known = watch.known.but(dict.fromkeys(dropped, UNSURE))
            self._regroup(watch)
            self._fill(watch, tables - before)

    def _fill(self, watch: Watch, tables: Names) -> None:
        """Name a virtual host of each of `tables` that has none: Envoy waits for some word of every one before it listens."""
        watch.force(frozenset(f"{group.table}/_" for group in watch.known.groups if group.table in tables and not group.resources))

    def _type_url(self, request: Any) -> str:
        """The type that `request` is about; empty where it is to be ignored (N3)."""
        type_url: str = request.type_url
        if self.only:
            if type_url and type_url != self.only:
                raise ProtocolError("INVALID_ARGUMENT", f"this stream serves {self.only}, not {type_url}")
            return self.only
        return type_url

    def _groups(self, type_url: str) -> tuple[Group, ...]:
        assert self.assignment is not None, "assign comes before the first request"
        groups = self.assignment.groups.get(type_url, ())
        if type_url != VIRTUAL_HOST:
            return groups
        return tuple(group for group in groups if not group.table or group.table in self._tables)

    def _watch(self, type_url: str, asked: Subscription, subscription: Subscription, known: Known) -> Watch:
        """Begin to serve a type."""
        watch = self.watches[type_url] = Watch(rules_of(type_url), asked, subscription, known, self.wake)
        if any(group.expiring for group in known.groups):
            watch.beat_at = 0.0  # it may hold what expires from an earlier stream
        self._ordered = sorted(self.watches.values(), key=lambda watch: watch.rules.order)
        watch.attach()
        if type_url == ENDPOINTS:
            watch.force(self._awaited)
            self._awaited = NONE
        return watch

    def _accept(self, watch: Watch, response: Response) -> None:
        """The client took `response`."""
        response.accept()
        watch.returning = False
        watch.acked_version = response.after.version
        if response.only is not None:
            _conclude(watch, response.only)
            watch.dirty = True
        elif not watch.rejected:
            watch.error = ""
        for name in response.claims if watch.doubted else ():
            watch.doubted.pop(name, None)
        if watch.bodies and not watch.unacked:
            watch.bodies = {name: body for name, body in watch.bodies.items() if name in watch.known.deviations}

    def _reject(self, watch: Watch, response: Response, message: str) -> Nack:
        """The client rejected `response`: what it holds now is as before, except that it may have taken the good part (V9).

        The resources it means are not sent again until they change. Where it names none, each half is tried by itself.
        """
        watch.error = message
        watch.dirty = True
        later = {name for other in watch.unacked for name in _names(other)}
        suspects = {resource.name: resource for resource in response.resources if resource.name not in later}
        trial = None if response.only is None else _conclude(watch, response.only)
        blamed = _blamed(watch, response, suspects.keys(), message)
        offenders = blamed & suspects.keys()
        _doubt(watch, response, offenders)
        if blamed and not offenders:  # only what it complained of before: it goes by resource, and took the rest
            return Nack(watch.rules.short, response.nonce, message, tuple(sorted(blamed)))
        if watch.unacked:
            watch.doubt = watch.unacked[-1].sequence
        deviations: dict[str, str] = {}
        untried: Trial = {}
        for resource in response.resources:
            name = resource.name
            held = response.before.held(name)
            instead = watch.body(response.before, name, held) if trial is None or name not in trial else trial[name].instead
            refuted = watch.refuted.get(name)
            if refuted is not None and refuted.version == held:
                held, instead = refuted.held, refuted.instead
            if watch.unacked and (not offenders or name in offenders):
                watch.refuted[name] = Refuted(resource.version, held, instead)
            if name not in suspects:
                continue
            if name in offenders:
                watch.rejected[name] = Rejected(resource.version, instead)
                deviations[name] = held
                for group in watch.known.groups:
                    group.reject(resource)
                continue
            deviations[name] = UNSURE
            if not offenders and (trial is not None or _try(watch.known.groups, resource)):
                untried[name] = Tried(resource, instead)
        for name in response.removed:
            if name not in later:
                deviations[name] = UNSURE
                if not response.resources:
                    watch.rejected[name] = Rejected(ABSENT, None)
        if trial is not None and offenders:
            rest = {name: tried for name, tried in trial.items() if name not in offenders}
            watch.trials[:0] = [rest] if rest else []
        watch.trials[:0] = _halves(untried)
        watch.known = watch.known.but(deviations)
        watch.owed = watch.owed or (watch.returning and watch.rules.full_state)  # else it keeps what has gone meanwhile
        return Nack(watch.rules.short, response.nonce, message, tuple(sorted(offenders)))

    def _response(self, watch: Watch, *, keep_removed: bool = False) -> Response | None:
        """What is due of one type, or None where nothing is; then what the client knows moves on silently."""
        if moves(watch.asked, watch.known.groups):
            self._resolve(watch)
        while True:
            if watch.rejected:
                watch.rejected = _still(watch.known.groups, watch.rejected)
            only = {name: tried.resource for name, tried in watch.trials[0].items()} if watch.trials else None
            key = self._key(watch, keep_removed)
            response = self.responses.get(key, watch.sequence) if only is None and not watch.bodies else None
            if response is not None:
                return response
            lacks = difference(
                watch.known, watch.subscription,
                forced=watch.forced, rejected=watch.rejected, only=only, keep_removed=keep_removed, hidden=self._hidden(watch),
            )  # fmt: skip
            if only is not None and not lacks.resources:
                del watch.trials[0]  # all of it has gone meanwhile
                continue
            response = self._encode(watch, lacks.resources, lacks.removed, lacks.after, None if only is None else frozenset(only))
            if response is None:
                watch.advance(lacks.after)
                watch.forced = NONE
                watch.dirty = keep_removed and bool(lacks.after.deviations)
            elif only is None and not watch.bodies:
                self.responses.share(key, response)
            return response

    def _encode(
        self, watch: Watch, resources: list[Resource], removed: list[str], after: Known, only: Names | None
    ) -> Response | None:
        """The response that carries a difference, or None where none is called for."""
        raise NotImplementedError

    def _key(self, watch: Watch, keep_removed: bool) -> tuple[object, ...]:
        """Streams for which this is equal need equal responses."""
        known = watch.known
        return (
            type(self), watch.rules.type_url, known, tuple([group.generation for group in known.groups]), watch.subscription,
            watch.forced, watch.owed, keep_removed, frozenset(watch.rejected.items()) if watch.rejected else NONE, self._hidden(watch),
        )  # fmt: skip

    def _hidden(self, watch: Watch) -> Names:
        return self._left if watch.rules.type_url == VIRTUAL_HOST else NONE

    def _resolve(self, watch: Watch) -> None:
        """Subscribe to what the names asked for stand for by now."""
        before = watch.subscription
        watch.subscription = resolved(watch.asked, watch.known.groups, before)
        watch.add(name for name in watch.subscription.names - before.names if not before.wildcard)

    def _beat(self, watch: Watch, now: float) -> Response | None:
        """The heartbeat of a type if it is due."""
        assert watch.beat_at is not None
        if now >= watch.beat_at:
            response = self._heartbeat(watch)
            if response is not None:
                return response
            watch.beat_at = None
        elif self.wake_at is None or watch.beat_at < self.wake_at:
            self.wake_at = watch.beat_at
        return None

    def _heartbeat(self, _: Watch) -> Response | None:
        """A response that lets what the client holds live on; None where nothing of it expires."""
        return None

    def _in_use(self, now: float) -> bool:
        """Whether routes are still to be sent or taken that may let go of clusters (O2)."""
        return any(watch.rules.routes and (watch.dirty or watch.waiting(now)) for watch in self._ordered)

    def _wake_at(self, watch: Watch) -> None:
        at = watch.sent_at + PATIENCE
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at


def _nobody() -> None:
    """Wakes nobody."""


def _nothing(_: str) -> Sequence[Unsettled]:
    """No earlier stream has left anything."""
    return ()


def _names(response: Response) -> Iterable[str]:
    yield from (resource.name for resource in response.resources)
    yield from response.removed


def _blamed(watch: Watch, response: Response, suspects: Collection[str], message: str) -> set[str]:
    """The names that the rejection of `response` is about, as far as that is certain."""
    blamed = named(message, suspects)
    if not blamed and response.count > len(response.resources):  # it held more than what was new in it
        blamed = named(message, {name for group in watch.known.groups for name in group.resources})
    # A full response may hold once more what an earlier one did, which was rejected meanwhile: then it says nothing.
    doubted = watch.rules.full_state and response.sequence <= watch.doubt
    if not blamed and len(response.resources) == len(suspects) == 1 and not doubted:
        blamed.update(suspects)
    return blamed


def _doubt(watch: Watch, response: Response, offenders: Collection[str]) -> None:
    """The client may have taken any of the rejected `response` but the `offenders`, and will not say so."""
    for name, version in response.claims.items():
        if name not in offenders:
            watch.doubted[name] = version
        elif watch.doubted.get(name) == version:  # it turns out to be why an earlier one was rejected
            del watch.doubted[name]
    while len(watch.doubted) > DOUBTED_MAX:
        del watch.doubted[next(iter(watch.doubted))]


def _try(groups: Iterable[Group], resource: Resource) -> bool:
    """Whether this stream is to try `resource` by itself: not where another does so with what is withheld from all."""
    for group in groups:
        if group.resources.get(resource.name) == resource:
            if resource.name in group.withheld:
                return False
            group.reject(resource)
    return True


def _conclude(watch: Watch, names: Names) -> Trial | None:
    """Take the trial of `names` off the list: the client has answered it."""
    for index, trial in enumerate(watch.trials):
        if trial.keys() == names:
            return watch.trials.pop(index)
    return None


def _halves(names: Trial) -> list[Trial]:
    items = list(names.items())
    middle = (len(items) + 1) // 2
    return [dict(half) for half in (items[:middle], items[middle:]) if half]


def _still(groups: tuple[Group, ...], rejected: dict[str, Rejected]) -> dict[str, Rejected]:
    """Those of `rejected` that could be sent again as they are: the newest of their name, or what is offered in its place."""
    still = {}
    for name, refused in rejected.items():
        for resource in (newest(groups, name), offered(groups, name)):
            if refused.version == (ABSENT if resource is None else resource.version):
                still[name] = refused
                break
    return still
