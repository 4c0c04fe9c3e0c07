"""Services: what can be called, from Kubernetes Services and the hosts of ServiceEntries.

Read by (hostname, namespace). An ExternalName is no service of its own: its name becomes an alias of the one it points to.
"""

from collections.abc import Iterable, Iterator, Mapping

from xds import flow
from xds import objects as api
from xds.mesh.model import Labels, Port, Protocol, Resolution, Service
from xds.mesh.names import kubernetes_host, kubernetes_name
from xds.mesh.protocols import declared, service_port
from xds.mesh.settings import Settings
from xds.objects.kubernetes import ServicePort
from xds.objects.meta import Ref

EXPORT_TO = "networking.istio.io/exportTo"
TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"

_RESOLUTIONS = {
    "NONE": Resolution.PASSTHROUGH,
    "STATIC": Resolution.ENDPOINTS,
    "DNS": Resolution.DNS,
    "DNS_ROUND_ROBIN": Resolution.DNS_ROUND_ROBIN,
    "DYNAMIC_DNS": Resolution.DYNAMIC_DNS,
}


def as_labels(mapping: Mapping[str, str]) -> Labels:
    """`mapping` as the model has labels: sorted pairs."""
    return tuple(sorted(mapping.items()))


def exported(to: Iterable[str], namespace: str, default: Iterable[str]) -> frozenset[str]:
    """Istio's `exportTo` as namespaces, `*` for all: `.` is the object's own, `~` is none, nothing is the mesh's default."""
    found = frozenset(namespace if e == "." else e for e in (tuple(to) or tuple(default) or ("*",)) if e != "~")
    return frozenset({"*"}) if "*" in found else found


def own_annotations(annotations: Mapping[str, str]) -> Labels:
    """Those annotations that Istio or we give a meaning. Others change for reasons of their own."""
    return as_labels({k: v for k, v in annotations.items() if k.partition("/")[0].endswith("istio.io")})


def entry_hosts(entry: api.ServiceEntry) -> Iterator[str]:
    """The hosts of a ServiceEntry, as the model writes them."""
    return (host.lower().rstrip(".") for host in entry.spec.hosts)


def kubernetes_service(
    service: api.Service, default_export: Iterable[str], aliases: tuple[str, ...], subject_alt_names: tuple[str, ...] = ()
) -> Service:
    """A Kubernetes Service (any type but ExternalName) in the model."""
    ref, spec, annotations = service.ref, service.spec, service.meta.annotations
    ips = tuple(ip for ip in spec.cluster_ips or (spec.cluster_ip,) if ip and ip != "None")
    headless = spec.cluster_ip == "None"
    to = annotations.get(EXPORT_TO, "")
    return Service(
        hostname=kubernetes_host(ref.name, ref.namespace),
        namespace=ref.namespace,
        ref=ref,
        ports=tuple(_kubernetes_ports(spec.ports)),
        addresses=ips,
        resolution=Resolution.PASSTHROUGH if headless else Resolution.ENDPOINTS,
        headless=headless,
        aliases=aliases,
        export_to=exported([e.strip() for e in to.split(",") if e.strip()], ref.namespace, default_export),
        labels=as_labels(service.meta.labels),
        annotations=own_annotations(annotations),
        created=service.meta.creation_timestamp,
        node_local=spec.internal_traffic_policy == "Local",
        traffic_distribution=spec.traffic_distribution or annotations.get(TRAFFIC_DISTRIBUTION, ""),
        publish_not_ready=spec.publish_not_ready_addresses,
        subject_alt_names=subject_alt_names,
    )


def _kubernetes_ports(ports: Iterable[ServicePort]) -> Iterator[Port]:
    numbers = set()
    for port in sorted(ports, key=lambda p: p.protocol == "UDP"):  # a port that both speak (DNS) is TCP to a proxy
        if port.port not in numbers:
            numbers.add(port.port)
            protocol = service_port(port.port, port.name or "", port.protocol, port.app_protocol)
            yield Port(port.port, port.name or "", protocol, port.target_port or 0)


def entry_service(
    hostname: str, entries: list[api.ServiceEntry], default_export: Iterable[str], aliases: tuple[str, ...]
) -> Service:
    """The service that ServiceEntries of one namespace make of a host: the oldest one's, with the ports and addresses of all."""
    first = entries[0]
    addresses: dict[str, None] = {}
    ports: dict[int, Port] = {}
    for entry in entries:
        addresses.update(dict.fromkeys(entry.spec.addresses))
        for port in entry.spec.ports:
            ports.setdefault(port.number, Port(port.number, port.name, declared(port.protocol or ""), port.target_port or 0))
    return Service(
        hostname=hostname,
        namespace=first.ref.namespace,
        ref=first.ref,
        ports=tuple(p for p in ports.values() if p.protocol is not Protocol.UDP),
        addresses=tuple(addresses),
        resolution=_RESOLUTIONS[first.spec.resolution],
        external=first.spec.location != "MESH_INTERNAL",
        aliases=aliases,
        export_to=exported(first.spec.export_to, first.ref.namespace, default_export),
        labels=as_labels(first.meta.labels),
        annotations=own_annotations(first.meta.annotations),
        created=first.meta.creation_timestamp,
        subject_alt_names=first.spec.subject_alt_names,
        traffic_distribution=first.meta.annotations.get(TRAFFIC_DISTRIBUTION, ""),
        from_kubernetes=False,
    )


def _external_name(service: api.Service) -> str:
    return (service.spec.external_name or "").lower().rstrip(".") if service.spec.type == "ExternalName" else ""


class Services(Settings):
    """Services by (hostname, namespace), and which namespaces have what."""

    def __init__(self) -> None:
        super().__init__()
        self.in_namespace = self.index("services by namespace", lambda o: (o.ref.namespace,), "Service", "ServiceEntry")
        self.services = self.index("services", lambda _: ("",), "Service", "ServiceEntry")
        self.entries = self.index("ServiceEntries by host", entry_hosts, "ServiceEntry")
        self.aliased = self.index("ExternalNames by target", lambda s: filter(None, (_external_name(s),)), "Service")

    @flow.derived
    def service(self, hostname: str, namespace: str) -> Service | None:
        """The service of this name in this namespace: a Kubernetes Service, else what all ServiceEntries for it make.

        Istio: ServiceEntry `hosts`: of an entry for a Kubernetes Service, only the `subjectAltNames` count: they come on top.
        """
        if not self.discovered(namespace):
            return None
        default = self.config().default_service_export_to
        name = kubernetes_name(hostname)
        entries: list[api.ServiceEntry] = [self.item(ref) for ref in self.entries[hostname] if ref.namespace == namespace]
        if name is not None and name[1] == namespace:
            found: api.Service | None = self.item(Ref("Service", namespace, name[0]))
            if found is not None:
                subject_alt_names = tuple(dict.fromkeys(san for entry in entries for san in entry.spec.subject_alt_names))
                return None if _external_name(found) else kubernetes_service(found, default, self.aliases(hostname), subject_alt_names)
        return entry_service(hostname, entries, default, self.aliases(hostname)) if entries else None

    @flow.derived
    def aliases(self, hostname: str) -> tuple[str, ...]:
        """The ExternalName services that point to `hostname`, through one another too."""
        found: dict[str, None] = {}
        todo = [hostname]
        while todo:
            for ref in self.aliased[todo.pop()]:
                alias = kubernetes_host(ref.name, ref.namespace)
                if alias not in found and alias != hostname and self.discovered(ref.namespace):
                    found[alias] = None
                    todo.append(alias)
        return tuple(sorted(found))

    @flow.derived
    def resolved(self, hostname: str) -> str:
        """What `hostname` is an alias of, in the end; itself where it is none."""
        passed = {hostname}
        while (name := kubernetes_name(hostname)) is not None:
            service: api.Service | None = self.item(Ref("Service", name[1], name[0]))
            target = "" if service is None else _external_name(service)
            if not target or target in passed:
                break
            passed.add(target)
            hostname = target
        return hostname

    @flow.derived
    def namespaces(self, hostname: str) -> tuple[str, ...]:
        """The namespaces that define `hostname`: that of the Kubernetes Service, then those of ServiceEntries, oldest first."""
        name = kubernetes_name(hostname)
        own = () if name is None else (name[1],)
        candidates = dict.fromkeys((*own, *(ref.namespace for ref in self.entries[hostname])))
        return tuple(namespace for namespace in candidates if self.service(hostname, namespace) is not None)

    @flow.derived
    def hosts_in(self, namespace: str) -> tuple[str, ...]:
        """The hosts that `namespace` defines, in no order that means anything."""
        hosts: dict[str, None] = {}
        for ref in self.in_namespace[namespace]:
            if ref.kind == "Service":
                hosts[kubernetes_host(ref.name, ref.namespace)] = None
            else:
                hosts.update(dict.fromkeys(self._hosts(ref)))
        return tuple(hosts)

    @flow.derived
    def _hosts(self, ref: Ref) -> tuple[str, ...]:
        entry: api.ServiceEntry | None = self.item(ref)
        return () if entry is None else tuple(entry_hosts(entry))
