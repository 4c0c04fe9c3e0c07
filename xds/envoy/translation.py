"""Everything that a client may get, as derived values: one node a cluster set, an assignment set, a listener, a virtual host, a table.

What a node is keyed by decides who shares it. The outer nodes, which feed groups, are keyed by scope and by a *projection* of the
client: the client with all that cannot change this kind of resource taken out. They mostly pass on inner nodes, keyed by less:
where no rule of a scope changes what a service's clusters look like, they are the default scope's clusters.
"""

from collections.abc import Iterable
from functools import cached_property
from itertools import chain

import msgspec
from google.protobuf.message import Message

from xds import flow, pb
from xds.discovery.resources import Resource, content_hash
from xds.envoy.addresses import wildcards
from xds.envoy.clusters import (
    black_hole_cluster,
    inbound_cluster,
    inbound_passthrough_cluster,
    outbound_clusters,
    passthrough_cluster,
)
from xds.envoy.dns_listeners import Known, dns_listeners
from xds.envoy.endpoints import assignments, deciding_labels
from xds.envoy.inbound_listeners import inbound_listeners
from xds.envoy.listeners import Bind, Conflict, Plan, RouteNeed, Target, http_proxy, outbound_listener, plan, pod_binds, virtual_outbound
from xds.envoy.localities import project
from xds.envoy.routes import catch_all, join, route_configuration_header, rule_virtual_host, service_virtual_host, shortened
from xds.mesh.model import Client, Inbound, Locality, Mode, Routing, Scope
from xds.mesh.store import Mesh
from xds.mesh.workloads import Claim

ServiceKey = tuple[str, str]  # hostname, namespace
ServicePort = tuple[str, str, int]  # and a port's number
Resources = tuple[Resource, ...]

ROUTE_CONFIGURATION = pb.type_url(pb.RouteConfiguration)

# What tells the virtual hosts of a route table apart.
SHARED = "shared"  # the Host header: all services of one port
ANY_HOST = "any host"  # nothing: the address said which service is meant
PROXIED = "proxied"  # the Host header with its port: the HTTP proxy's table has all ports

ANY_DOMAIN = "*"

EVERYONE = Scope()


class Workload(msgspec.Struct, frozen=True, cache_hash=True):
    """What decides a proxy's inbound side: how it is called, and what of the client shows in its listeners."""

    client: Client
    inbounds: tuple[Inbound, ...]


class Shares(msgspec.Struct, frozen=True, cache_hash=True):
    """What a client shares with others: its scope, and its projection for each kind of resource."""

    scope: Scope
    clusters: Client
    endpoints: Client
    listeners: Client
    routes: Client
    inbound: Workload
    dns: Client | None = None  # None: its DNS queries do not come to the proxy
    pieces: tuple[str, ...] = ()  # the route tables whose virtual hosts are sent one by one


def resources(messages: Iterable[Message]) -> Resources:
    """`messages` as resources, in the same order."""
    return tuple(Resource.of(m) for m in messages)


class Translation(flow.Graph):
    """The derived resources. Reads the mesh; shares its graph's bookkeeping."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(parent=mesh)
        self.mesh = mesh

    # Who shares what

    @flow.derived
    def claimed(self, claim: Claim) -> Shares:
        """The shares of the proxy that makes this claim."""
        return self.shares(self.mesh.client(claim))

    @flow.derived
    def shares(self, client: Client) -> Shares:
        """The scope of `client`, and its projections. What a projection keeps is what that kind of resource may depend on."""
        scope = self.mesh.scope(client)
        seen = Client(
            namespace=scope.namespace,
            labels=scope.labels,
            addresses=wildcards(client),
            mode=client.mode,
            kind=client.kind,
            domain=client.domain,
            http10=client.http10,
            allocates=client.allocates,
        )
        routes = msgspec.structs.replace(
            seen, namespace=client.namespace, addresses=(), http10=False, mode=Mode.REDIRECT, pieces=client.pieces
        )
        return Shares(
            scope=scope,
            clusters=_placed(
                msgspec.structs.replace(seen, mode=Mode.NONE if client.mode is Mode.NONE else Mode.REDIRECT, http10=False, allocates=False),
                client,
                self.deciding_of_names(scope),
            ),
            endpoints=_placed(Client(namespace=scope.namespace), client, self.deciding(scope)),
            listeners=seen,
            routes=routes,
            inbound=Workload(
                msgspec.structs.replace(
                    client, locality=Locality(), node="", addresses=wildcards(client), pieces=False, dns=False, allocates=False
                ),
                self.mesh.inbound(client),
            ),
            dns=_resolving(client, scope) if client.dns else None,
            pieces=self.tables_in_pieces(scope, routes) if client.pieces else (),
        )

    @flow.derived
    def deciding(self, scope: Scope) -> frozenset[str]:
        """The labels of a client that decide which endpoints it gets, or in what order, of any service of `scope`."""
        return frozenset().union(*(self.deciding_labels(scope, *key) for key in self.mesh.hosts(scope)))

    @flow.derived
    def deciding_of_names(self, scope: Scope) -> frozenset[str]:
        """The same of services whose endpoints are names: those are in their clusters, and in no assignment."""
        return frozenset().union(*(self.deciding_labels(scope, *key) for key in self.mesh.hosts(scope) if self._by_name(*key)))

    @flow.derived
    def deciding_labels(self, scope: Scope, hostname: str, namespace: str) -> frozenset[str]:
        """The same of one service."""
        service = self.mesh.service(hostname, namespace)
        return frozenset() if service is None else deciding_labels(self.mesh.view(scope), service)

    def _by_name(self, hostname: str, namespace: str) -> bool:
        service = self.mesh.service(hostname, namespace)
        return service is not None and service.resolution.by_name

    @flow.derived
    def rule_scope(self, scope: Scope, hostname: str, namespace: str) -> Scope:
        """The least scope with the same DestinationRules for this service: where it is EVERYONE, all share what depends on them."""
        return EVERYONE if self.mesh.policy(scope, hostname, namespace) == self.mesh.policy(EVERYONE, hostname, namespace) else scope

    @flow.derived
    def cluster_hosts(self, scope: Scope, _client: Client) -> tuple[ServiceKey, ...]:
        """All services of the scope, as the listing of one group of clusters: a node feeds one group only."""
        return self.mesh.hosts(scope)

    @flow.derived
    def endpoint_hosts(self, scope: Scope, _client: Client) -> tuple[ServiceKey, ...]:
        """The same as the listing of one group of assignments."""
        return self.mesh.hosts(scope)

    # Clusters and endpoints

    @flow.derived
    def clusters(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        """The outbound clusters of one service."""
        place = self.deciding_labels(scope, hostname, namespace) if self._by_name(hostname, namespace) else ()
        return self._clusters(
            self.rule_scope(scope, hostname, namespace), _placed(_within(client, EVERYONE), client, place), hostname, namespace
        )

    @flow.derived
    def _clusters(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        service = self.mesh.service(hostname, namespace)
        return () if service is None else resources(outbound_clusters(self.mesh.view(scope), service, client))

    @flow.derived
    def common_clusters(self, _scope: Scope, _client: Client) -> Resources:
        """The clusters that every proxy of a scope has, whatever services it sees."""
        config = self.mesh.config()
        return resources([passthrough_cluster(config), black_hole_cluster()])

    @flow.derived
    def inbound_clusters(self, workload: Workload) -> Resources:
        """The clusters in front of a workload's own ports."""
        config, client = self.mesh.config(), workload.client
        made = [inbound_cluster(inbound, client, config) for inbound in workload.inbounds]
        if client.mode is not Mode.NONE:
            made.append(inbound_passthrough_cluster(client, config))
        return resources({cluster.name: cluster for cluster in reversed(made)}.values())

    @flow.derived
    def assignments(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        """The endpoints of one service: an assignment for each of its clusters that asks for one."""
        least = self.rule_scope(scope, hostname, namespace)
        return self._assignments(least, project(client, self.deciding_labels(scope, hostname, namespace)), hostname, namespace)

    @flow.derived
    def _assignments(self, scope: Scope, client: Client, hostname: str, namespace: str) -> Resources:
        service = self.mesh.service(hostname, namespace)
        return () if service is None else resources(assignments(self.mesh.view(scope), service, client))

    # Listeners

    def plan(self, scope: Scope, client: Client) -> Plan:
        """Which outbound listeners a scope has, and which services share each: one plan for all clients that bind alike."""
        seen = Client(namespace=scope.namespace, addresses=wildcards(client), mode=client.mode, allocates=client.allocates)
        return self._plan(scope, seen)

    def conflicts(self) -> set[Conflict]:
        """The service ports that lose an address to another, by the plans of the proxies there are."""
        plans = (node.value for node in self._plan.nodes.values() if node.readers)
        return {conflict for plan in plans if isinstance(plan, Plan) for conflict in plan.conflicts}

    @flow.derived
    def _plan(self, scope: Scope, client: Client) -> Plan:
        return plan(self.mesh.view(scope), self.mesh.egress(scope), client)

    @flow.derived
    def listener_names(self, scope: Scope, client: Client) -> tuple[tuple[str, Target | None], ...]:
        """The names of the outbound listeners, each with the service whose pods make it, if any: the arguments of its node."""
        plan = self.plan(scope, client)
        names: list[tuple[str, Target | None]] = [(name, None) for name in plan.binds]
        for target in plan.pods:
            names += [(name, target) for name in self.pods(scope, client, target)]
        return tuple(names)

    @flow.derived
    def pods(self, scope: Scope, client: Client, target: Target) -> dict[str, Bind]:
        """The entries that a service of the plan without an address of its own adds for its pods."""
        return pod_binds(self.mesh.view(scope), client, target)

    @flow.derived
    def bind(self, scope: Scope, client: Client, name: str, target: Target | None) -> Bind | None:
        """One entry of the plan: what does not change it, changes no listener."""
        binds = self.plan(scope, client).binds if target is None else self.pods(scope, client, target)
        return binds.get(name)

    @flow.derived
    def listener(self, scope: Scope, client: Client, name: str, target: Target | None) -> Resources:
        """One outbound listener."""
        bind = self.bind(scope, client, name, target)
        if bind is None:
            return ()
        return resources([outbound_listener(self.mesh.view(scope), client, bind, self.mesh.outbound_policy(scope))])

    @flow.derived
    def common_listeners(self, scope: Scope, client: Client) -> Resources:
        """The outbound listeners that every proxy of a scope has, whatever services it sees."""
        config = self.mesh.config()
        made = [virtual_outbound(config, client, self.mesh.outbound_policy(scope)), http_proxy(config, client)]
        return resources(listener for listener in made if listener is not None)

    @flow.derived
    def dns_listeners(self, scope: Scope, client: Client) -> Resources:
        """The listeners for captured DNS queries, with a table of all hosts of the scope."""
        known = (self.known_name(*key, client.allocates) for key in self.mesh.hosts(scope))
        return resources(dns_listeners(client, self.mesh.config(), (name for name in known if name is not None)))

    @flow.derived
    def known_name(self, hostname: str, namespace: str, allocates: bool) -> Known | None:
        """What a table says of one service: its names and addresses; None where the client's own DNS servers are to be asked."""
        service = self.mesh.service(hostname, namespace)
        if service is None:
            return None
        addresses = self.mesh.called_at(service, allocates=allocates)
        return ((hostname, *service.aliases), addresses) if addresses else None

    @flow.derived
    def inbound_listeners(self, workload: Workload) -> Resources:
        """The listeners on which a workload is called."""
        return resources(inbound_listeners(workload.client, workload.inbounds, self.mesh.config()))

    # Routes

    @flow.derived
    def route_names(self, scope: Scope, client: Client) -> tuple[tuple[str], ...]:
        """The names of the route tables that the scope's listeners ask for."""
        return tuple((name,) for name in self.plan(scope, client).routes)

    @flow.derived
    def tables_in_pieces(self, scope: Scope, client: Client) -> tuple[str, ...]:
        """The route tables whose virtual hosts a client that takes them one by one is sent so: those that have many.

        Which ones does not depend on how many there are now: Envoy does not forget the virtual hosts of a table that changes its
        form, and does not ask for them again.
        """
        return tuple(name for name, need in self.plan(scope, client).routes.items() if not need.sniffed)

    @flow.derived
    def route_need(self, scope: Scope, client: Client, name: str) -> RouteNeed | None:
        """What one route table is made of."""
        return self.plan(scope, client).routes.get(name)

    @flow.derived
    def route(self, scope: Scope, client: Client, name: str) -> Resources:
        """One route table, joined from virtual hosts that were serialised before.

        The tables of two namespaces of one scope mostly differ just in the short names of their own services, so each is the scope's
        table with its own services' virtual hosts put in.
        """
        table, segments = self._segments(scope, client, name)
        if table is None:
            return ()
        pieces = client.pieces and table.form != ANY_HOST
        message = route_configuration_header(name, proxied=table.form == PROXIED, pieces=pieces)
        header = message.SerializeToString(deterministic=True)
        if pieces:
            segments = tuple(Segment.of((), (host for host in part.hosts if ANY_DOMAIN in host.domains)) for part in segments)
        version = content_hash(header, *(part.version for part in segments))
        return (Resource(name, ROUTE_CONFIGURATION, version, (header, *(part.fields for part in segments))),)

    @flow.derived
    def virtual_hosts(self, scope: Scope, client: Client, name: str) -> Resources:
        """The virtual hosts of one route table, for clients that are sent them one by one; that of all other hosts is in the table.

        Envoy knows by their names which table they are of.
        """
        return tuple(chain.from_iterable(part.pieces(name) for part in self._segments(scope, client, name)[1]))

    def _segments(self, scope: Scope, client: Client, name: str) -> "tuple[RouteTable | None, tuple[Segment, ...]]":
        """The route table of the scope, and its virtual hosts as this client is to have them."""
        if client.pieces:
            client = msgspec.structs.replace(client, pieces=False)
        table = self.route_table(scope, msgspec.structs.replace(client, namespace=scope.namespace), name)
        if table is None:
            return None, ()
        if client.namespace != scope.namespace and client.namespace in table.elsewhere:
            table = self.route_table(scope, client, name) or table
        segments = table.segments
        own = segments.get(client.namespace)
        if own is not None and client.namespace not in (scope.namespace, *table.elsewhere) and table.form != ANY_HOST:
            taken = Taken(table.taken, (domain for host in own.hosts for domain in host.domains))
            hosts = self._hosts(scope, client, own.services, table.form, taken)
            segments = segments | {client.namespace: Segment.of(own.services, hosts)}
        return table, (*segments.values(), table.others)

    @flow.derived
    def route_table(self, scope: Scope, client: Client, name: str) -> "RouteTable | None":
        """One route table as a set of virtual hosts.

        Of two virtual hosts that claim a domain the older has it: Envoy refuses a table in which a domain stands twice. What a
        VirtualService says of just the name that was called, `reviews.prod`, goes before what the name is short for.
        """
        need = self.route_need(scope, client, name)
        if need is None:
            return None
        form = ANY_HOST if need.sniffed else PROXIED if need.port == 0 else SHARED
        taken = Taken()
        others: list[VirtualHost] = []
        if form != ANY_HOST:
            for host in self.rule_hosts(scope, client, need.port):
                if not taken.of(host.domains):
                    others.append(host)
                    taken.add(host.domains)
        made = dict(zip(need.services, self._hosts(scope, client, need.services, form, taken), strict=True))
        of_namespace: dict[str, list[ServicePort]] = {}
        for key in need.services:
            of_namespace.setdefault(key[1], []).append(key)
        if form != ANY_HOST and not taken.of(("*",)):
            others.append(self._catch_all(scope))
        segments = {where: Segment.of(tuple(keys), (made[key] for key in keys)) for where, keys in of_namespace.items()}
        elsewhere: frozenset[str] = frozenset().union(*(host.shortened for host in others))
        elsewhere = elsewhere.union(*(host.shortened - {where} for where, segment in segments.items() for host in segment.hosts))
        return RouteTable(form, segments, Segment.of((), others), frozenset(taken.added), elsewhere)

    def _hosts(
        self, scope: Scope, client: Client, services: Iterable[ServicePort], form: str, taken: "Taken"
    ) -> "list[VirtualHost | None]":
        """The virtual hosts of `services`, each without the domains that are `taken`, to which its own are added."""
        hosts = []
        for key in services:
            host = self._free(scope, client, key, form, taken)
            if host is not None:
                taken.add(host.domains)
            hosts.append(host)
        return hosts

    def _free(self, scope: Scope, client: Client, key: ServicePort, form: str, taken: "Taken") -> "VirtualHost | None":
        """The virtual host of a service port, without the domains that others have already."""
        host = self.virtual_host(scope, client, *key, form)
        clashes = None if host is None else taken.of(host.domains)
        return self._made(scope, client, *key, clashes, form) if clashes else host

    @flow.derived
    def virtual_host(self, scope: Scope, client: Client, hostname: str, namespace: str, port: int, form: str) -> "VirtualHost | None":
        """The virtual host of one service port, for clients of this scope and namespace."""
        least = self.route_scope(scope, hostname, namespace)
        if client.namespace not in (namespace, least.namespace):
            service = self.mesh.service(hostname, namespace)
            if service is None or client.namespace not in shortened((hostname, *service.aliases)):
                client = msgspec.structs.replace(client, namespace=least.namespace)
        return self._virtual_host(least, msgspec.structs.replace(client, labels=least.labels), hostname, namespace, port, form)

    @flow.derived
    def _virtual_host(self, scope: Scope, client: Client, hostname: str, namespace: str, port: int, form: str) -> "VirtualHost | None":
        return self._made(scope, client, hostname, namespace, port, frozenset(), form)

    def _made(
        self, scope: Scope, client: Client, hostname: str, namespace: str, number: int, taken: frozenset[str], form: str
    ) -> "VirtualHost | None":
        service = self.mesh.service(hostname, namespace)
        port = None if service is None else service.port(number)
        if service is None or port is None:
            return None
        message = service_virtual_host(self.mesh.view(scope), client, service, port, taken, proxied=form == PROXIED)
        if message is not None and form == ANY_HOST:
            del message.domains[:]
            message.domains.append("*")
        return None if message is None else VirtualHost.of(message, shortened((hostname, *service.aliases)))

    @flow.derived
    def rule_hosts(self, scope: Scope, client: Client, port: int) -> "tuple[VirtualHost, ...]":
        """The hosts of this port that only a VirtualService knows."""
        view = self.mesh.view(scope)
        hosts = self.mesh.rule_hosts(scope, port)
        made = ((host, rule_virtual_host(view, client, host, routing, port)) for host, routing in hosts)
        return tuple(VirtualHost.of(message, shortened((host,))) for host, message in made if message is not None)

    @flow.derived
    def _catch_all(self, scope: Scope) -> "VirtualHost":
        return VirtualHost.of(catch_all(self.mesh.outbound_policy(scope), self.mesh.config()))

    @flow.derived
    def route_scope(self, scope: Scope, hostname: str, namespace: str) -> Scope:
        """The least scope with the same routes for this service: the same VirtualService, leading to the same services and rules."""
        if scope == EVERYONE:
            return EVERYONE
        routing = self.mesh.routing(scope, hostname)
        if routing != self.mesh.routing(EVERYONE, hostname) or self.rule_scope(scope, hostname, namespace) != EVERYONE:
            return scope
        if routing is not None and _asks_for_sources(routing):
            return scope
        here, everywhere = self.mesh.view(scope), self.mesh.view(EVERYONE)
        for host in _destinations(routing):
            service = here.destination(host)
            if service != everywhere.destination(host):
                return scope
            if service is not None and self.rule_scope(scope, service.hostname, service.namespace) != EVERYONE:
                return scope
        return EVERYONE


class VirtualHost(msgspec.Struct, frozen=True, dict=True):
    """A virtual host as a serialised field of a route configuration, and the domains it claims.

    Clients in the namespaces `shortened` have more names for it, those that their resolvers complete.
    """

    domains: tuple[str, ...]
    field: bytes
    version: bytes
    shortened: frozenset[str] = frozenset()

    @classmethod
    def of(cls, message: "pb.VirtualHost", shortened: frozenset[str] = frozenset()) -> "VirtualHost":
        body = message.SerializeToString(deterministic=True)
        return cls(tuple(message.domains), join(b"", (body,)), content_hash(body).encode(), shortened)

    @cached_property
    def pieces(self) -> dict[str, Resource]:
        """What `piece` has made, by route table."""
        return {}

    def piece(self, table: str) -> Resource:
        """It as a resource of its own, of this route table. Its name says so (Envoy: VHDS, `<route configuration>/<any name>`)."""
        made = self.pieces.get(table)
        if made is None:
            message = pb.RouteConfiguration.FromString(self.field).virtual_hosts[0]
            message.name = f"{table}/{message.name}"
            made = self.pieces[table] = Resource.of(message)
        return made


class Taken:
    """The domains that virtual hosts of a table have: those of a table made before, but for some that are free again, and `added`."""

    def __init__(self, before: frozenset[str] = frozenset(), free: Iterable[str] = ()) -> None:
        self.added: set[str] = set()
        self._before = before
        self._free = frozenset(free)

    def of(self, domains: Iterable[str]) -> frozenset[str]:
        """Those of `domains` that are taken."""
        if self.added.isdisjoint(domains) and self._before.isdisjoint(domains):
            return frozenset()
        return frozenset([d for d in domains if d in self.added or (d in self._before and d not in self._free)])

    def add(self, domains: Iterable[str]) -> None:
        """These are taken now."""
        self.added.update(domains)


class Segment(msgspec.Struct, frozen=True, dict=True):
    """The virtual hosts of a table that are of one namespace's services: joined once for all tables that have them alike."""

    services: tuple[ServicePort, ...]
    hosts: tuple[VirtualHost, ...]
    fields: bytes
    version: bytes

    @classmethod
    def of(cls, services: tuple[ServicePort, ...], hosts: "Iterable[VirtualHost | None]") -> "Segment":
        """`hosts` in their order, without those that a service does not have."""
        made = tuple(host for host in hosts if host is not None)
        version = b"".join([host.version for host in made])
        return cls(services, made, b"".join([host.field for host in made]), version)

    @cached_property
    def _pieces(self) -> dict[str, Resources]:
        return {}

    def pieces(self, table: str) -> Resources:
        """The virtual hosts as resources of their own, of this route table; without one for any host, which stays in the table."""
        made = self._pieces.get(table)
        if made is None:
            made = self._pieces[table] = tuple([host.piece(table) for host in self.hosts if ANY_DOMAIN not in host.domains])
        return made


class RouteTable(msgspec.Struct, frozen=True):
    """A route table before it is joined. The `others` come after the services' virtual hosts; the catch-all is the last."""

    form: str
    segments: dict[str, Segment]  # by namespace
    others: Segment
    taken: frozenset[str]  # every domain of the table
    elsewhere: frozenset[str]  # namespaces that have short names for what is not in their segment: their tables are made whole


def _resolving(client: Client, scope: Scope) -> Client:
    """What of `client` shows in the listeners for its DNS queries."""
    mode = Mode.NONE if client.mode is Mode.NONE else Mode.REDIRECT
    return Client(namespace=scope.namespace, addresses=wildcards(client), mode=mode, allocates=client.allocates)


def _within(client: Client, scope: Scope) -> Client:
    """`client` as one of `scope`."""
    return msgspec.structs.replace(client, namespace=scope.namespace, labels=scope.labels)


def _asks_for_sources(routing: Routing) -> bool:
    """Whether some of the rule's HTTP routes are for callers of a namespace or with labels alone."""
    return any(match.source_labels or match.source_namespace for http in routing.rule.spec.http for match in http.match)


def _placed(client: Client, at: Client, labels: Iterable[str]) -> Client:
    """`client`, with as much of where `at` is as these labels tell."""
    place = project(at, labels)
    return msgspec.structs.replace(client, labels=place.labels, locality=place.locality, node=place.node, network=place.network)


def _destinations(routing: Routing | None) -> set[str]:
    """The hosts that the rule's HTTP routes lead to."""
    if routing is None:
        return set()
    hosts: set[str] = set()
    for http in routing.rule.spec.http:
        hosts.update(route.destination.host for route in http.route)
        hosts.update(mirror.destination.host for mirror in http.mirrors)
        if http.mirror is not None:
            hosts.add(http.mirror.host)
    return hosts
