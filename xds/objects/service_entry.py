"""Istio's ServiceEntry and WorkloadEntry: services and workloads that Kubernetes does not know.

https://istio.io/latest/docs/reference/config/networking/service-entry/ and .../workload-entry/
"""

from typing import Literal

from xds.objects.meta import KubernetesObject, Message, UInt32

# What a port may say that it speaks, in any case (Istio: "Protocol Selection").
PROTOCOLS = frozenset({"http", "http_proxy", "http2", "grpc", "grpc-web", "https", "tls", "tcp", "mongo", "redis", "mysql", "udp"})


class WorkloadSelector(Message, frozen=True):
    labels: dict[str, str] = {}


class EntryPort(Message, frozen=True):
    """A port of a ServiceEntry; Istio's message `ServicePort`."""

    number: UInt32
    name: str
    protocol: str | None = None
    target_port: UInt32 | None = None


class WorkloadEntrySpec(Message, frozen=True):
    """A workload outside Kubernetes: a WorkloadEntry's spec, and an endpoint of a ServiceEntry.

    `address` is an IP, a host name or `unix:///path`; it may be left out where `network` has a gateway. `ports` maps the names
    of the service's ports to this workload's port numbers.
    """

    address: str | None = None
    ports: dict[str, UInt32] = {}
    labels: dict[str, str] = {}
    network: str | None = None
    locality: str | None = None
    weight: UInt32 | None = None
    service_account: str | None = None


class ServiceEntrySpec(Message, frozen=True):
    hosts: tuple[str, ...]
    addresses: tuple[str, ...] = ()  # IPs and CIDRs
    ports: tuple[EntryPort, ...] = ()
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: tuple[WorkloadEntrySpec, ...] = ()
    workload_selector: WorkloadSelector | None = None
    export_to: tuple[str, ...] = ()  # empty: MeshConfig.default_service_export_to
    subject_alt_names: tuple[str, ...] = ()


class ServiceEntry(KubernetesObject, frozen=True):
    spec: ServiceEntrySpec


class WorkloadEntry(KubernetesObject, frozen=True):
    spec: WorkloadEntrySpec
