"""Which requests a route takes: VirtualService match conditions as Envoy's, and those that only look at the client.

Source labels, source namespace, port and gateways are known when the routes are made: `applies` decides them, and they are not in
what Envoy gets.
"""

from typing import TYPE_CHECKING

from xds.envoy.regexes import ANY, regex_matcher
from xds.mesh.model import Client
from xds.objects import HTTPMatchRequest, StringMatch

if TYPE_CHECKING:
    from xds.pb import envoy_config_route_v3_HeaderMatcher_Init as HeaderMatcher
    from xds.pb import envoy_config_route_v3_QueryParameterMatcher_Init as QueryParameterMatcher
    from xds.pb import envoy_config_route_v3_RouteMatch_Init as RouteMatch
    from xds.pb import envoy_type_matcher_v3_MetadataMatcher_Init as MetadataMatcher
    from xds.pb import envoy_type_matcher_v3_StringMatcher_Init as StringMatcher

MESH = "mesh"  # the gateway that means all sidecars

# Istio: HTTPMatchRequest, `headers`: these keys have fields of their own and are ignored here.
IGNORED_HEADERS = frozenset({"uri", "scheme", "method", "authority"})

# Istio: HTTPMatchRequest, `@request.auth.claims.group` and `@request.auth.claims[group]` look into the validated JWT.
CLAIMS = "@request.auth.claims"
JWT_FILTER = "envoy.filters.http.jwt_authn"


def applies(match: HTTPMatchRequest, client: Client, port: int, gateway: str, namespace: str) -> bool:
    """Whether `match` may take requests that `client` sends to `port` through `gateway` (`mesh` for sidecars).

    All its conditions must hold; but those on the caller are for sidecars only, where a match names gateways: at a gateway the
    caller is not known. `namespace` is the rule's: gateway names without one are in it.
    """
    if match.port and match.port != port:
        return False
    if match.gateways:
        if all(gateway_name(g, namespace) != gateway for g in match.gateways):
            return False
        if gateway != MESH:
            return True
    if match.source_namespace and match.source_namespace != client.namespace:
        return False
    return match.source_labels.items() <= dict(client.labels).items()


def gateway_name(name: str, namespace: str) -> str:
    """The full name of a gateway that an object in `namespace` refers to: `mesh` or `namespace/name`."""
    return name if name == MESH or "/" in name else f"{namespace}/{name}"


def route_match(match: HTTPMatchRequest | None) -> "RouteMatch":
    """Envoy's form of `match`; None takes every request.

    A `prefix` is a plain one: `/foo` takes `/foobar` too (Istio). What `{}` matches is any value, but it must be there.
    """
    if match is None:
        return {"prefix": "/"}
    fields = _path(match.uri)
    if match.uri is not None and match.ignore_uri_case:
        fields["case_sensitive"] = {"value": False}
    headers: list[HeaderMatcher] = []
    metadata: list[MetadataMatcher] = []
    for wanted, without in ((match.headers, False), (match.without_headers, True)):
        for name, value in sorted(wanted.items()):
            if name.startswith(CLAIMS):
                metadata.append(_claim(name, value, without))
            elif name not in IGNORED_HEADERS:
                headers.append(_header(name, value, without))
    for name, condition in ((":method", match.method), (":authority", match.authority), (":scheme", match.scheme)):
        if condition is not None:
            headers.append(_header(name, condition))
    if headers:
        fields["headers"] = headers
    if match.query_params:
        fields["query_parameters"] = [_query(name, value) for name, value in sorted(match.query_params.items())]
    if metadata:
        fields["dynamic_metadata"] = metadata
    return fields


def takes_all(match: "RouteMatch") -> bool:
    """Whether every request matches, so that no later route is ever used."""
    if match.keys() & {"headers", "query_parameters", "dynamic_metadata"}:
        return False
    return match.get("prefix") == "/" or match.get("safe_regex") == regex_matcher(ANY)


def _path(uri: StringMatch | None) -> "RouteMatch":
    if uri is None:
        return {"prefix": "/"}
    if uri.exact is not None:
        return {"path": uri.exact}
    if uri.regex is not None:
        return {"safe_regex": regex_matcher(uri.regex)}
    return {"prefix": uri.prefix or "/"}


def _any_value(value: StringMatch) -> bool:
    """Whether any value will do: nothing is asked of it, the prefix is empty, or the regex is `*`."""
    if value.exact is not None:
        return False
    return not value.prefix if value.regex is None else value.regex in ("*", ANY)


def string_matcher(value: StringMatch) -> "StringMatcher":
    """Envoy's form of a condition on a string. Envoy refuses empty prefixes: they become a regex that takes all."""
    if value.exact is not None:
        return {"exact": value.exact}
    if value.regex is not None:
        return {"safe_regex": regex_matcher(value.regex)}
    return {"prefix": value.prefix} if value.prefix else {"safe_regex": regex_matcher(ANY)}


def _header(name: str, value: StringMatch, without: bool = False) -> "HeaderMatcher":
    fields: HeaderMatcher = {"name": name}
    if _any_value(value):
        fields["present_match"] = True
    else:
        fields["string_match"] = string_matcher(value)
        # A request without the header can't have the value that it must not have.
        fields["treat_missing_header_as_empty"] = without
    if without:
        fields["invert_match"] = True
    return fields


def _query(name: str, value: StringMatch) -> "QueryParameterMatcher":
    if _any_value(value):
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_matcher(value)}


def _claim(key: str, value: StringMatch, without: bool) -> "MetadataMatcher":
    """A condition on a claim of the request's JWT; nested claims as `[a][b]` or `.a.b`, lists match by any member."""
    rest = key.removeprefix(CLAIMS)
    names = rest[1:-1].split("][") if rest.startswith("[") else rest.lstrip(".").split(".")
    matcher = string_matcher(value)
    return {
        "filter": JWT_FILTER,
        "path": [{"key": name} for name in ("payload", *names)],
        "value": {
            "or_match": {"value_matchers": [{"string_match": matcher}, {"list_match": {"one_of": {"string_match": matcher}}}]}
        },
        "invert": without,
    }
