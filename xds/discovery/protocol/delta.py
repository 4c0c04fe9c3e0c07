"""The incremental variant: requests add and take away names, responses carry what is new and what is gone."""

from typing import Any

from xds.discovery import wire
from xds.discovery.protocol.holdings import holdings, recalled
from xds.discovery.protocol.knowledge import ABSENT, UNSURE, Groups, Known, table_of
from xds.discovery.protocol.resolution import members, resolved
from xds.discovery.protocol.response import Response
from xds.discovery.protocol.session import Nack, Session, Watch
from xds.discovery.protocol.subscription import WILDCARD, Names, Subscription
from xds.discovery.protocol.types import ROUTE, VIRTUAL_HOST, rules_of
from xds.discovery.resources import Resource

NO_HOST = "/_"


class DeltaSession(Session):
    """A DeltaDiscoveryRequest stream."""

    def receive(self, request: Any) -> Nack | None:
        """Take a DeltaDiscoveryRequest: an answer to a response, a change of the subscription, or both (W9)."""
        type_url = self._type_url(request)
        if not type_url:
            return None
        watch = self.watches.get(type_url)
        if watch is None:
            self._open(type_url, request)
            return None
        nack = None
        nonce: str = request.response_nonce
        self.expired = ""
        if nonce:
            response = watch.settle(nonce)
            if response is None:
                self.expired = watch.rules.short
            else:
                if request.HasField("error_detail"):
                    nack = self._reject(watch, response, request.error_detail.message)
                else:
                    self._accept(watch, response)
        if request.resource_names_subscribe or request.resource_names_unsubscribe:
            self._subscribe(watch, frozenset(request.resource_names_subscribe), frozenset(request.resource_names_unsubscribe))
        return nack

    def _open(self, type_url: str, request: Any) -> None:
        """The first request of a type: what it holds from an earlier stream is in `initial_resource_versions` (R12, R13)."""
        rules = rules_of(type_url)
        names = frozenset(request.resource_names_subscribe)
        asked = Subscription.of(names, wildcard=rules.wildcard and not names)
        groups = self._groups(type_url)
        subscription = resolved(asked, groups)
        held = holdings(request)
        known, lacking = recalled(groups, subscription, held) if held else (Known.nothing(groups), subscription.names)
        doubtful = frozenset().union(*(unsettled.doubtful(held) for unsettled in self.recall(type_url)))
        known = known.but({name: UNSURE for name in doubtful if subscription.covers(name)})  # V10
        watch = self._watch(type_url, asked, subscription, known)
        watch.owed = subscription.wildcard
        watch.force(lacking)
        if type_url == ROUTE:
            self._hold_tables(subscription.names - lacking)
        elif type_url == VIRTUAL_HOST:
            self._purge(watch, self._left)
            self._fill(watch, self._tables)
            tables = self.watches[ROUTE].subscription.names if ROUTE in self.watches else ()
            watch.force(frozenset(name for table in tables for name in _hosts(groups, table) if name.endswith(NO_HOST)))

    def sent(self, response: Response, now: float) -> None:
        """As for any variant; virtual hosts follow a route table that the client did not have: what came before it was dropped (X4)."""
        super().sent(response, now)
        hosts = self.watches.get(VIRTUAL_HOST) if response.rules.type_url == ROUTE else None
        if hosts is not None:
            fresh = [resource.name for resource in response.resources if response.before.held(resource.name) == ABSENT]
            hosts.force(frozenset(name for table in fresh for name in _hosts(hosts.known.groups, table)))

    def _subscribe(self, watch: Watch, subscribe: Names, unsubscribe: Names) -> None:
        before, groups = watch.subscription, watch.known.groups
        watch.asked = watch.asked.changed(subscribe, unsubscribe)
        after = watch.subscription = resolved(watch.asked, groups)
        if after.wildcard and (not before.wildcard or WILDCARD in subscribe):  # W6 for all names there are
            watch.known = Known.nothing(groups)
            watch.owed = True
        again = subscribe - {WILDCARD} - unsubscribe  # W6, even where it has them
        if after.wildcard and unsubscribe:
            again |= unsubscribe - {WILDCARD}  # W7
        if watch.asked is not after:
            again = members(again, groups)
        if watch.rules.type_url == ROUTE:
            self._leave((self._left - subscribe) | {table for table in unsubscribe if not after.covers(table)})
            if unsubscribe:
                self._hold_tables(self._tables - unsubscribe)
        if watch.rejected:
            # It asks again, so it wants an answer.
            watch.rejected = {name: refused for name, refused in watch.rejected.items() if name not in again}
        if watch.forced and not after.wildcard:
            watch.forced &= after.names
        watch.add(name for name in again if not before.covers(name))
        watch.force(again)
        watch.dirty = True

    def _leave(self, tables: Names) -> None:
        """The client has let go of these route tables, and with each of its virtual hosts; it counts them as held until told (X4)."""
        before, self._left = self._left, tables
        hosts = self.watches.get(VIRTUAL_HOST)
        if hosts is not None and tables != before:
            self._purge(hosts, tables - before)
            hosts.dirty = True

    def _purge(self, hosts: Watch, tables: Names) -> None:
        """Have the client told that the virtual hosts of `tables` are gone, which others may go on to have."""
        gone = (name for group in hosts.known.groups for name in group.resources if table_of(name) in tables)
        if tables:
            hosts.known = hosts.known.but(dict.fromkeys((name for name in gone if hosts.known.held(name) != ABSENT), UNSURE))

    def _encode(self, watch: Watch, resources: list[Resource], removed: list[str], after: Known, only: Names | None) -> Response | None:
        if not watch.rules.removable:
            removed = []
        if not resources and not removed and not watch.owed:
            return None
        sequence, nonce = self.responses.next_nonce()
        parts = [part for resource in resources for part in (resource.delta_head, *resource.pieces)]
        if removed and watch.rules.on_demand:
            parts += [wire.nothing(name) for name in removed if name in watch.forced]
            removed = [name for name in removed if name not in watch.forced]
        type_url = watch.rules.type_url
        data = wire.delta_response(self.responses.delta_identity, type_url, after.version, nonce, parts, removed)
        return Response(
            watch.rules, sequence, nonce, data, tuple(resources), tuple(removed), len(resources), watch.known, after, only,
        )  # fmt: skip

    def _heartbeat(self, watch: Watch) -> Response | None:
        """What the client holds that would expire, without the bodies (X9)."""
        known = watch.known
        alive = [
            resource
            for group in known.groups
            for resource in group.expiring.values()
            if watch.subscription.covers(resource.name) and known.held(resource.name) == resource.version
        ]
        if not alive:
            return None
        sequence, nonce = self.responses.next_nonce()
        parts = [wire.heartbeat(resource.name, resource.version, resource.ttl_ms) for resource in alive]
        data = wire.delta_response(self.responses.delta_identity, watch.rules.type_url, known.version, nonce, parts, ())
        response = Response(watch.rules, sequence, nonce, data, (), (), len(alive), known, known, None)
        response.heartbeat = True
        return response


def _hosts(groups: Groups, table: str) -> list[str]:
    """The virtual hosts of a route table that are in groups of no table; one that does not exist where it has none at all.

    The client waits to hear of some.
    """
    if not any(not group.table for group in groups) or any(group.table == table for group in groups):
        return []
    return [name for group in groups for name in group.resources if table_of(name) == table] or [table + NO_HOST]
