"""What must hold for the messages that a VirtualService is made of, wherever they stand: what Istio's reference asks of each, and what
Envoy would refuse together with all other routes of a port.

An error is what has no meaning that could be served; what just has no effect is a warning.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from xds.errors import Problem
from xds.objects.meta import Message
from xds.objects.paths import below
from xds.objects.virtual_service import (
    GRPC_STATUSES,
    Abort,
    CorsPolicy,
    Delay,
    Delegate,
    HeaderOperations,
    Headers,
    HTTPBody,
    HTTPMatchRequest,
    HTTPRedirect,
    HTTPRetry,
    HTTPRewrite,
    HTTPRoute,
    L4MatchAttributes,
    StringMatch,
    TLSMatchAttributes,
)

MAX_BODY_BYTES = 1024 * 1024  # of a direct response, as route tables have it
MAX_HEADER_VALUE_BYTES = 16384  # Envoy: HeaderValue
CLAIMS = re.compile(r"@request\.auth\.claims(\.[^.\[\]]+)+|@request\.auth\.claims(\[[^\[\]]+\])+")
# Of Envoy's headers x-envoy-retry-on and x-envoy-retry-grpc-on.
RETRY_CONDITIONS = frozenset(
    """
    5xx gateway-error reset reset-before-request connect-failure envoy-ratelimited retriable-4xx refused-stream
    retriable-status-codes retriable-headers http3-post-connect-failure
    cancelled deadline-exceeded internal resource-exhausted unavailable
    """.split()
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_GROUP = re.compile(r"\\(\d)")


def _no_effect(path: str, reason: str) -> Problem:
    return Problem(path, reason, warning=True)


def _port(path: str, number: int | None) -> Iterator[Problem]:
    """Zero is none."""
    if number and number > 65535:
        yield Problem(path, f"{number} is not a port from 1 to 65535")


def _subnets(path: str, subnets: Iterable[str]) -> Iterator[Problem]:
    for i, subnet in enumerate(subnets):
        try:
            ipaddress.ip_network(subnet, strict=False)
        except ValueError:
            yield Problem(f"{path}[{i}]", f"{subnet!r} is no IP address or CIDR")


def _text(path: str, text: str | None) -> Iterator[Problem]:
    if text and _CONTROL.search(text):
        yield Problem(path, "a header's value has no control characters")


def _string_match(path: str, match: StringMatch) -> Iterator[Problem]:
    if match.regex == "":
        yield Problem(f"{path}.regex", "an empty regular expression; leave it out to match anything")


def _http_match(path: str, match: HTTPMatchRequest) -> Iterator[Problem]:
    yield from _port(f"{path}.port", match.port)
    for part, names in (("headers", match.headers), ("withoutHeaders", match.without_headers), ("queryParams", match.query_params)):
        for name in names:
            if not name:
                yield Problem(f"{path}.{part}", "a name is empty")
            elif _CONTROL.search(name):
                yield Problem(below(f"{path}.{part}", name), "a name has no control characters")
            elif name.startswith("@request.auth.claims") and part != "queryParams" and not CLAIMS.fullmatch(name):
                yield Problem(
                    below(f"{path}.{part}", name), "names no claim, as in @request.auth.claims.group or @request.auth.claims[group]"
                )


def _l4_match(path: str, match: L4MatchAttributes | TLSMatchAttributes) -> Iterator[Problem]:
    yield from _port(f"{path}.port", match.port)
    yield from _subnets(f"{path}.destinationSubnets", match.destination_subnets)
    if isinstance(match, L4MatchAttributes) and match.source_subnet:
        yield _no_effect(f"{path}.sourceSubnet", "has no effect: connections are not told apart by where they come from")


def _headers(path: str, headers: Headers) -> Iterator[Problem]:
    for part, operations in (("request", headers.request), ("response", headers.response)):
        if operations is not None:
            yield from _unchangeable(f"{path}.{part}", operations, requests=part == "request")


def _unchangeable(path: str, operations: HeaderOperations, *, requests: bool) -> Iterator[Problem]:
    """Only the host of a request can be replaced: the path, the method and the status are no headers to change."""
    for part, names in (("set", operations.set), ("add", operations.add), ("remove", operations.remove)):
        for i, name in enumerate(names):
            host = name.lower() in ("host", ":authority")
            if (host or name.startswith(":")) and not (host and requests and part != "remove"):
                at = f"{path}.remove[{i}]" if part == "remove" else below(f"{path}.{part}", name)
                yield _no_effect(at, f"{name!r} cannot be changed here; it has no effect")
    for part, values in (("set", operations.set), ("add", operations.add)):
        for name, value in values.items():
            if len(value.encode()) > MAX_HEADER_VALUE_BYTES:
                yield Problem(below(f"{path}.{part}", name), f"a header's value has {MAX_HEADER_VALUE_BYTES} bytes at most")


def _redirect(path: str, redirect: HTTPRedirect) -> Iterator[Problem]:
    yield from _port(f"{path}.port", redirect.port)
    yield from _text(f"{path}.uri", redirect.uri)
    yield from _text(f"{path}.authority", redirect.authority)
    yield from _text(f"{path}.prefixRewrite", redirect.prefix_rewrite)
    yield from _text(f"{path}.scheme", redirect.scheme)
    if redirect.uri and redirect.prefix_rewrite:
        yield Problem(path, "uri and prefixRewrite exclude one another: give one of them")
    where = (redirect.uri, redirect.authority, redirect.prefix_rewrite, redirect.scheme, redirect.port, redirect.derive_port)
    if not any(where):
        yield Problem(path, "where to? Give a uri, prefixRewrite, authority, scheme or port")


def _body(path: str, body: HTTPBody) -> Iterator[Problem]:
    try:
        size = len(body.content)
    except ValueError:
        yield Problem(f"{path}.bytes", "not base64")
        return
    if size > MAX_BODY_BYTES:
        yield Problem(path, f"{size} bytes, of which a response has {MAX_BODY_BYTES} at most")


def _rewrite(path: str, rewrite: HTTPRewrite) -> Iterator[Problem]:
    yield from _text(f"{path}.uri", rewrite.uri)
    yield from _text(f"{path}.authority", rewrite.authority)
    regex = rewrite.uri_regex_rewrite
    if regex is not None and regex.match:
        yield from _text(f"{path}.uriRegexRewrite.rewrite", regex.rewrite)
        if rewrite.uri:
            yield _no_effect(f"{path}.uri", "has no effect beside uriRegexRewrite")
    elif not rewrite.uri and not rewrite.authority:
        yield _no_effect(path, "nothing is rewritten: give a uri, uriRegexRewrite or authority")


def _retry(path: str, retry: HTTPRetry) -> Iterator[Problem]:
    for token in (retry.retry_on or "").split(","):
        condition = token.strip()
        status = condition.isascii() and condition.isdecimal() and 100 <= int(condition) <= 599
        if condition and not status and condition not in RETRY_CONDITIONS:
            yield _no_effect(f"{path}.retryOn", f"{condition!r} is neither a condition that Envoy knows nor a status; it has no effect")


def _abort(path: str, abort: Abort) -> Iterator[Problem]:
    if abort.grpc_status is not None and abort.grpc_status not in GRPC_STATUSES:
        yield Problem(f"{path}.grpcStatus", f"{abort.grpc_status!r} is not the name of a gRPC status, such as UNAVAILABLE")
    elif abort.http_status is None and abort.grpc_status is None:
        yield _no_effect(path, "no request is aborted: give httpStatus or grpcStatus")
    elif abort.percentage is None:
        yield _no_effect(path, "no request is aborted: give a percentage")


def _delay(path: str, delay: Delay) -> Iterator[Problem]:
    if delay.percent is not None and not 0 <= delay.percent <= 100:
        yield Problem(f"{path}.percent", f"{delay.percent} is not from 0 to 100")
    elif not delay.fixed_delay:
        yield _no_effect(path, "no request is delayed: give a fixedDelay")
    elif delay.percentage is None and delay.percent is None:
        yield _no_effect(path, "no request is delayed: give a percentage")


def _cors(path: str, cors: CorsPolicy) -> Iterator[Problem]:
    for part, names in (("allowMethods", cors.allow_methods), ("allowHeaders", cors.allow_headers), ("exposeHeaders", cors.expose_headers)):
        for i, name in enumerate(names):
            yield from _text(f"{path}.{part}[{i}]", name)
    if cors.max_age is not None and cors.max_age % timedelta(seconds=1):
        yield _no_effect(f"{path}.maxAge", "browsers count whole seconds; the rest has no effect")


def _delegate(path: str, delegate: Delegate) -> Iterator[Problem]:
    if not delegate.name:
        yield Problem(f"{path}.name", "which VirtualService has the routes must be said")


def _route(path: str, route: HTTPRoute) -> Iterator[Problem]:
    for name, percent in (("mirrorPercent", route.mirror_percent), ("mirror_percent", route.mirror_percent_snake)):
        if percent is not None and percent > 100:
            yield Problem(f"{path}.{name}", f"{percent} is not from 0 to 100")
    if route.mirror is None and route.mirror_percentage is not None:
        yield _no_effect(f"{path}.mirrorPercentage", "has no effect without a mirror; those in mirrors have percentages of their own")
    if route.redirect is not None and route.redirect.prefix_rewrite:
        for i, match in enumerate(route.match or (HTTPMatchRequest(),)):
            if match.uri is None or not match.uri.prefix:
                where = f"{path}.match[{i}].uri" if route.match else f"{path}.match"
                yield Problem(where, "redirect.prefixRewrite replaces the prefix that was matched: give one")


ROUTING_RULES: dict[type[Message], Callable[[str, Any], Iterator[Problem]]] = {
    Abort: _abort,
    CorsPolicy: _cors,
    Delay: _delay,
    Delegate: _delegate,
    Headers: _headers,
    HTTPBody: _body,
    HTTPMatchRequest: _http_match,
    HTTPRedirect: _redirect,
    HTTPRetry: _retry,
    HTTPRewrite: _rewrite,
    HTTPRoute: _route,
    L4MatchAttributes: _l4_match,
    StringMatch: _string_match,
    TLSMatchAttributes: _l4_match,
}
