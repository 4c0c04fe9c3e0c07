"""Settings of HTTP filters for one route: faults, cross-origin requests, sticky sessions.

Envoy looks them up by the names of the filters in the listener's chain, so these names are the ones used there.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from xds import pb
from xds.envoy.route_matches import string_matcher
from xds.mesh.model import Service
from xds.objects import GRPC_STATUSES, Abort, CorsPolicy, Delay, HTTPFaultInjection

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_TypedExtensionConfig_Init as TypedExtensionConfig
    from xds.pb import envoy_extensions_filters_common_fault_v3_FaultDelay_Init as FaultDelay
    from xds.pb import envoy_extensions_filters_http_fault_v3_FaultAbort_Init as FaultAbort
    from xds.pb import envoy_type_v3_FractionalPercent_Init as FractionalPercent
    from xds.pb import google_protobuf_Any_Init as AnyMessage

FAULT = "envoy.filters.http.fault"
CORS = "envoy.filters.http.cors"
STATEFUL_SESSION = "envoy.filters.http.stateful_session"

# Istio's labels and annotations on a Service that keep a client at the endpoint that it was first sent to.
SESSION_COOKIE = "istio.io/persistent-session"  # `name` or `name:/path`
SESSION_HEADER = "istio.io/persistent-session-header"
SESSION_COOKIE_TTL = timedelta(seconds=120)


def per_filter_config(
    fault: HTTPFaultInjection | None, cors: CorsPolicy | None, services: Iterable[Service] = ()
) -> "dict[str, AnyMessage]":
    """The settings of a route by filter name, empty where it has none. `services` are those that it may forward to.

    Where several of them ask for sticky sessions, the first decides (Istio).
    """
    settings = {
        FAULT: fault_settings(fault),
        CORS: cors_settings(cors),
        STATEFUL_SESSION: next(filter(None, map(session_settings, services)), None),
    }
    return {name: pb.any(message) for name, message in settings.items() if message is not None}


def fractional_percent(percentage: float) -> "FractionalPercent":
    """`percentage` (0 to 100) to a ten-thousandth of a percent, which is as fine as Envoy can have it."""
    return {"numerator": round(percentage * 10_000), "denominator": "MILLION"}


def fault_settings(fault: HTTPFaultInjection | None) -> Message | None:
    """The fault filter's settings; None where no request would be delayed or aborted."""
    if fault is None:
        return None
    delay, abort = _delay(fault.delay), _abort(fault.abort)
    return None if delay is None and abort is None else pb.Fault(delay=delay, abort=abort)


def _delay(delay: Delay | None) -> "FaultDelay | None":
    """None where the rule names no percentage: then no request is delayed (Istio: Delay, "If left unspecified")."""
    if delay is None or not delay.fixed_delay:
        return None
    share = delay.percentage.value if delay.percentage is not None else float(delay.percent or 0)
    return {"fixed_delay": delay.fixed_delay, "percentage": fractional_percent(share)} if share else None


def _abort(abort: Abort | None) -> "FaultAbort | None":
    """None where the rule names no percentage: then no request is aborted (Istio: Abort, "If not specified")."""
    if abort is None or abort.percentage is None or not abort.percentage.value:
        return None
    fields: FaultAbort = {"percentage": fractional_percent(abort.percentage.value)}
    if abort.http_status is not None:
        return {"http_status": abort.http_status, **fields}
    if abort.grpc_status is not None:
        return {"grpc_status": GRPC_STATUSES[abort.grpc_status], **fields}
    return None


def cors_settings(cors: CorsPolicy | None) -> Message | None:
    """The CORS filter's settings. Envoy takes an origin that is exactly `*` for any origin, as Istio's users do."""
    if cors is None:
        return None
    credentials = cors.allow_credentials
    return pb.CorsPolicy(
        allow_origin_string_match=[string_matcher(origin) for origin in cors.allow_origins]
        or [{"exact": origin} for origin in cors.allow_origin],
        allow_methods=",".join(cors.allow_methods),
        allow_headers=",".join(cors.allow_headers),
        expose_headers=",".join(cors.expose_headers),
        max_age="" if cors.max_age is None else str(cors.max_age // timedelta(seconds=1)),
        allow_credentials=None if credentials is None else {"value": credentials},
        filter_enabled={"default_value": {"numerator": 100}},
        forward_not_matching_preflights={"value": cors.unmatched_preflights != "IGNORE"},
    )


def session_settings(service: Service) -> Message | None:
    """The sticky session filter's settings, as the service's labels or annotations ask for them. A header wins over a cookie."""
    marks = {**dict(service.annotations), **dict(service.labels)}
    state: TypedExtensionConfig
    if header := marks.get(SESSION_HEADER):
        state = {
            "name": "envoy.http.stateful_session.header",
            "typed_config": pb.any(pb.HeaderBasedSessionState(name=header)),
        }
    elif cookie := marks.get(SESSION_COOKIE):
        name, _, path = cookie.partition(":")
        state = {
            "name": "envoy.http.stateful_session.cookie",
            "typed_config": pb.any(
                pb.CookieBasedSessionState(cookie={"name": name, "path": path or "/", "ttl": SESSION_COOKIE_TTL})
            ),
        }
    else:
        return None
    return pb.StatefulSessionPerRoute(stateful_session={"session_state": state})
