"""What becomes of a request that a route takes: it is forwarded, redirected or answered."""

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from xds import pb
from xds.envoy import names
from xds.envoy.load_balancing import hash_policies
from xds.envoy.per_route import fractional_percent
from xds.envoy.regexes import regex_matcher
from xds.envoy.route_headers import NO_CHANGES, HeaderChanges, header_changes
from xds.mesh.model import Service
from xds.mesh.view import View
from xds.objects import Destination, HTTPDirectResponse, HTTPRedirect, HTTPRetry, HTTPRoute, HTTPRouteDestination

if TYPE_CHECKING:
    from xds.pb import envoy_config_route_v3_DirectResponseAction_Init as DirectResponseAction
    from xds.pb import envoy_config_route_v3_RedirectAction_Init as RedirectAction
    from xds.pb import envoy_config_route_v3_RetryPolicy_Init as RetryPolicy
    from xds.pb import envoy_config_route_v3_RetryPolicy_RetryHostPredicate_Init as RetryHostPredicate
    from xds.pb import envoy_config_route_v3_RetryPolicy_RetryPriority_Init as RetryPriority
    from xds.pb import envoy_config_route_v3_RouteAction_HashPolicy_Init as HashPolicy
    from xds.pb import envoy_config_route_v3_RouteAction_Init as RouteAction
    from xds.pb import envoy_config_route_v3_RouteAction_RequestMirrorPolicy_Init as MirrorPolicy
    from xds.pb import envoy_config_route_v3_WeightedCluster_ClusterWeight_Init as ClusterWeight

DISABLED = timedelta()  # a timeout of zero never ends a request

# Istio: HTTPRoute, `retries`: what is retried where neither the rule nor the mesh says otherwise.
RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
ATTEMPTS = 2
HOST_SELECTION_ATTEMPTS = 5
PREVIOUS_HOSTS: "RetryHostPredicate" = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": pb.any(pb.PreviousHosts()),
}
PREVIOUS_PRIORITIES: "RetryPriority" = {
    "name": "envoy.retry_priorities.previous_priorities",
    "typed_config": pb.any(pb.PreviousPriorities(update_frequency=2)),
}
STATUS_CODES = "retriable-status-codes"

HTTP_PORT, HTTPS_PORT = 80, 443

REDIRECT_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}


class Forwarding(msgspec.Struct, frozen=True):
    """How requests are forwarded: Envoy's action, the route's changes to headers, and the services it may reach."""

    action: "RouteAction"
    headers: HeaderChanges
    services: tuple[Service, ...]


def cluster_of(view: View, destination: Destination, port: int, called: str) -> tuple[str, Service | None, int]:
    """The cluster, service and service port that `destination` means on a listener of `port`.

    A destination without a port means the service's only port, else the listener's. A host that no service has keeps its name:
    the cluster does not exist, so requests get a 503 (Istio: Destination, "will be dropped"). `called` is the host that the
    caller means: who calls a headless service itself has chosen one of its pods, others get any of them.
    """
    service = view.destination(destination.host)
    if destination.port is not None and destination.port.number:
        port = destination.port.number
    elif service is not None and len(service.ports) == 1:
        port = service.ports[0].number
    hostname = destination.host if service is None else service.hostname
    subset = destination.subset or ""
    if not subset and service is not None and service.headless and service.hostname != called:
        subset = names.EVERY_POD
    return names.outbound(hostname, port, subset), service, port


def _hash_policies(view: View, service: Service | None, port: int, subset: str) -> "list[HashPolicy]":
    return [] if service is None else hash_policies(view.traffic_policy(service, port, subset))


def default_action(view: View, service: Service, port: int) -> "RouteAction":
    """Forwards to the service itself, as no rule says otherwise."""
    hashes = _hash_policies(view, service, port, "")
    action: RouteAction = {
        "cluster": names.outbound(service.hostname, port),
        "timeout": DISABLED,
        "max_grpc_timeout": DISABLED,
        "hash_policy": hashes,
    }
    if policy := retry_policy(view.config.default_http_retry_policy, sticky=bool(hashes)):
        action["retry_policy"] = policy
    return action


def forward(view: View, rule: HTTPRoute, port: int, called: str) -> Forwarding:
    """Forwards to the rule's destinations.

    What a destination sets in headers wins over what the rule sets. Envoy has it the other way round where a route has several
    destinations (it applies a weighted cluster's changes, then the route's), so there, as soon as one destination has changes of its
    own, all of them carry the rule's too: a header does not change its value because a second destination is added.
    """
    targets = [_target(view, route, port, called) for route in _weighted(rule.route)]
    # Envoy hashes by all of them together: it has no policies for one of several destinations. Equal ones count once, or each
    # would make a cookie.
    hashes: list[HashPolicy] = []
    for target in targets:
        hashes += [policy for policy in target.hashes if policy not in hashes]
    timeout = DISABLED if rule.timeout is None else rule.timeout
    action: RouteAction = {
        "timeout": timeout,
        # Deprecated by Envoy, but with its successor, max_stream_duration, Envoy does not look at `timeout` any more. (Istio)
        "max_grpc_timeout": timeout,
        "hash_policy": hashes,
    }
    headers = header_changes(rule.headers)
    authority = headers.authority
    if rule.rewrite is not None:
        authority = rule.rewrite.authority or authority
        regex = rule.rewrite.uri_regex_rewrite
        if regex is not None and regex.match:
            action["regex_rewrite"] = {"pattern": regex_matcher(regex.match), "substitution": regex.rewrite or ""}
        elif rule.rewrite.uri:
            # Envoy replaces what matched: the prefix, or the whole path where it was matched exactly or by a regex.
            action["prefix_rewrite"] = rule.rewrite.uri
    if not targets:
        action["cluster"] = names.BLACK_HOLE
    elif len(targets) == 1:
        action["cluster"] = targets[0].cluster
        headers = headers.then(targets[0].headers)
        authority = authority or headers.authority
    else:
        own = any(target.headers != NO_CHANGES for target in targets)
        common, headers = (headers, NO_CHANGES) if own else (NO_CHANGES, headers)
        action["weighted_clusters"] = {"clusters": [target.weighted(common, not authority) for target in targets]}
    if authority:
        action["host_rewrite_literal"] = authority
    retries = view.config.default_http_retry_policy if rule.retries is None else rule.retries
    if policy := retry_policy(retries, sticky=bool(hashes)):
        action["retry_policy"] = policy
    if mirrors := _mirrors(view, rule, port, called):
        action["request_mirror_policies"] = mirrors
    return Forwarding(action, headers, tuple(target.service for target in targets if target.service is not None))


class _Target(msgspec.Struct, frozen=True):
    cluster: str
    service: Service | None
    weight: int
    headers: HeaderChanges
    hashes: "list[HashPolicy]"

    def weighted(self, common: HeaderChanges, may_set_host: bool) -> "ClusterWeight":
        """Its share of a route with several, with `common` changes to headers before its own."""
        fields: ClusterWeight = {"name": self.cluster, "weight": {"value": self.weight}}
        fields.update(common.then(self.headers).fields())  # type: ignore[typeddict-item] # the keys are some of a cluster's
        if may_set_host and self.headers.authority:
            fields["host_rewrite_literal"] = self.headers.authority
        return fields


def _target(view: View, route: HTTPRouteDestination, port: int, called: str) -> _Target:
    name, service, port = cluster_of(view, route.destination, port, called)
    hashes = _hash_policies(view, service, port, route.destination.subset or "")
    return _Target(name, service, route.weight or 0, header_changes(route.headers), hashes)


def _weighted(routes: tuple[HTTPRouteDestination, ...]) -> tuple[HTTPRouteDestination, ...]:
    """The destinations that get traffic: a single one gets all, of several those with a weight (Istio: HTTPRouteDestination)."""
    return routes if len(routes) == 1 else tuple(route for route in routes if (route.weight or 0) > 0)


def _mirrors(view: View, rule: HTTPRoute, port: int, called: str) -> "list[MirrorPolicy]":
    """Where copies of requests go, with `-shadow` appended to their host (Istio: "Mirroring"). An explicit zero percent sends none."""
    wanted = [(m.destination, 100.0 if m.percentage is None else m.percentage.value) for m in rule.mirrors]
    if rule.mirror is not None:
        wanted.insert(0, (rule.mirror, rule.mirror_share))
    return [
        {
            "cluster": cluster_of(view, destination, port, called)[0],
            "runtime_fraction": {"default_value": fractional_percent(share)},
        }
        for destination, share in wanted
        if share > 0
    ]


def retry_policy(retries: HTTPRetry | None, *, sticky: bool = False) -> "RetryPolicy | None":
    """Envoy's form of `retries`; Istio's default for None. None where nothing is retried.

    `sticky` routes hash requests to endpoints: a retry may go to the same one again, as hashing has it.
    """
    if retries is None:
        retries = HTTPRetry(attempts=ATTEMPTS)
    if not retries.attempts:
        # Without retries a timeout for each try is one for the only try (Istio: HTTPRetry, "including the initial call").
        return {"per_try_timeout": retries.per_try_timeout} if retries.per_try_timeout else None
    retry_on, codes = _conditions(retries.retry_on or RETRY_ON)
    policy: RetryPolicy = {
        "retry_on": retry_on,
        "num_retries": {"value": retries.attempts},
        "per_try_timeout": retries.per_try_timeout,
        "retriable_status_codes": codes,
        "host_selection_retry_max_attempts": HOST_SELECTION_ATTEMPTS,
    }
    ignore = retries.retry_ignore_previous_hosts
    if ignore or (ignore is None and not sticky):
        policy["retry_host_predicate"] = [PREVIOUS_HOSTS]
    if retries.retry_remote_localities:
        policy["retry_priority"] = PREVIOUS_PRIORITIES
    if retries.backoff:
        policy["retry_back_off"] = {"base_interval": retries.backoff}
    return policy


def _conditions(retry_on: str) -> tuple[str, list[int]]:
    """`503,reset` as Envoy wants it: the conditions, and the status codes apart from them."""
    tokens = [token.strip() for token in retry_on.split(",")]
    codes = [int(token) for token in tokens if token.isdecimal()]
    conditions = [token for token in tokens if token and not token.isdecimal()]
    if codes and STATUS_CODES not in conditions:
        conditions.append(STATUS_CODES)
    return ",".join(conditions), codes


def redirect(rule: HTTPRedirect, port: int) -> "RedirectAction":
    """Tells the caller to go elsewhere. `port` is the listener's."""
    action: RedirectAction = {"response_code": REDIRECT_CODES[rule.redirect_code or 301]}  # type: ignore[typeddict-item]
    if rule.authority:
        action["host_redirect"] = rule.authority
    if rule.uri:
        action["path_redirect"] = rule.uri
    elif rule.prefix_rewrite:
        action["prefix_rewrite"] = rule.prefix_rewrite
    if rule.scheme:
        action["scheme_redirect"] = rule.scheme
    if rule.port:
        action["port_redirect"] = rule.port
    elif rule.derive_port == "FROM_REQUEST_PORT":
        action["port_redirect"] = port
    elif rule.derive_port == "FROM_PROTOCOL_DEFAULT" and not rule.authority and port != HTTP_PORT:
        # Callers name such a port in the Host header, from where Envoy would take it.
        action["port_redirect"] = HTTPS_PORT if rule.scheme == "https" else HTTP_PORT
    return action


def direct_response(rule: HTTPDirectResponse) -> "DirectResponseAction":
    """Answers without asking anyone."""
    action: DirectResponseAction = {"status": rule.status}
    if rule.body is not None and rule.body.string is not None:
        action["body"] = {"inline_string": rule.body.string}
    elif rule.body is not None and rule.body.bytes is not None:
        action["body"] = {"inline_bytes": rule.body.content}
    return action
