"""The routes of a VirtualService, in its order, and the route of a service that has none."""

from typing import TYPE_CHECKING

from xds.envoy import names
from xds.envoy.per_route import per_filter_config
from xds.envoy.route_actions import default_action, direct_response, forward, redirect
from xds.envoy.route_headers import header_changes
from xds.envoy.route_matches import MESH, applies, route_match, takes_all
from xds.mesh.model import Client, Routing, Service
from xds.mesh.view import View
from xds.objects import HTTPMatchRequest, HTTPRoute

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_Metadata_Init as Metadata
    from xds.pb import envoy_config_route_v3_Route_Init as Route
    from xds.pb import envoy_config_route_v3_RouteMatch_Init as RouteMatch

DEFAULT_ROUTE = "default"


def http_routes(view: View, client: Client, routing: Routing, host: str, port: int, gateway: str = MESH) -> "list[Route]":
    """The routes of `routing`'s `http` rules for requests that `client` sends to `port` of `host`; empty where none apply to it.

    `gateway` is `mesh` for sidecars, else the gateway's `namespace/name`. Order is kept: the first route that matches a request
    takes it. What follows a route that takes all requests is left out.
    """
    routes: list[Route] = []
    for rule in routing.rule.spec.http:
        for match in rule.match or (None,):
            if match is not None and not applies(match, client, port, gateway, routing.rule.ref.namespace):
                continue
            conditions = route_match(match)
            routes.append(_route(view, routing, rule, match, conditions, host, port))
            if takes_all(conditions):
                return routes
    return routes


def default_route(view: View, service: Service, port: int) -> "Route":
    """The route of a service that no VirtualService governs: everything goes to the service."""
    route: Route = {
        "name": DEFAULT_ROUTE,
        "match": {"prefix": "/"},
        "decorator": {"operation": f"{service.hostname}:{port}/*"},
        "route": default_action(view, service, port),
    }
    if settings := per_filter_config(None, None, (service,)):
        route["typed_per_filter_config"] = settings
    return route


def _route(
    view: View, routing: Routing, rule: HTTPRoute, match: HTTPMatchRequest | None, conditions: "RouteMatch", host: str, port: int
) -> "Route":
    changes = header_changes(rule.headers)
    services: tuple[Service, ...] = ()
    cluster = ""
    route: Route = {
        "name": ".".join(name for name in (rule.name, match and match.name) if name),
        "match": conditions,
        "metadata": config_metadata(routing),
    }
    if rule.redirect is not None:
        route["redirect"] = redirect(rule.redirect, port)
    elif rule.direct_response is not None:
        route["direct_response"] = direct_response(rule.direct_response)
    else:
        forwarding = forward(view, rule, port, host)
        route["route"] = forwarding.action
        cluster = forwarding.action.get("cluster") or ""
        changes = forwarding.headers
        services = forwarding.services
    if match is not None and match.stat_prefix:
        route["stat_prefix"] = match.stat_prefix
    route.update(changes.fields())  # type: ignore[typeddict-item] # the keys are some of a route's
    if settings := per_filter_config(rule.fault, rule.cors_policy, services):
        route["typed_per_filter_config"] = settings
    route["decorator"] = {"operation": _operation(cluster, routing, port, conditions)}
    return route


def config_metadata(routing: Routing) -> "Metadata":
    """Names the VirtualService behind a route, where Istio's tools and dashboards look for it."""
    ref = routing.rule.ref
    config = f"/apis/networking.istio.io/v1/namespaces/{ref.namespace}/virtual-service/{ref.name}"
    return {"filter_metadata": {"istio": {"fields": {"config": {"string_value": config}}}}}


def _operation(cluster: str, routing: Routing, port: int, conditions: "RouteMatch") -> str:
    """The name of a route's spans: `host:port/path*`, with the VirtualService's name where there is no single host."""
    prefix, path, regex = conditions.get("prefix"), conditions.get("path"), conditions.get("safe_regex")
    where = f"{prefix}*" if prefix else path or (regex["regex"] if isinstance(regex, dict) else "")
    only = names.parse_outbound(cluster)
    return f"{routing.rule.ref.name}:{port}{where}" if only is None else f"{only.hostname}:{only.port}{where}"
