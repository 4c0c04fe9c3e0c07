"""Which filter chain takes a connection: matches that never overlap, and the chains of an outbound service that speaks bytes.

Envoy compares one thing after another: destination port, destination address, server name (SNI), transport protocol, application
protocol. At each step it follows the most specific match only, and does not come back when a later step fails: the connection
then gets the default chain. So the chain that takes the rest is always the default one, and a chain for some addresses has to be
there for all that may come to these addresses.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from xds.envoy import names
from xds.envoy.addresses import network
from xds.envoy.clusters import stat_name
from xds.envoy.filters import Chain
from xds.envoy.filters.network import network_filters, tcp_proxy
from xds.envoy.http_routes import config_metadata
from xds.envoy.outbound_plan import Bind, Target
from xds.envoy.route_actions import cluster_of
from xds.mesh.model import Client, Resolution, Routing, Service
from xds.mesh.names import covers
from xds.mesh.view import View
from xds.objects import L4MatchAttributes, RouteDestination, TLSMatchAttributes

if TYPE_CHECKING:
    from xds.pb import envoy_config_listener_v3_Filter_Init as NetworkFilter
    from xds.pb import envoy_config_listener_v3_FilterChain_Init as FilterChain
    from xds.pb import envoy_config_listener_v3_FilterChainMatch_Init as FilterChainMatch

# What the HTTP inspector says of plain text HTTP.
PLAIN_HTTP = ("http/1.0", "http/1.1", "h2c")
RAW = "raw_buffer"
TLS = "tls"


class Match(msgspec.Struct, frozen=True):
    """What a filter chain takes. Empty means any."""

    subnets: tuple[str, ...] = ()  # networks in CIDR notation, host bits cleared
    server_names: tuple[str, ...] = ()
    transport: str = ""
    applications: tuple[str, ...] = ()
    port: int = 0

    @property
    def takes_all(self) -> bool:
        return self == EVERYTHING

    def message(self) -> "FilterChainMatch | None":
        """Envoy's match, None where it takes everything."""
        if self.takes_all:
            return None
        return {
            "destination_port": {"value": self.port} if self.port else None,
            "prefix_ranges": [
                {"address_prefix": str(net.network_address), "prefix_len": {"value": net.prefixlen}} for net in map(network, self.subnets)
            ],
            "server_names": self.server_names,
            "transport_protocol": self.transport,
            "application_protocols": self.applications,
        }


EVERYTHING = Match()
ANYWHERE = ""  # the subnet of all addresses


class Draft(msgspec.Struct, frozen=True):
    """A filter chain in the making: what it takes, and what Envoy does with it."""

    match: Match
    filters: Any  # list of network filters
    name: str = ""
    metadata: Any = None
    transport_socket: Any = None  # what ends TLS, None where nothing does

    def message(self) -> "FilterChain":
        """Envoy's filter chain."""
        return {
            "name": self.name,
            "filter_chain_match": self.match.message(),
            "filters": self.filters,
            "metadata": self.metadata,
            "transport_socket": self.transport_socket,
        }


def distinct(drafts: Iterable[Draft]) -> Iterator[Draft]:
    """The chains, less what an earlier one takes already: Envoy refuses a listener in which two chains take the same.

    Of a chain that shares some names or subnets with earlier ones the others are left; a chain with nothing left is dropped.
    """
    taken: set[tuple[int, str, str, str, str]] = set()
    for draft in drafts:
        match = draft.match
        server_names = tuple(n for n in match.server_names or ("",) if taken.isdisjoint(_keys(match, match.subnets, (n,))))
        subnets = match.subnets
        if not server_names:
            server_names = match.server_names or ("",)
            subnets = tuple(subnet for subnet in match.subnets if taken.isdisjoint(_keys(match, (subnet,), server_names)))
            if not subnets:
                continue
        taken |= _keys(match, subnets, server_names)
        left = replace(match, subnets=subnets, server_names=tuple(filter(None, server_names)))
        yield replace(draft, match=left)


def _keys(match: Match, subnets: Sequence[str], server_names: Sequence[str]) -> set[tuple[int, str, str, str, str]]:
    """What Envoy keeps a chain under: one key for each combination of what it matches."""
    return {
        (match.port, subnet, name, match.transport, application)
        for subnet in subnets or ("",)
        for name in server_names
        for application in match.applications or ("",)
    }


def target_chains(view: View, client: Client, bind: Bind, target: Target) -> Iterator[Draft]:
    """The chains of one service port whose connections are forwarded as bytes: as its VirtualService says, else to its cluster.

    Of the rules whose static parts (source labels, source namespace, port, gateway) fit the client, the first wins among
    those that match the same connections.
    """
    service = view.service(target.hostname)
    if service is None or service.namespace != target.namespace:
        return
    chain = Chain(inbound=False, config=view.config, client=client, protocol=target.protocol, port=bind.port)
    routing = view.routing(target.hostname)
    subnets = target.subnets
    if target.protocol.is_tls:
        drafts = [] if routing is None else list(first_match(_tls_rules(view, bind, target, chain, routing)))
        if drafts:
            yield from drafts
            return
        # Where nothing else is known of the address, the name that the caller gives tells the services apart.
        by_name = bool(subnets) or bind.wildcard or target != bind.targets[0]
        server_names = _server_names((service.hostname, *service.aliases)) if by_name else ()
        yield Draft(Match(subnets, server_names or ()), _own(view, chain, service, target))
        return
    rules = [] if routing is None else list(_tcp_rules(view, bind, target, chain, routing))
    yield from first_match((*rules, Draft(Match(subnets), _own(view, chain, service, target))))


def _tls_rules(view: View, bind: Bind, target: Target, chain: Chain, routing: Routing) -> Iterator[Draft]:
    for rule in routing.rule.spec.tls:
        filters = None
        for match in rule.match:
            server_names = _server_names(match.sni_hosts)
            subnets = _subnets(match, bind, target)
            if server_names is None or subnets is None or not _fits(match, chain):
                continue
            filters = filters or _routes(view, chain, rule.route, routing, target)
            yield Draft(Match(subnets, server_names), filters, metadata=config_metadata(routing))


def _tcp_rules(view: View, bind: Bind, target: Target, chain: Chain, routing: Routing) -> Iterator[Draft]:
    for rule in routing.rule.spec.tcp:
        found = [target.subnets] if not rule.match else [_subnets(m, bind, target) for m in rule.match if _fits(m, chain)]
        places = [subnets for subnets in found if subnets is not None]
        if not places:
            continue
        filters = _routes(view, chain, rule.route, routing, target)
        for subnets in places:
            yield Draft(Match(subnets), filters, metadata=config_metadata(routing))


def _within(subnet: str, other: str) -> bool:
    """Whether all addresses of `subnet` are of `other`."""
    if not subnet or not other:
        return not other
    inner, outer = network(subnet), network(other)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type] # they are of one version


def first_match(rules: Iterable[Draft]) -> Iterator[Draft]:
    """Chains by which the first of `rules` that matches a connection takes it, though Envoy prefers the narrower of two matches.

    Of `rules`, subnets and server names count. Of a rule it is left out what an earlier one takes; and where an earlier rule has
    narrower subnets it is there for these too, since Envoy looks at no others once an address is among them.
    """
    ordered = list(rules)
    found: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for place in dict.fromkeys(subnet for rule in ordered for subnet in rule.match.subnets or (ANYWHERE,)):
        taken: list[str] = []
        for number, rule in enumerate(ordered):
            if any(_within(place, subnet) for subnet in rule.match.subnets or (ANYWHERE,)):
                names = tuple(n for n in rule.match.server_names or ("*",) if not any(covers(t, n) for t in taken))
                taken += names
                if names:
                    found.setdefault((number, names), []).append(place)
    for (number, names), places in found.items():
        server_names = () if names == ("*",) else names
        subnets = tuple(place for place in places if place)
        if subnets:
            yield replace(ordered[number], match=Match(subnets, server_names))
        if ANYWHERE in places:
            yield replace(ordered[number], match=Match((), server_names))


def _fits(match: L4MatchAttributes | TLSMatchAttributes, chain: Chain) -> bool:
    """Whether the parts of a match that depend on the client and the listener only fit."""
    labels = dict(chain.client.labels)
    return (
        (not match.gateways or "mesh" in match.gateways)
        and all(labels.get(key) == value for key, value in match.source_labels.items())
        and match.port in (None, 0, chain.port)
        and match.source_namespace in (None, "", chain.client.namespace)
    )


def _subnets(match: L4MatchAttributes | TLSMatchAttributes, bind: Bind, target: Target) -> tuple[str, ...] | None:
    """The subnets a match means: its own before the service's. A Unix socket has none. None where none of them is valid.

    Subnets of all addresses that the listener may have are no condition: Envoy keeps a chain without subnets and one with
    `0.0.0.0/0` apart, and looks at one of them only.
    """
    if not match.destination_subnets or not bind.port:
        return target.subnets
    found = []
    for subnet in match.destination_subnets:
        try:
            found.append(str(network(subnet)))
        except ValueError:
            continue
    everywhere = {"::/0" if ":" in address else "0.0.0.0/0" for address in bind.addresses}
    return () if everywhere.issubset(found) else tuple(dict.fromkeys(found)) or None


def _server_names(hosts: Iterable[str]) -> tuple[str, ...] | None:
    """What Envoy matches for SNI `hosts`: empty for any. None where it can match none: it knows `*.` at the start only."""
    found = []
    for host in hosts:
        if host == "*":
            return ()
        if "*" not in host.removeprefix("*."):
            found.append(host.lower())
    return tuple(dict.fromkeys(found)) or None


def _own(view: View, chain: Chain, service: Service, target: Target) -> "list[NetworkFilter]":
    """Filters that forward to a service's own cluster."""
    cluster = names.outbound(service.hostname, target.port)
    last = tcp_proxy(chain, _stat_prefix(chain, cluster, service, target.port), [(cluster, 1)], view.traffic_policy(service, target.port))
    return network_filters(_resolving(chain, service), last)


def _resolving(chain: Chain, service: Service | None) -> Chain:
    """`chain`, as one that leads to `service`."""
    if service is None or service.resolution is not Resolution.DYNAMIC_DNS:
        return chain
    return replace(chain, dynamic_dns=True)


def _stat_prefix(chain: Chain, cluster: str, service: Service | None, port: int, subset: str = "") -> str:
    """What statistics call connections to one cluster."""
    found = None if service is None else service.port(port)
    if service is None or found is None:
        return cluster
    return stat_name(chain.config.outbound_cluster_stat_name, service, found, subset) or cluster


def _routes(view: View, chain: Chain, routes: Iterable[RouteDestination], routing: Routing, target: Target) -> "list[NetworkFilter]":
    """Filters that forward to the destinations of a rule. The first one's policy is that of the whole (Istio)."""
    clusters: list[tuple[str, int]] = []
    policy, stat_prefix = None, ""
    for route in routes:
        cluster, service, port = cluster_of(view, route.destination, chain.port or target.port, target.hostname)
        if not clusters:
            subset = route.destination.subset or ""
            chain = _resolving(chain, service)
            stat_prefix = _stat_prefix(chain, cluster, service, port, subset)
            policy = None if service is None else view.traffic_policy(service, port, subset)
        clusters.append((cluster, route.weight or 0))
    if len(clusters) != 1:
        clusters = [(cluster, weight) for cluster, weight in clusters if weight > 0] or [(names.BLACK_HOLE, 1)]
        stat_prefix = f"{routing.rule.ref.name}.{routing.rule.ref.namespace}"
    return network_filters(chain, tcp_proxy(chain, stat_prefix, clusters, policy))
