"""Envoy's names for destinations. Istio's, because EnvoyFilters, dashboards and `istioctl proxy-config` show and match them."""

BLACK_HOLE_CLUSTER = "BlackHoleCluster"  # has no endpoints: what must not leave
PASSTHROUGH_CLUSTER = "PassthroughCluster"  # where the caller was going, whatever it is
INBOUND_PASSTHROUGH_CLUSTER = "InboundPassthroughCluster"  # the workload's own port, whatever it is


def outbound_cluster_name(hostname: str, port: int, subset: str = "") -> str:
    """The cluster of a service's port: `outbound|80|v1|reviews.default.svc.cluster.local`."""
    return f"outbound|{port}|{subset}|{hostname}"


def inbound_cluster_name(port: int) -> str:
    """The cluster of the application behind a workload's port: `inbound|8080||`."""
    return f"inbound|{port}||"


def server_name(hostname: str, port: int, subset: str = "") -> str:
    """The SNI by which a sidecar asks its peer for a destination: `outbound_.80_.v1_.reviews.default.svc.cluster.local`.

    The cluster's name, in the letters that a server name may have.
    """
    return f"outbound_.{port}_.{subset}_.{hostname}"
