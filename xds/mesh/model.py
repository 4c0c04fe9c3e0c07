"""The neutral model: services, endpoints, workloads and what decides a proxy's view of them. No Envoy and no Kubernetes in it."""

import enum
from datetime import datetime

import msgspec

from xds.objects import ConnectionPoolSettings, ServerTLSSettings, TrafficPolicy, VirtualService
from xds.objects.meta import Ref

Labels = tuple[tuple[str, str], ...]  # sorted by key, so that equal labels are equal keys


class Protocol(enum.Enum):
    """What a port speaks. AUTO is detected by the proxy (Istio: "Protocol Selection")."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    GRPC_WEB = "GRPC-Web"
    HTTPS = "HTTPS"
    TLS = "TLS"
    TCP = "TCP"
    MONGO = "Mongo"
    REDIS = "Redis"
    MYSQL = "MySQL"
    UDP = "UDP"
    AUTO = "AUTO"

    __hash__ = object.__hash__  # there is one of each; Enum's own, of the name, is slow, and each look-up by a client asks for it

    @property
    def is_http(self) -> bool:
        return self in _HTTP

    @property
    def is_http2(self) -> bool:
        return self in _HTTP2

    @property
    def is_tls(self) -> bool:
        """The application speaks TLS itself; the proxy sees the SNI only."""
        return self in (Protocol.HTTPS, Protocol.TLS)

    @property
    def is_udp(self) -> bool:
        """Not for a proxy: Istio leaves UDP alone."""
        return self is Protocol.UDP

    @property
    def is_tcp(self) -> bool:
        """Forwarded as bytes: TCP and what rides on it, TLS included."""
        return self not in _HTTP and self not in (Protocol.AUTO, Protocol.UDP)


_HTTP2 = frozenset({Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB})
_HTTP = _HTTP2 | {Protocol.HTTP}


class Resolution(enum.Enum):
    """How a proxy finds a service's endpoints."""

    ENDPOINTS = "endpoints"  # we tell it (EDS)
    DNS = "DNS"  # it resolves each endpoint's name, and uses all addresses
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"  # it resolves one name, and uses one address at a time
    DYNAMIC_DNS = "DYNAMIC_DNS"  # it resolves the host that the request names (wildcard hosts)
    PASSTHROUGH = "passthrough"  # it goes where the caller was going (headless services, resolution NONE)

    @property
    def by_name(self) -> bool:
        """Whether endpoints are names that the proxy resolves."""
        return self in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)


class Locality(msgspec.Struct, frozen=True, cache_hash=True, order=True):
    region: str = ""
    zone: str = ""
    subzone: str = ""

    def __str__(self) -> str:
        return "/".join(p for p in (self.region, self.zone, self.subzone) if p)


class Port(msgspec.Struct, frozen=True):
    """A port of a service. `target_port` is what the workload listens on: a number, a container port's name, 0 for the same."""

    number: int
    name: str = ""
    protocol: Protocol = Protocol.AUTO
    target_port: int | str = 0


class Service(msgspec.Struct, frozen=True):
    """A named thing that can be called: from a Kubernetes Service or a host of a ServiceEntry.

    One hostname may exist in several namespaces (ServiceEntries that are not exported), so (hostname, namespace) names it.
    """

    hostname: str  # fully qualified, lower case; `*.example.com` for wildcards
    namespace: str
    ref: Ref
    ports: tuple[Port, ...] = ()
    addresses: tuple[str, ...] = ()  # VIPs and CIDRs; empty where there are none (headless, ServiceEntry without addresses)
    resolution: Resolution = Resolution.ENDPOINTS
    external: bool = False  # MESH_EXTERNAL: outside the mesh
    headless: bool = False
    aliases: tuple[str, ...] = ()  # hostnames of ExternalName services that point here
    export_to: frozenset[str] = frozenset({"*"})  # namespaces, `*` for all; resolved: no `.` or `~` in it
    labels: Labels = ()
    annotations: Labels = ()
    created: datetime | None = None
    subject_alt_names: tuple[str, ...] = ()
    node_local: bool = False  # internalTrafficPolicy: Local
    traffic_distribution: str = ""  # PreferClose, PreferSameZone, PreferSameNode
    publish_not_ready: bool = False
    from_kubernetes: bool = True  # else from a ServiceEntry

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def wants_addresses(self) -> bool:
        """Whether callers could be told apart by an address, and there is none (Istio: "Address auto allocation")."""
        has_none = not self.from_kubernetes and not self.addresses and not self.hostname.startswith("*")
        return has_none and self.resolution is not Resolution.PASSTHROUGH

    def port(self, number: int) -> Port | None:
        """The port with this number, None where there is none."""
        return next((p for p in self.ports if p.number == number), None)


class Health(enum.Enum):
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"


class Endpoint(msgspec.Struct, frozen=True):
    """One address that serves one port of a service.

    `address` is an IP, a host name (DNS resolutions only) or `unix:///path` (then `port` is 0).
    """

    address: str
    port: int
    labels: Labels = ()
    locality: Locality = Locality()
    weight: int = 0  # 0: not given
    health: Health = Health.HEALTHY
    namespace: str = ""
    workload: str = ""  # the name of the Deployment or so; of the pod where it has no owner
    service_account: str = ""
    network: str = ""
    node: str = ""
    hostname: str = ""  # a StatefulSet pod's own name, as its EndpointSlice gives it


class Mode(enum.Enum):
    """How traffic gets into the proxy (node metadata INTERCEPTION_MODE)."""

    REDIRECT = "REDIRECT"
    TPROXY = "TPROXY"
    NONE = "NONE"

    __hash__ = object.__hash__  # as of `Protocol`


class Client(msgspec.Struct, frozen=True, cache_hash=True):
    """All about a proxy that may change what it gets. Proxies with equal clients get equal resources.

    Labels, namespace and service account come from the workload's own object where there is one, else from the node's metadata.
    """

    namespace: str
    labels: Labels = ()
    addresses: tuple[str, ...] = ()  # the workload's IPs, first is its main one
    service_account: str = ""
    locality: Locality = Locality()
    network: str = ""
    node: str = ""  # the Kubernetes node it runs on
    mode: Mode = Mode.REDIRECT
    kind: str = "sidecar"  # or `router`, or `grpc`: a client without a proxy
    domain: str = "cluster.local"  # cluster DNS domain
    http10: bool = False  # node metadata HTTP10: serve HTTP/1.0 too
    workload: str = ""
    pieces: bool = False  # it is sent the virtual hosts of its route tables one by one
    dns: bool = False  # node metadata DNS_CAPTURE: its DNS queries come to the proxy
    allocates: bool = False  # node metadata DNS_AUTO_ALLOCATE: hosts without addresses are called at addresses that we give them

    @property
    def ipv6_only(self) -> bool:
        return bool(self.addresses) and all(":" in a for a in self.addresses)


class Scope(msgspec.Struct, frozen=True, cache_hash=True):
    """Names one view of the mesh. Clients that see the same services under the same rules share one.

    `namespace` is empty for clients whose namespace has nothing of its own: no Sidecar, nothing exported just to it, no rule that
    would win there only. `labels` are those client labels that some rule visible there selects by.
    """

    namespace: str = ""
    sidecar: Ref | None = None
    labels: Labels = ()


class Subset(msgspec.Struct, frozen=True):
    """A named part of a service's endpoints: those with all of `labels`."""

    name: str
    labels: Labels
    policy: TrafficPolicy | None = None


class DestinationPolicy(msgspec.Struct, frozen=True):
    """What DestinationRules say of one service, to one scope: merged, in Istio's precedence. `refs` made it."""

    policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    refs: tuple[Ref, ...] = ()
    selects: bool = False  # they are for workloads with certain labels

    def subset(self, name: str) -> Subset | None:
        return next((s for s in self.subsets if s.name == name), None)


class Routing(msgspec.Struct, frozen=True):
    """A VirtualService ready to use: hosts and destinations in full, delegates merged in. `refs` are it and its delegates."""

    rule: VirtualService
    refs: tuple[Ref, ...] = ()


class Egress(msgspec.Struct, frozen=True):
    """One egress listener of a scope: all of its services when no Sidecar says otherwise.

    `port` 0 is the catch-all: captured traffic to any port that no other egress listener claims.
    """

    hosts: tuple[tuple[str, str], ...]  # (hostname, namespace) of the services seen, older services first, then by name
    port: int = 0
    protocol: Protocol = Protocol.AUTO
    bind: str = ""
    captured: bool = True  # captureMode is not NONE
    proxy: bool = False  # a forward proxy: callers name service and port in their requests


class Inbound(msgspec.Struct, frozen=True):
    """A port on which a workload is called.

    `bind` is an address for listeners of their own (mode NONE, Sidecar ingress with captureMode NONE), else empty: captured
    on 15006. `forward_to` is where the application is: `127.0.0.1:8080`, `0.0.0.0:8080` for the workload's own IP, `unix:///path`,
    or empty for the original destination.
    """

    port: int  # what the workload listens on
    protocol: Protocol
    service: Service | None  # None for a Sidecar ingress that no service fits
    service_port: int = 0  # the service's port number, for names; 0 for Sidecar ingress without a service
    name: str = ""  # the port's name
    bind: str = ""
    forward_to: str = ""
    pool: ConnectionPoolSettings | None = None  # limits of what goes to the application; None: the mesh's
    tls: ServerTLSSettings | None = None  # what the proxy ends for callers from outside the mesh; None: nothing
