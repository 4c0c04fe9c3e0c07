"""The Kubernetes kinds that a mesh reads, with the fields it reads of them. https://kubernetes.io/docs/reference/kubernetes-api/"""

from typing import ClassVar, Literal

import msgspec

from xds.objects.meta import KubernetesObject

SERVICE_NAME = "kubernetes.io/service-name"


class Struct(msgspec.Struct, frozen=True, rename="camel"):
    """The base of their parts. Fields that are not listed are ignored: the API server has checked them."""


class ServicePort(Struct, frozen=True):
    port: int
    name: str | None = None
    protocol: str = "TCP"
    target_port: int | str | None = None  # a number or a container port's name; None: `port`
    node_port: int | None = None
    app_protocol: str | None = None


class ClientIPConfig(Struct, frozen=True):
    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True):
    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Struct, frozen=True):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = {}
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")  # `None` for headless services
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    external_name: str | None = None
    load_balancer_ip: str | None = msgspec.field(default=None, name="loadBalancerIP")
    load_balancer_class: str | None = None
    load_balancer_source_ranges: tuple[str, ...] = ()
    allocate_load_balancer_node_ports: bool | None = None
    ip_families: tuple[str, ...] = ()
    ip_family_policy: str | None = None
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    health_check_node_port: int | None = None
    traffic_distribution: str | None = None
    publish_not_ready_addresses: bool = False
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: SessionAffinityConfig | None = None


class LoadBalancerIngress(Struct, frozen=True):
    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Struct, frozen=True):
    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(Struct, frozen=True):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(KubernetesObject, frozen=True):
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Struct, frozen=True):
    """None is unknown: to be read as ready, as serving where ready, and as not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ObjectReference(Struct, frozen=True):
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None
    uid: str | None = None


class ForZone(Struct, frozen=True):
    name: str


class ForNode(Struct, frozen=True):
    name: str


class EndpointHints(Struct, frozen=True):
    for_zones: tuple[ForZone, ...] = ()
    for_nodes: tuple[ForNode, ...] = ()


class Endpoint(Struct, frozen=True):
    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    target_ref: ObjectReference | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    deprecated_topology: dict[str, str] = {}


class EndpointPort(Struct, frozen=True):
    """`port` None means all ports."""

    name: str | None = None
    protocol: str = "TCP"
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(KubernetesObject, frozen=True):
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()

    @property
    def service_name(self) -> str:
        """The name of the Service that these endpoints belong to, in the slice's own namespace; empty where there is none."""
        return self.meta.labels.get(SERVICE_NAME, "")


class EndpointAddress(Struct, frozen=True):
    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: ObjectReference | None = None


class EndpointSubset(Struct, frozen=True):
    addresses: tuple[EndpointAddress, ...] = ()
    not_ready_addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(KubernetesObject, frozen=True):
    """What a Service's endpoints were before EndpointSlices. Clusters mirror it as these; in files, where nobody does, `slices`."""

    subsets: tuple[EndpointSubset, ...] = ()

    def slices(self) -> tuple[EndpointSlice, ...]:
        """The EndpointSlices that a cluster would make of it: of each subset, one for each address family."""
        meta = msgspec.structs.replace(self.meta, labels={**self.meta.labels, SERVICE_NAME: self.meta.name})
        made = []
        for subset in self.subsets:
            endpoints = [_mirrored(address, True) for address in subset.addresses]
            endpoints += [_mirrored(address, False) for address in subset.not_ready_addresses]
            for family in ("IPv4", "IPv6"):
                own = tuple(e for e in endpoints if (":" in e.addresses[0]) == (family == "IPv6"))
                if own:
                    made.append(EndpointSlice(meta=meta, address_type=family, endpoints=own, ports=subset.ports))
        return tuple(made)


def _mirrored(address: EndpointAddress, ready: bool) -> Endpoint:
    conditions = EndpointConditions(ready=ready, serving=ready)
    return Endpoint((address.ip,), conditions, address.hostname, address.target_ref, address.node_name)


class ContainerPort(Struct, frozen=True):
    container_port: int
    name: str | None = None
    protocol: str = "TCP"


class Container(Struct, frozen=True):
    name: str
    ports: tuple[ContainerPort, ...] = ()


class PodSpec(Struct, frozen=True):
    node_name: str | None = None
    service_account_name: str | None = None
    host_network: bool = False
    hostname: str | None = None
    subdomain: str | None = None
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()


class PodCondition(Struct, frozen=True):
    type: str
    status: str


class PodIP(Struct, frozen=True):
    ip: str


class PodStatus(Struct, frozen=True):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")
    conditions: tuple[PodCondition, ...] = ()


class Pod(KubernetesObject, frozen=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        """Whether the condition `Ready` is true; in files, where nobody keeps conditions, it may be left out.

        A Pod that is being deleted is told to end: it gets no new work.
        """
        if self.status.phase in ("Succeeded", "Failed") or self.meta.deletion_timestamp is not None:
            return False
        return all(c.status == "True" for c in self.status.conditions if c.type == "Ready")


class Node(KubernetesObject, frozen=True):
    namespaced: ClassVar[bool] = False


class Namespace(KubernetesObject, frozen=True):
    namespaced: ClassVar[bool] = False


class ConfigMap(KubernetesObject, frozen=True):
    data: dict[str, str] = {}
