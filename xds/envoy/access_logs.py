"""Access logs, as the mesh's settings ask for them (Istio: MeshConfig, `accessLogFile` and what belongs to it)."""

import json
from typing import TYPE_CHECKING, Any

from xds import pb
from xds.envoy.filters import Chain
from xds.objects import MeshConfig

if TYPE_CHECKING:
    from xds.pb import envoy_config_accesslog_v3_AccessLog_Init as AccessLog
    from xds.pb import envoy_config_core_v3_SubstitutionFormatString_Init as Format

# Istio: "Envoy Access Logs", default format and default JSON keys. Log pipelines parse both, so they are as public as an API.
TEXT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
JSON = {
    "authority": "%REQ(:AUTHORITY)%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "duration": "%DURATION%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "response_code": "%RESPONSE_CODE%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "response_flags": "%RESPONSE_FLAGS%",
    "route_name": "%ROUTE_NAME%",
    "start_time": "%START_TIME%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "user_agent": "%REQ(USER-AGENT)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
}

# Commands that Envoy knows only where their formatter is named.
FORMATTERS = {
    "%CEL(": ("envoy.formatter.cel", "envoy.extensions.formatter.cel.v3.Cel"),
    "%METADATA(": ("envoy.formatter.metadata", "envoy.extensions.formatter.metadata.v3.Metadata"),
    "%REQ_WITHOUT_QUERY(": (
        "envoy.formatter.req_without_query",
        "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    ),
}


def access_logs(chain: Chain) -> "list[AccessLog]":
    """The access logs of a chain's requests or connections."""
    return [{"name": "envoy.access_loggers.file", "typed_config": log} for log in _file_logs(chain.config)]


def listener_access_logs(config: MeshConfig) -> "list[AccessLog]":
    """The access logs of connections that no filter chain takes, which would else vanish without a trace."""
    if config.disable_envoy_listener_log:
        return []
    return [
        {"name": "envoy.access_loggers.file", "filter": {"response_flag_filter": {"flags": ["NR"]}}, "typed_config": log}
        for log in _file_logs(config)
    ]


def _file_logs(config: MeshConfig) -> list[Any]:
    if not config.access_log_file:
        return []
    return [pb.any(pb.FileAccessLog(path=config.access_log_file, log_format=_format(config)))]


def _format(config: MeshConfig) -> "Format":
    form = config.access_log_format or ""
    if config.access_log_encoding == "JSON":
        # Any other text than a JSON object was refused with the mesh's settings; Istio's keys stand in for it.
        keys = _object(form) or JSON
        return {"json_format": keys, "formatters": _formatters(json.dumps(keys))}
    if form and not form.endswith("\n"):
        form += "\n"
    return {"text_format_source": {"inline_string": form or TEXT}, "formatters": _formatters(form)}


def _formatters(form: str) -> list[Any]:
    return [
        {"name": name, "typed_config": pb.any(pb.message_class(message)())}
        for command, (name, message) in FORMATTERS.items()
        if command in form
    ]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
