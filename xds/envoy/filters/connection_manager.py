"""The HTTP connection manager, as a network filter: how HTTP is read and written, whatever its routes."""

from datetime import timedelta
from typing import TYPE_CHECKING

from xds import pb
from xds.envoy.access_logs import access_logs
from xds.envoy.filters import Chain
from xds.envoy.filters.http import http_filters
from xds.envoy.filters.network import network_filter
from xds.envoy.filters.timeouts import PUT_ASIDE
from xds.objects.proxy_config import ProxyHeaders

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_Http1ProtocolOptions_Init as Http1
    from xds.pb import envoy_config_core_v3_TypedExtensionConfig_Init as TypedExtensionConfig
    from xds.pb import envoy_config_listener_v3_Filter_Init as NetworkFilter
    from xds.pb import envoy_extensions_filters_network_http_connection_manager_v3_HttpConnectionManager_Init as Fields
    from xds.pb import envoy_extensions_filters_network_http_connection_manager_v3_LocalReplyConfig_Init as LocalReplyConfig

SERVER_NAME = "istio-envoy"

# A route table that has not come yet holds its listener back this long, not for ever: then what has come serves.
ROUTES_TIMEOUT = timedelta(seconds=15)

# MeshConfig `pathNormalization`: what is done to a path before any rule looks at it.
PATHS: "dict[str, Fields]" = {
    "DEFAULT": {"normalize_path": {"value": True}},
    "NONE": {"normalize_path": {"value": False}},
    "BASE": {"normalize_path": {"value": True}},
    "MERGE_SLASHES": {"normalize_path": {"value": True}, "merge_slashes": True},
    "DECODE_AND_MERGE_SLASHES": {
        "normalize_path": {"value": True},
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    },
}

PRESERVE_CASE: "TypedExtensionConfig" = {
    "name": "preserve_case",
    "typed_config": pb.any(pb.message_class("envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig")()),
}

# A call that never reached the application, because nothing listened there, may go to another replica, whatever it is. Callers' proxies
# retry what says that it is unavailable as gRPC says it (Envoy, `retry_on: unavailable`, and Istio's default policy; the request need not
# be gRPC's); a bare 503 could be the application's own.
NOT_DELIVERED: "LocalReplyConfig" = {
    "mappers": [
        {
            "filter": {"response_flag_filter": {"flags": ["UF"]}},
            "headers_to_add": [{"header": {"key": "grpc-status", "value": "14"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        }
    ]
}

REQUEST_ID = pb.any(pb.UuidRequestId(use_request_id_for_trace_sampling={"value": True}))


def connection_manager(
    chain: Chain, stat_prefix: str, routes: str | pb.RouteConfiguration, *, absolute_urls: bool = False
) -> "NetworkFilter":
    """Speaks HTTP on `chain`. `routes` is a route table, or the name of one to ask for over ADS.

    `absolute_urls` accepts what callers send to a proxy: `GET http://host/path`.
    """
    fields: Fields = {
        "stat_prefix": stat_prefix,
        "http_filters": http_filters(chain),
        "access_log": access_logs(chain),
        # The application's own timeouts are meant to rule: routes have theirs (Istio).
        "stream_idle_timeout": timedelta(),
        # The peer is the application itself or another sidecar: what it says of the caller before it is kept.
        "use_remote_address": {"value": False},
        "proxy_100_continue": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "request_id_extension": {"typed_config": REQUEST_ID},
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        **PATHS[chain.config.path_normalization.normalization],
    }
    if isinstance(routes, str):
        fields["rds"] = {
            "route_config_name": routes,
            "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": ROUTES_TIMEOUT},
        }
    else:
        fields["route_config"] = routes
    if chain.inbound:
        # The application's `server` header is kept as it is; Istio's name is for tools that look there.
        fields["server_name"] = SERVER_NAME
        fields["server_header_transformation"] = "PASS_THROUGH"
        fields["forward_client_cert_details"] = "APPEND_FORWARD"
        fields["set_current_client_cert_details"] = {"subject": {"value": True}, "uri": True, "dns": True}
        fields["local_reply_config"] = NOT_DELIVERED
    else:
        fields["early_header_mutation_extensions"] = [PUT_ASIDE]
    http1: Http1 = {"accept_http_10": chain.client.http10}
    if absolute_urls:
        http1["allow_absolute_url"] = {"value": True}
    _apply(chain.config.default_config.proxy_headers, fields, http1)
    if any(http1.values()):
        fields["http_protocol_options"] = http1
    return network_filter("envoy.filters.network.http_connection_manager", pb.HttpConnectionManager(**fields))


def _apply(headers: ProxyHeaders | None, fields: "Fields", http1: "Http1") -> None:
    """Change what the mesh's settings say about headers that proxies add (Istio: ProxyConfig, `proxyHeaders`)."""
    if headers is None:
        return
    if headers.server is not None:
        if headers.server.disabled:
            fields["server_header_transformation"] = "PASS_THROUGH"
        elif headers.server.value:
            fields["server_name"] = headers.server.value
            fields["server_header_transformation"] = "OVERWRITE"
    if headers.request_id is not None and headers.request_id.disabled:
        fields["generate_request_id"] = {"value": False}
    if headers.forwarded_client_cert != "UNDEFINED":
        fields["forward_client_cert_details"] = headers.forwarded_client_cert
        details = headers.set_current_client_cert_details
        if details is not None:
            fields["set_current_client_cert_details"] = {
                "subject": {"value": bool(details.subject)},
                "cert": bool(details.cert),
                "chain": bool(details.chain),
                "dns": bool(details.dns),
                "uri": bool(details.uri),
            }
    if headers.x_forwarded_port is not None and headers.x_forwarded_port.enabled:
        fields["append_x_forwarded_port"] = True
    if headers.preserve_http1_header_case:
        http1["header_key_format"] = {"stateful_formatter": PRESERVE_CASE}
