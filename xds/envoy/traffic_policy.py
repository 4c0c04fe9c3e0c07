"""The parts of a traffic policy that shape connections: how many, how long, over which HTTP, and when an endpoint is given up.

Istio: DestinationRule, `connectionPool`, `outlierDetection` and `retryBudget`. Numbers that are left out, or zero, are no limits.
"""

from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING

import msgspec

from xds import pb
from xds.mesh.model import Protocol
from xds.objects import ConnectionPoolSettings, HTTPSettings, MeshConfig, OutlierDetection, RetryBudget

if TYPE_CHECKING:
    from xds.pb import envoy_config_cluster_v3_CircuitBreakers_Init as CircuitBreakers
    from xds.pb import envoy_config_cluster_v3_OutlierDetection_Init as EnvoyOutlierDetection
    from xds.pb import envoy_config_cluster_v3_UpstreamConnectionOptions_Init as UpstreamConnectionOptions
    from xds.pb import envoy_config_core_v3_Http2ProtocolOptions_Init as Http2ProtocolOptions
    from xds.pb import envoy_config_core_v3_HttpProtocolOptions_Init as CommonHttpProtocolOptions
    from xds.pb import envoy_extensions_upstreams_http_v3_HttpProtocolOptions_Init as HttpProtocolOptions
    from xds.pb import envoy_type_matcher_v3_StringMatcher_Init as StringMatcher
    from xds.pb import google_protobuf_Any_Init as PackedAny
    from xds.pb import google_protobuf_UInt32Value_Init as UInt32Value

HTTP_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
UNLIMITED = 2**32 - 1
MAX_KEEPALIVE_SECONDS, MAX_KEEPALIVE_PROBES = 32_767, 127  # Linux: tcp(7)
KEEPALIVE_TIMEOUT = timedelta(seconds=20)  # Envoy demands one; gRPC's default

NO_POOL = ConnectionPoolSettings()
NO_HTTP = HTTPSettings()


class Upstream(msgspec.Struct, frozen=True):
    """What decides the HTTP of a cluster's connections. `same` means: whatever HTTP the caller speaks."""

    http2: bool = False
    same: bool = False
    auto_sni: bool = False
    auto_san: bool = False


def connect_timeout(pool: ConnectionPoolSettings, config: MeshConfig) -> timedelta:
    """How long connecting may take: the rule's word, else the mesh's."""
    return config.connect_timeout if pool.tcp is None or pool.tcp.connect_timeout is None else pool.tcp.connect_timeout


def circuit_breakers(pool: ConnectionPoolSettings, budget: RetryBudget | None = None) -> "CircuitBreakers":
    """The limits of what may be under way to the whole cluster at once, none of them low by default as Envoy's are."""
    http = pool.http or NO_HTTP
    return {
        "thresholds": [
            {
                "max_connections": _limit(None if pool.tcp is None else pool.tcp.max_connections),
                "max_pending_requests": _limit(http.http1_max_pending_requests),
                "max_requests": _limit(http.http2_max_requests),
                "max_retries": _limit(http.max_retries),
                "retry_budget": None
                if budget is None
                else {
                    "budget_percent": None if budget.percent is None else {"value": budget.percent},
                    "min_retry_concurrency": _given(budget.min_retry_concurrency or None),
                },
            }
        ]
    }


def _limit(value: int | None) -> "UInt32Value":
    return {"value": value or UNLIMITED}


def _given(value: int | None) -> "UInt32Value | None":
    return None if value is None else {"value": value}


def upstream_connection_options(pool: ConnectionPoolSettings, config: MeshConfig) -> "UpstreamConnectionOptions | None":
    """TCP keepalive: the mesh's, each of its values replaced by the rule's where it has one. Empty: the kernel's defaults.

    Whole seconds, and not more than Linux takes: where a socket refuses an option, Envoy gives up the connection.
    """
    given = [k for k in (None if pool.tcp is None else pool.tcp.tcp_keepalive, config.tcp_keepalive) if k is not None]
    if not given:
        return None

    def seconds(value: timedelta) -> int:
        return min(ceil(value.total_seconds()), MAX_KEEPALIVE_SECONDS)

    probes = next((min(k.probes, MAX_KEEPALIVE_PROBES) for k in given if k.probes), None)
    time = next((seconds(k.time) for k in given if k.time), None)
    interval = next((seconds(k.interval) for k in given if k.interval), None)
    return {
        "tcp_keepalive": {
            "keepalive_probes": _given(probes),
            "keepalive_time": _given(time),
            "keepalive_interval": _given(interval),
        }
    }


def upstream(protocol: Protocol, pool: ConnectionPoolSettings, detects: bool) -> Upstream:
    """The HTTP that a port is spoken to in. `detects`: the proxy finds out the protocol of ports that declare none."""
    if pool.http is not None and pool.http.use_client_protocol:
        return Upstream(same=True)
    if protocol.is_http2:
        return Upstream(http2=True)
    return Upstream(same=detects and protocol is Protocol.AUTO)


def upgrades(protocol: Protocol, pool: ConnectionPoolSettings, config: MeshConfig) -> bool:
    """Whether HTTP/1.1 calls are carried over HTTP/2.

    Istio: ConnectionPoolSettings.HTTPSettings, `h2UpgradePolicy`: `useClientProtocol` stands over it. A rule may upgrade ports of
    any protocol, the mesh's setting just those that are declared to be HTTP.
    """
    http = pool.http or NO_HTTP
    if http.use_client_protocol:
        return False
    if http.h2_upgrade_policy == "DEFAULT":
        return config.h2_upgrade_policy == "UPGRADE" and protocol.is_http
    return http.h2_upgrade_policy == "UPGRADE"


def http_protocol_options(
    of: Upstream, pool: ConnectionPoolSettings = NO_POOL, error_codes: tuple[int, ...] = ()
) -> "dict[str, PackedAny] | None":
    """A cluster's `typed_extension_protocol_options`; None where Envoy's defaults (HTTP/1.1) say the same."""
    common = _common_options(pool)
    if not (of.http2 or of.same or of.auto_sni or of.auto_san or common or error_codes):
        return None
    options: HttpProtocolOptions = {"common_http_protocol_options": common}
    if of.same:
        options["use_downstream_protocol_config"] = {
            "http_protocol_options": {},
            "http2_protocol_options": _http2_options(pool.http or NO_HTTP),
        }
    elif of.http2:
        options["explicit_http_config"] = {"http2_protocol_options": _http2_options(pool.http or NO_HTTP)}
    else:
        options["explicit_http_config"] = {"http_protocol_options": {}}
    if of.auto_sni or of.auto_san:
        options["upstream_http_protocol_options"] = {"auto_sni": of.auto_sni, "auto_san_validation": of.auto_san}
    if error_codes:
        codes: StringMatcher = {"safe_regex": {"regex": "|".join(map(str, error_codes))}}
        options["outlier_detection"] = {
            "error_matcher": {"http_response_headers_match": {"headers": [{"name": ":status", "string_match": codes}]}}
        }
    return {HTTP_PROTOCOL_OPTIONS: pb.any(pb.HttpProtocolOptions(**options))}


def _common_options(pool: ConnectionPoolSettings) -> "CommonHttpProtocolOptions | None":
    http, tcp = pool.http or NO_HTTP, pool.tcp
    lifetime = None if tcp is None else tcp.max_connection_duration
    requests = http.max_requests_per_connection or None
    if lifetime is None and requests is None and http.idle_timeout is None:
        return None
    return {
        "idle_timeout": http.idle_timeout,
        "max_connection_duration": lifetime,
        "max_requests_per_connection": _given(requests),
    }


def _http2_options(http: HTTPSettings) -> "Http2ProtocolOptions":
    keepalive = http.http2_keep_alive
    return {
        "max_concurrent_streams": _given(http.max_concurrent_streams or None),
        "connection_keepalive": None
        if keepalive is None
        else {"interval": keepalive.interval, "timeout": keepalive.timeout or KEEPALIVE_TIMEOUT},
    }


def outlier_detection(settings: OutlierDetection | None) -> "EnvoyOutlierDetection | None":
    """When an endpoint that fails is left alone for a while. Only consecutive failures count, never success rates.

    Istio: OutlierDetection: a count of zero turns its check off; what is left out is as in Envoy.
    """
    if settings is None:
        return None
    found: EnvoyOutlierDetection = {
        "interval": settings.interval,
        "base_ejection_time": settings.base_ejection_time,
        "max_ejection_percent": _given(settings.max_ejection_percent or None),
        "enforcing_success_rate": {"value": 0},
    }
    if (errors := settings.consecutive_5xx_errors) is not None:
        found["consecutive_5xx"] = {"value": errors}
        found["enforcing_consecutive_5xx"] = {"value": 100 if errors else 0}
    if (errors := settings.consecutive_gateway_errors) is not None:
        found["consecutive_gateway_failure"] = {"value": errors}
        found["enforcing_consecutive_gateway_failure"] = {"value": 100 if errors else 0}
    if settings.split_external_local_origin_errors:
        found["split_external_local_origin_errors"] = True
        found["enforcing_local_origin_success_rate"] = {"value": 0}
        if settings.consecutive_local_origin_failures:
            found["consecutive_local_origin_failure"] = {"value": settings.consecutive_local_origin_failures}
            found["enforcing_consecutive_local_origin_failure"] = {"value": 100}
    return found
