"""A VirtualService made ready: names in full, delegates merged in.

Istio: VirtualService `delegate`: a route of a root may hand over to another VirtualService's routes. Each of these keeps what
it says itself and takes the rest from the root's route; its matches must lie within the root's, else it has no effect.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec

from xds import objects as api
from xds.mesh.names import qualified

T = TypeVar("T")

_INHERITED = (
    "rewrite", "direct_response", "timeout", "retries", "fault", "mirror", "mirrors", "mirror_percentage", "mirror_percent",
    "mirror_percent_snake", "cors_policy", "headers",
)  # fmt: skip


def qualify(rule: api.VirtualService, http: Iterable[api.HTTPRoute]) -> api.VirtualService:
    """`rule` with `http` for its HTTP routes, and with hosts, destinations and gateways in full."""
    namespace, spec = rule.ref.namespace, rule.spec
    return msgspec.structs.replace(
        rule,
        spec=msgspec.structs.replace(
            spec,
            hosts=tuple(qualified(h, namespace) for h in spec.hosts),
            gateways=_gateways(spec.gateways, namespace),
            http=tuple(http),
            tls=tuple(_l4_route(r, namespace) for r in spec.tls),
            tcp=tuple(_l4_route(r, namespace) for r in spec.tcp),
        ),
    )


def qualify_route(route: api.HTTPRoute, namespace: str) -> api.HTTPRoute:
    """An HTTP route of a VirtualService in `namespace`, with destinations and gateways in full."""
    return msgspec.structs.replace(
        route,
        match=tuple(_match(m, namespace) for m in route.match),
        route=tuple(_weighted(d, namespace) for d in route.route),
        mirror=None if route.mirror is None else _destination(route.mirror, namespace),
        mirrors=tuple(msgspec.structs.replace(m, destination=_destination(m.destination, namespace)) for m in route.mirrors),
    )


L4Route = TypeVar("L4Route", api.TLSRoute, api.TCPRoute)
Weighted = TypeVar("Weighted", api.HTTPRouteDestination, api.RouteDestination)
Match = TypeVar("Match", api.HTTPMatchRequest, api.TLSMatchAttributes, api.L4MatchAttributes)


def _l4_route(route: L4Route, namespace: str) -> L4Route:
    match = tuple([_match(m, namespace) for m in route.match])
    return msgspec.structs.replace(route, match=match, route=tuple(_weighted(d, namespace) for d in route.route))


def _destination(destination: api.Destination, namespace: str) -> api.Destination:
    return msgspec.structs.replace(destination, host=qualified(destination.host, namespace))


def _weighted(route: Weighted, namespace: str) -> Weighted:
    return msgspec.structs.replace(route, destination=_destination(route.destination, namespace))


def _match(match: Match, namespace: str) -> Match:
    return msgspec.structs.replace(match, gateways=_gateways(match.gateways, namespace)) if match.gateways else match


def _gateways(names: Iterable[str], namespace: str) -> tuple[str, ...]:
    return tuple(n if n == "mesh" or "/" in n else f"{namespace}/{n}" for n in names)


def destinations(rule: api.VirtualService, source_namespace: str) -> Iterator[str]:
    """The hosts that a qualified VirtualService sends calls from `source_namespace` to, mirrors included."""
    for route in rule.spec.http:
        if _from(route.match, source_namespace):
            yield from (d.destination.host for d in route.route)
            yield from (m.destination.host for m in route.mirrors)
            if route.mirror is not None:
                yield route.mirror.host
    l4: tuple[api.TLSRoute | api.TCPRoute, ...] = (*rule.spec.tls, *rule.spec.tcp)
    for other in l4:
        if _from(other.match, source_namespace):
            yield from (d.destination.host for d in other.route)


AnyMatch = api.HTTPMatchRequest | api.TLSMatchAttributes | api.L4MatchAttributes


def _from(matches: Iterable[AnyMatch], namespace: str) -> bool:
    named = [m.source_namespace for m in matches]
    return not named or any(n in (None, "", namespace) for n in named)


def merge(root: api.HTTPRoute, delegate: api.HTTPRoute) -> api.HTTPRoute | None:
    """`delegate`, filled up from the `root` route that hands over to it; None where their matches exclude one another."""
    match = _merge_matches(root.match, delegate.match)
    if match is None:
        return None
    inherited = {name: getattr(root, name) for name in _INHERITED if not _given(getattr(delegate, name))}
    return msgspec.structs.replace(delegate, match=match, name=_join(root.name, delegate.name), **inherited)


def _given(value: object) -> bool:
    return value is not None and value != ()


def _join(root: str | None, delegate: str | None) -> str | None:
    return "-".join(filter(None, (root, delegate))) or None


def _merge_matches(
    roots: tuple[api.HTTPMatchRequest, ...], delegates: tuple[api.HTTPMatchRequest, ...]
) -> tuple[api.HTTPMatchRequest, ...] | None:
    if not roots or not delegates:
        return roots or delegates
    merged = []
    for leaf in delegates:
        fitting = [_merge_match(root, leaf) for root in roots if _within(root, leaf)]
        if not fitting:
            return None
        merged += fitting
    return tuple(merged)


def _merge_match(root: api.HTTPMatchRequest, leaf: api.HTTPMatchRequest) -> api.HTTPMatchRequest:
    return msgspec.structs.replace(
        leaf,
        name=_join(root.name, leaf.name),
        uri=leaf.uri or root.uri,
        ignore_uri_case=leaf.ignore_uri_case if leaf.uri else root.ignore_uri_case,
        scheme=leaf.scheme or root.scheme,
        method=leaf.method or root.method,
        authority=leaf.authority or root.authority,
        headers=root.headers | leaf.headers,
        without_headers=root.without_headers | leaf.without_headers,
        query_params=root.query_params | leaf.query_params,
        port=leaf.port or root.port,
        source_labels=root.source_labels | leaf.source_labels,
        source_namespace=leaf.source_namespace or root.source_namespace,
        gateways=leaf.gateways or root.gateways,
        stat_prefix=leaf.stat_prefix or root.stat_prefix,
    )


def _within(root: api.HTTPMatchRequest, leaf: api.HTTPMatchRequest) -> bool:
    """Whether the delegate's match lies within the root's, as far as Istio looks."""
    singles = (
        _string_within(root.uri, leaf.uri),
        _string_within(root.scheme, leaf.scheme),
        _string_within(root.method, leaf.method),
        _string_within(root.authority, leaf.authority),
        not (root.uri and leaf.uri) or root.ignore_uri_case == leaf.ignore_uri_case,
        not (root.port and leaf.port) or root.port == leaf.port,
        not (root.source_namespace and leaf.source_namespace) or root.source_namespace == leaf.source_namespace,
        not (root.gateways and leaf.gateways) or set(leaf.gateways) <= set(root.gateways),
        _agree(root.source_labels, leaf.source_labels, lambda a, b: a == b),
    )
    maps = ((root.headers, leaf.headers), (root.without_headers, leaf.without_headers), (root.query_params, leaf.query_params))
    return all(singles) and all(_agree(r, d, _string_within) for r, d in maps)


def _agree(root: Mapping[str, T], leaf: Mapping[str, T], within: Callable[[T, T], bool]) -> bool:
    return all(within(root[key], leaf[key]) for key in root.keys() & leaf.keys())


def _string_within(root: api.StringMatch | None, leaf: api.StringMatch | None) -> bool:
    if root is None or leaf is None:
        return True
    if root.regex or leaf.regex:  # which of two expressions matches more cannot be told
        return False
    if root.exact:
        return leaf.exact == root.exact
    if root.prefix:
        return (leaf.prefix or leaf.exact or "").startswith(root.prefix)
    return False
