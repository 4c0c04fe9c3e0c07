"""Envoy's names for destinations. Istio's, because EnvoyFilters, dashboards and `istioctl proxy-config` show and match them."""

import msgspec

BLACK_HOLE = "BlackHoleCluster"  # has no endpoints: what must not leave
PASSTHROUGH = "PassthroughCluster"  # where the caller was going, whatever it is
# Stands for a subset in the name of the cluster of all pods of a headless service, for those who did not call one of them themselves.
EVERY_POD = "*"
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"  # the workload's own port, whatever it is


class Outbound(msgspec.Struct, frozen=True):
    """The parts of an outbound cluster's name."""

    hostname: str
    port: int
    subset: str = ""


def outbound(service_hostname: str, port: int, subset: str = "") -> str:
    """The cluster of a service's port: `outbound|80|v1|reviews.default.svc.cluster.local`."""
    return f"outbound|{port}|{subset}|{service_hostname}"


def inbound(port: int) -> str:
    """The cluster of the application behind a workload's port: `inbound|8080||`."""
    return f"inbound|{port}||"


def sni(service_hostname: str, port: int, subset: str = "") -> str:
    """The server name that a sidecar asks its peer for: `outbound_.80_.v1_.reviews.default.svc.cluster.local`.

    It says the whole destination in the letters that a server name may have.
    """
    return f"outbound_.{port}_.{subset}_.{service_hostname}"


def parse_outbound(name: str) -> Outbound | None:
    """The parts of an outbound cluster's name; None for any other name."""
    parts = name.split("|")
    if len(parts) != 4 or parts[0] != "outbound" or not parts[1].isdecimal():
        return None
    return Outbound(parts[3], int(parts[1]), parts[2])
