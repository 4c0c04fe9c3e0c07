"""The state-of-the-world variant: each request holds all names wanted, and responses of some types all resources there are."""

from collections.abc import Iterator
from typing import Any

from xds.discovery import wire
from xds.discovery.protocol.knowledge import ABSENT, Known, everything, offered, tried
from xds.discovery.protocol.resolution import resolved
from xds.discovery.protocol.response import Response
from xds.discovery.protocol.session import Nack, Session, Watch
from xds.discovery.protocol.subscription import Names, Subscription
from xds.discovery.protocol.types import rules_of
from xds.discovery.resources import Resource


class SotwSession(Session):
    """A DiscoveryRequest stream."""

    def receive(self, request: Any) -> Nack | None:
        """Take a DiscoveryRequest: an answer to a response, a new set of names, or the same again (D3)."""
        type_url = self._type_url(request)
        if not type_url:
            return None
        names = frozenset(request.resource_names)
        watch = self.watches.get(type_url)
        if watch is None:
            asked, groups = Subscription.of(names, wildcard=rules_of(type_url).wildcard and not names), self._groups(type_url)
            watch = self._watch(type_url, asked, resolved(asked, groups), Known.nothing(groups))
            watch.named = bool(names)
            watch.owed = True  # V6
            watch.returning = bool(request.version_info)
            return None
        nonce: str = request.response_nonce
        latest = bool(nonce) and watch.sequence != 0 and nonce == self.responses.nonce(watch.sequence)
        response = watch.settle(nonce) if nonce else None
        nack = None
        if response is not None:
            if request.HasField("error_detail"):
                nack = self._reject(watch, response, request.error_detail.message)
            else:
                self._accept(watch, response)
        self.expired = watch.rules.short if nonce and not latest else ""
        if self.expired:
            return nack  # V4: a newer request with all the names follows
        if self._subscribe(watch, names):
            return nack
        if not nonce or (response is None and not request.HasField("error_detail")):
            self._repeat(watch)
        return nack

    def _subscribe(self, watch: Watch, names: Names) -> bool:
        """Take over `names`; whether they differ from those before."""
        if not names and not watch.named:
            return False  # W1: still what it was at first
        watch.named = True
        asked = Subscription.of(names)  # W3, W5
        if asked is watch.asked:
            return False
        before, after = watch.subscription, resolved(asked, watch.known.groups)
        watch.asked, watch.subscription = asked, after
        added = after.names - before.names
        if after.wildcard and not before.wildcard:
            watch.known = Known.nothing(watch.known.groups)
        if added or (after.wildcard and not before.wildcard):
            watch.owed = True
        watch.forced &= after.names
        watch.add(name for name in added if not before.covers(name))
        watch.force(added)
        watch.dirty = True
        return True

    def _repeat(self, watch: Watch) -> None:
        """Answer again with everything subscribed to: we cannot know which part of it the client misses (D3, V5)."""
        if watch.subscription.wildcard or watch.subscription.names:
            watch.known = Known.nothing(watch.known.groups)
            watch.owed = True
            watch.dirty = True

    def _encode(self, watch: Watch, resources: list[Resource], removed: list[str], after: Known, only: Names | None) -> Response | None:
        rules = watch.rules
        if not resources and not watch.owed and not (removed and rules.full_state):
            return None
        sent = list(self._whole(watch, after, only)) if rules.full_state else resources
        missing = self._missing(watch)
        sequence, nonce = self.responses.next_nonce()
        parts = [part for resource in sent for part in (resource.sotw_head, *resource.pieces)]
        data = wire.sotw_response(self.responses.sotw_identity, rules.type_url, after.version, nonce, parts, missing)
        return Response(rules, sequence, nonce, data, tuple(resources), tuple(removed), len(sent), watch.known, after, only)

    def _whole(self, watch: Watch, after: Known, only: Names | None) -> Iterator[Resource]:
        """All resources of a type whose absence would delete them: what this client rejected at the version it holds instead."""
        groups = after.groups
        instead = {name: refused.instead for name, refused in watch.rejected.items() if refused.version != ABSENT}
        for trial in watch.trials[1:]:
            instead.update((name, each.instead) for name, each in trial.items())
        if only is not None:
            instead.update((name, tried(groups, name, each.resource)) for name, each in watch.trials[0].items())
        for resource in everything(groups, watch.subscription):
            if resource.name not in instead:
                yield resource
        yield from (resource for name, resource in instead.items() if resource is not None and watch.subscription.covers(name))
        for name, held in after.deviations.items():  # removals that wait
            if name not in instead and offered(groups, name) is None:
                lingering = watch.body(watch.known, name, held)
                if lingering is not None and watch.subscription.covers(name):
                    yield lingering

    def _missing(self, watch: Watch) -> list[str]:
        """The names asked for that do not exist (R10)."""
        names = watch.forced or (watch.subscription.names if watch.owed else ())
        return sorted(name for name in names if offered(watch.known.groups, name) is None)
