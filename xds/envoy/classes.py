"""Classes of proxies: which groups of resources each connected proxy gets, made when the first asks and kept while somebody does.

Every stream's node is a *claim*; what the mesh makes of it (a client) decides its shares, and the shares name its groups. The graph
watches the shares of each claim, so that a pod that gets a label, or a Sidecar that appears, moves just the proxies it concerns.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from xds import flow, pb
from xds.discovery.resources import Assignable, Assignment, Group
from xds.envoy.feeds import Feed
from xds.envoy.proxyless import Proxyless
from xds.envoy.translation import Shares, Translation
from xds.mesh.model import Locality
from xds.mesh.store import Mesh
from xds.mesh.workloads import PROXYLESS, Claim, claim

CLUSTER, ENDPOINTS, LISTENER, ROUTES = map(pb.type_url, (pb.Cluster, pb.ClusterLoadAssignment, pb.Listener, pb.RouteConfiguration))
VIRTUAL_HOSTS = pb.type_url(pb.VirtualHost)

FeedKey = tuple[str, Hashable] | tuple[str, Hashable, str]  # what it is, for whom, and of virtual hosts, of which route table


def claim_of(stream: Assignable) -> Claim:
    """What the proxy at the other end says of itself."""
    place = stream.node.locality
    at = Locality(place.region, place.zone, place.sub_zone)
    return claim(stream.node.id, stream.node_metadata, at, can_take_pieces=stream.pieces)


class _Held:
    """An assignment, the feeds of its groups, and how many claims have it."""

    __slots__ = ("assignment", "claims", "feeds")

    def __init__(self, assignment: Assignment, feeds: tuple[FeedKey, ...]) -> None:
        self.assignment = assignment
        self.feeds = feeds
        self.claims = 0


class Classes:
    """The groups in use and who uses them. Everything on the event loop's thread."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.translation = Translation(mesh)
        self.proxyless = Proxyless(self.translation)
        self._watch = flow.Watch()  # the shares of claims
        self._feeds: dict[FeedKey, Feed] = {}
        self._numbers = itertools.count()
        self._assignments: dict[Shares, _Held] = {}
        self._claims: dict[Claim, tuple[Shares, set[Assignable]]] = {}
        self._moved: dict[Claim, Shares | None] = {}
        self._touched: dict[Feed, None] = {}
        self._unused: set[Shares] = set()  # had no proxy when last looked at
        self._reported: dict[flow.Node, str] = {}

    def prepare(self, claimed: Claim) -> Iterator[None]:
        """Compute, a node at a time, what `open` will need for a proxy of this claim that nobody had before."""
        client = self.mesh.client(claimed)
        scope = self.mesh.scope(client)
        if self.translation.deciding.node(scope).state:
            for key in self.mesh.hosts(scope):
                self.translation.deciding_labels(scope, *key)
                yield
        yield from self._prepare(self.translation.shares(client))

    def _prepare(self, shares: Shares) -> Iterator[None]:
        """Compute, a node at a time, what making an assignment of these shares reads."""
        for feed_key, _, fixed, listing, member in self._plan(shares):
            feed = self._feeds.get(feed_key)
            if feed is not None:
                nodes: Iterable[flow.Node] = () if feed.users else tuple(feed.watch.dirty)
            else:
                keys = () if listing is None else _compute(listing)
                nodes = (*fixed, *(member(arguments) for arguments in keys or ()))
            for node in nodes:
                _compute(node)
                yield

    def keep(self, claimed: Claim) -> None:
        """Have the groups of a proxy of this claim at hand, until two calls of `release` find that none has come."""
        self._assignment(self.translation.shares(self.mesh.client(claimed)))

    def open(self, stream: Assignable) -> Assignment:
        """What a new stream gets; builds what nobody had before. ProtocolError where its node makes no sense."""
        claimed = claim_of(stream)
        known = self._claims.get(claimed)
        if known is None:
            shares = self._watch.add(self._shares(claimed))
            known = self._claims[claimed] = shares, set()
            self._hold(shares)
        shares, streams = known
        streams.add(stream)
        return self._assignment(shares)

    def close(self, stream: Assignable) -> None:
        """The stream has ended."""
        claimed = claim_of(stream)
        shares, streams = self._claims[claimed]
        streams.discard(stream)
        if not streams:
            del self._claims[claimed]
            self._moved.pop(claimed, None)
            self._watch.discard(self._shares(claimed))
            self._drop(shares)

    def settle(self) -> Iterator[None]:
        """Work out what changed, a node at a time; nobody sees anything of it until `flush`.

        Groups that no proxy has wait until one does.
        """
        while dirty := [feed for feed in self._feeds.values() if feed.users and feed.watch.dirty]:
            for feed in dirty:
                self._touched[feed] = None
                yield from feed.settle()
        for node, _, new in self._watch.changes():
            self._moved[node.args[0]] = new
            yield
            if new is not None and new not in self._assignments:
                yield from self._prepare(new)

    def flush(self) -> None:
        """Show everything that was settled, as one step."""
        touched, self._touched = self._touched, {}
        for feed in touched:
            feed.flush()
        moved, self._moved = self._moved, {}
        for claimed, shares in moved.items():
            before, streams = self._claims[claimed]
            if shares is None:
                continue  # it could not be worked out: what it has stays
            self._claims[claimed] = shares, streams
            self._hold(shares)
            self._drop(before)
            assignment = self._assignment(shares)
            for stream in streams:
                stream.assign(assignment)

    def release(self) -> None:
        """Let go of groups that nobody uses, nor did at the last call: proxies that have gone are often back in a moment."""
        unused = {shares for shares, held in self._assignments.items() if not held.claims}
        for shares in unused & self._unused:
            for key in self._assignments.pop(shares).feeds:
                feed = self._feeds[key]
                feed.assignments -= 1
                if not feed.assignments:
                    del self._feeds[key]
                    feed.stop()
        self._unused = unused - self._unused

    @contextmanager
    def asked(self, claimed: Claim) -> Iterator[tuple[Assignment, dict[str, Feed]]]:
        """What a proxy that makes this claim gets, and the feeds behind its groups by group name, kept up to date until the block ends."""
        shares = self._shares(claimed).read()
        self._hold(shares)
        try:
            yield self._assignment(shares), {self._feeds[key].group.name: self._feeds[key] for key in self._assignments[shares].feeds}
        finally:
            self._drop(shares)

    def connected(self, name: str, namespace: str) -> Claim | None:
        """The claim of a proxy of this name that is connected, None where there is none."""
        return next((claim for claim in self._claims if (claim.name, claim.namespace) == (name, namespace)), None)

    def new_errors(self) -> Iterator[tuple[flow.Node, Exception]]:
        """The translations that fail now and did not fail like this when last asked."""
        failing = {node: (repr(error), error) for node, error in self.mesh.errors()}
        for node, (text, error) in failing.items():
            if self._reported.get(node) != text:
                yield node, error
        self._reported = {node: text for node, (text, _) in failing.items()}

    def sizes(self, size_of: Callable[[Any, set[int]], int]) -> tuple[dict[str, dict[str, int]], int, int]:
        """How much is held: by type the groups and bytes of their resources, how many classes, and bytes of what they are made of.

        `size_of` counts an object and what it refers to, but for the objects whose ids are in the set, to which it adds.
        """
        held: dict[str, dict[str, int]] = {}
        seen: set[int] = set()
        for feed in self._feeds.values():
            kind = held.setdefault(feed.group.type_url.rpartition(".")[2], {"groups": 0, "resources": 0, "bytes": 0})
            kind["groups"] += 1
            kind["resources"] += len(feed.group.resources)
            kind["bytes"] += sum(size_of(resource, seen) for resource in feed.group.resources.values())
        seen.update(id(node) for feed in self._feeds.values() for node in feed.nodes())
        return held, len(self._assignments), sum(size_of(feed, seen) for feed in self._feeds.values())

    def _shares(self, claimed: Claim) -> flow.Node:
        return self.translation.claimed.node(claimed)

    def _hold(self, shares: Shares) -> None:
        """One more claim comes to these shares: their groups are kept up to date from now on."""
        self._assignment(shares)
        held = self._assignments[shares]
        held.claims += 1
        if held.claims == 1:
            for key in held.feeds:
                feed = self._feeds[key]
                feed.users += 1
                if feed.users == 1 and feed.watch.dirty:
                    for _ in feed.settle():
                        pass
                    feed.flush()

    def _drop(self, shares: Shares) -> None:
        held = self._assignments[shares]
        held.claims -= 1
        if not held.claims:
            for key in held.feeds:
                self._feeds[key].users -= 1

    def _assignment(self, shares: Shares) -> Assignment:
        held = self._assignments.get(shares)
        if held is not None:
            return held.assignment
        groups: dict[str, list[Group]] = {}
        keys = []
        for key, type_url, fixed, listing, member in self._plan(shares):
            feed = self._feeds.get(key)
            if feed is None:
                group = Group(type_url, f"{key[0]} {next(self._numbers)}", table=key[2] if len(key) == 3 else "")
                feed = self._feeds[key] = Feed(group, fixed, listing, member)
                feed.start()
                feed.flush()
            feed.assignments += 1
            keys.append(key)
            groups.setdefault(type_url, []).append(feed.group)
        workload = shares.inbound.client
        name = f"{workload.workload or 'unknown'}.{workload.namespace}"
        assignment = Assignment(name, {url: tuple(g) for url, g in groups.items()})
        self._assignments[shares] = _Held(assignment, tuple(keys))
        return assignment

    def _plan(self, shares: Shares) -> Iterator[tuple[FeedKey, str, Iterable[flow.Node], flow.Node | None, Any]]:
        if shares.inbound.client.kind == PROXYLESS:
            yield from self._proxyless_plan(shares)
            return
        t, scope, inbound = self.translation, shares.scope, shares.inbound
        c, e, li, r = shares.clusters, shares.endpoints, shares.listeners, shares.routes
        yield (
            ("outbound clusters", (scope, c)),
            CLUSTER,
            (t.common_clusters.node(scope, c),),
            t.cluster_hosts.node(scope, c),
            lambda k: t.clusters.node(scope, c, *k),
        )
        yield (("inbound clusters", inbound), CLUSTER, (t.inbound_clusters.node(inbound),), None, None)
        yield (("endpoints", (scope, e)), ENDPOINTS, (), t.endpoint_hosts.node(scope, e), lambda k: t.assignments.node(scope, e, *k))
        yield (
            ("outbound listeners", (scope, li)), LISTENER, (t.common_listeners.node(scope, li),),
            t.listener_names.node(scope, li), lambda k: t.listener.node(scope, li, *k),
        )  # fmt: skip
        if (d := shares.dns) is not None:
            yield (("DNS listeners", (scope, d)), LISTENER, (t.dns_listeners.node(scope, d),), None, None)
        yield (("inbound listeners", inbound), LISTENER, (t.inbound_listeners.node(inbound),), None, None)
        yield (("routes", (scope, r)), ROUTES, (), t.route_names.node(scope, r), lambda k: t.route.node(scope, r, *k))
        for table in shares.pieces:
            yield (("virtual hosts", (scope, r), table), VIRTUAL_HOSTS, (t.virtual_hosts.node(scope, r, table),), None, None)

    def _proxyless_plan(self, shares: Shares) -> Iterator[tuple[FeedKey, str, Iterable[flow.Node], flow.Node | None, Any]]:
        p, scope = self.proxyless, shares.scope
        c, e, r = shares.clusters, shares.endpoints, shares.routes
        yield ("gRPC clusters", (scope, c)), CLUSTER, (), p.hosts.node(scope, c, "clusters"), lambda k: p.clusters.node(scope, c, *k)
        yield ("gRPC endpoints", (scope, e)), ENDPOINTS, (), p.hosts.node(scope, e, "endpoints"), lambda k: p.assignments.node(scope, e, *k)
        # Of one name the first group has it: what a VirtualService says of just that name goes before what it is short for.
        yield ("gRPC listeners of rules", (scope, r)), LISTENER, (p.rule_listeners.node(scope, r),), None, None
        yield ("gRPC listeners", (scope, r)), LISTENER, (), p.hosts.node(scope, r, "listeners"), lambda k: p.listeners.node(scope, r, *k)
        yield ("gRPC routes of rules", (scope, r)), ROUTES, (p.rule_routes.node(scope, r),), None, None
        yield ("gRPC routes", (scope, r)), ROUTES, (), p.hosts.node(scope, r, "routes"), lambda k: p.routes.node(scope, r, *k)


def _compute(node: flow.Node) -> Any:
    """The value of `node`; None where that fails, which whoever watches it will find out."""
    try:
        return node.read()
    except Exception:  # noqa: BLE001 - kept on the node, reported by Graph.errors
        return None
