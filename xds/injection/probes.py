"""TCP probes: they would reach the proxy, which accepts a connection before the application listens.

Each becomes an HTTP probe of the proxy, at the path that Istio's agent has for it. Envoy itself finds out, once a second, whether the
application accepts connections. HTTP and gRPC probes go through the proxy as they are: what they get is the application's answer.
"""

from collections.abc import Mapping
from typing import Any

from xds.envoy.bootstrap import STATUS_PORT
from xds.injection.capture import Capture

_PATHS = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}


def rewritten(containers: list[dict[str, Any]], capture: Capture) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """`containers` with probes that do not depend on who accepts, and the ports that the proxy is to try, by path.

    Probes of ports that are not captured, and of other hosts, stay as they are; so do those of ports that have no number here.
    """
    ports: dict[str, int] = {}
    found = []
    for container in containers:
        changed = dict(container)
        for kind, name in _PATHS.items():
            probe = container.get(kind) or {}
            port = _port(probe.get("tcpSocket") or {}, container)
            if port is None or not captured(port, capture):
                continue
            path = f"/app-health/{container['name']}/{name}"
            ports[path] = port
            kept = {key: value for key, value in probe.items() if key != "tcpSocket"}
            changed[kind] = {**kept, "httpGet": {"path": path, "port": STATUS_PORT}}
        found.append(changed)
    return found, ports


def captured(port: int, capture: Capture) -> bool:
    """Whether calls from outside to this port of the pod go to the proxy."""
    if port in (*capture.own_ports, *capture.excluded_inbound_ports):
        return False
    return capture.inbound_ports is None or port in capture.inbound_ports


def _port(action: Mapping[str, Any], container: Mapping[str, Any]) -> int | None:
    """The number of the pod's port that a TCP probe tries; None where it does not, or tries another host."""
    port = action.get("port")
    if action.get("host"):
        return None
    if isinstance(port, str):
        return next((p["containerPort"] for p in container.get("ports") or () if p.get("name") == port), None)
    return port
