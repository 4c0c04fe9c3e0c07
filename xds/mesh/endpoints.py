"""Endpoints: the addresses behind each port of a service.

A Kubernetes Service has those of its EndpointSlices, which Kubernetes keeps, and the WorkloadEntries that its selector finds; where
nobody keeps EndpointSlices, as with objects from files, those of its Endpoints, else also the Pods. A ServiceEntry lists its own, or
selects WorkloadEntries and Pods.
"""

from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

import msgspec

from xds import flow
from xds import objects as api
from xds.mesh.model import Endpoint, Health, Labels, Locality, Port, Protocol, Resolution, Service
from xds.mesh.names import kubernetes_host
from xds.mesh.services import as_labels, entry_hosts
from xds.mesh.settings import contains
from xds.mesh.workloads import NETWORK, Workload, Workloads, labelled_locality, parse_locality
from xds.objects.kubernetes import Endpoint as SliceEndpoint
from xds.objects.meta import Ref

PERSISTENT_SESSION = ("istio.io/persistent-session", "istio.io/persistent-session-header")

ServiceKey = tuple[str, str]  # hostname, namespace


class Target(msgspec.Struct, frozen=True):
    """A workload's port behind a service's port."""

    service: ServiceKey
    service_port: int
    port: int


def health(endpoint: SliceEndpoint, service: Service) -> Health | None:
    """How an endpoint of an EndpointSlice is to be used; None: not at all, since it is terminating.

    Istio: unready endpoints are sent as unhealthy, and terminating ones only, to drain, where sessions are kept to them.
    """
    conditions = endpoint.conditions
    if conditions.ready is not False or service.publish_not_ready:
        return Health.HEALTHY
    if not conditions.terminating:
        return Health.UNHEALTHY
    kept = any(key in PERSISTENT_SESSION for key, _ in service.labels)
    return Health.DRAINING if kept and conditions.serving is not False else None


def _is_v6(address: str) -> bool:
    try:
        return isinstance(ip_address(address), IPv6Address)
    except ValueError:
        return False


def _slices(item: api.EndpointSlice | api.Endpoints) -> tuple[api.EndpointSlice, ...]:
    return item.slices() if isinstance(item, api.Endpoints) else (item,)


def _slice_service(item: api.EndpointSlice | api.Endpoints) -> Iterator[ServiceKey]:
    for part in _slices(item)[:1]:
        if part.service_name:
            yield part.ref.namespace, part.service_name


def _slice_addresses(item: api.EndpointSlice | api.Endpoints) -> Iterator[tuple[str, str]]:
    for part in _slices(item):
        if part.service_name:
            for endpoint in part.endpoints:
                for address in endpoint.addresses:
                    yield part.ref.namespace, address


def _inline_addresses(entry: api.ServiceEntry) -> Iterator[tuple[str, str]]:
    if entry.spec.resolution == "STATIC":
        for endpoint in entry.spec.endpoints:
            if endpoint.address:
                yield entry.ref.namespace, endpoint.address


def workload_port(workload: Workload, port: Port) -> int:
    """The port on which a selected workload serves a service's `port`: by its own map, else the target port, else the same.

    0 where the target is the name of a container port that the Pod has not: it serves none.
    """
    own = dict(workload.ports)
    target = port.target_port
    if workload.ref.kind == "Pod":
        return own.get(target, 0) if isinstance(target, str) else target or port.number
    return own.get(port.name) or (own.get(target) if isinstance(target, str) else target) or port.number


def _target(port: Port) -> int:
    return port.target_port if isinstance(port.target_port, int) and port.target_port else port.number


def _of_workload(workload: Workload, port: Port, health: Health = Health.HEALTHY) -> Iterator[Endpoint]:
    number = workload_port(workload, port)
    for address in workload.addresses[: bool(number)]:
        yield Endpoint(
            address=address,
            port=0 if address.startswith("unix://") else number,
            labels=workload.labels,
            locality=workload.locality,
            weight=workload.weight,
            health=health,
            namespace=workload.ref.namespace,
            workload=workload.name,
            service_account=workload.service_account,
            network=workload.network,
            node=workload.node,
        )


def _inline(endpoint: api.WorkloadEntrySpec, port: Port, service: Service) -> Iterator[Endpoint]:
    if not endpoint.address:
        return
    yield Endpoint(
        address=endpoint.address,
        port=0 if endpoint.address.startswith("unix://") else endpoint.ports.get(port.name) or _target(port),
        labels=as_labels(endpoint.labels),
        locality=parse_locality(endpoint.locality) if endpoint.locality else labelled_locality(endpoint.labels),
        weight=endpoint.weight or 0,
        namespace=service.namespace,
        service_account=endpoint.service_account or "",
        network=endpoint.network or endpoint.labels.get(NETWORK, ""),
    )


def _selector_pair(service: api.Service) -> Iterator[tuple[str, str, str]]:
    """One pair of the selector is enough to find a Service by."""
    for key, value in sorted(service.spec.selector.items())[:1]:
        yield service.ref.namespace, key, value


class Endpoints(Workloads):
    """The endpoints of services, and the services of workloads."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = self.index("EndpointSlices by Service", _slice_service, "EndpointSlice", "Endpoints")
        self.slices_at = self.index("EndpointSlices by address", _slice_addresses, "EndpointSlice", "Endpoints")
        self.entries_at = self.index("ServiceEntries by address", _inline_addresses, "ServiceEntry")
        self.selecting_entries = self.index(
            "ServiceEntries that select", lambda e: (e.ref.namespace,) if e.spec.workload_selector else (), "ServiceEntry"
        )
        self.selecting_services = self.index("Services by selector", _selector_pair, "Service")

    @flow.derived
    def endpoints(self, hostname: str, namespace: str, port: int, labels: Labels = ()) -> tuple[Endpoint, ...]:
        """The endpoints of one port of a service that have all of `labels`, sorted by address."""
        wanted = dict(labels)
        return tuple(e for e in self._endpoints(hostname, namespace, port) if contains(e.labels, wanted))

    @flow.derived
    def _endpoints(self, hostname: str, namespace: str, port: int) -> tuple[Endpoint, ...]:
        service = self.service(hostname, namespace)
        if service is None or (of := service.port(port)) is None:
            return ()
        found = self._kubernetes(service, of) if service.from_kubernetes else self._listed(service, of)
        unique: dict[tuple[str, int], Endpoint] = {}
        for endpoint in found:  # the first to name an address has it: EndpointSlices may overlap while they are rearranged
            known = unique.setdefault((endpoint.address, endpoint.port), endpoint)
            if known.health is not Health.HEALTHY and endpoint.health is Health.HEALTHY:
                unique[endpoint.address, endpoint.port] = endpoint
        return tuple(unique[key] for key in sorted(unique))

    def _slices_of(self, namespace: str, name: str) -> tuple[Ref, ...]:
        """The EndpointSlices of a Service; its Endpoints where it has none."""
        found = self.slices[namespace, name]
        return tuple(ref for ref in found if ref.kind == "EndpointSlice") or found

    def _kubernetes(self, service: Service, port: Port) -> Iterator[Endpoint]:
        """Of both address families, the Service's first one that has endpoints: a pod in both is one endpoint."""
        families: dict[bool, list[Endpoint]] = {False: [], True: []}
        slices = self._slices_of(service.namespace, service.name)
        for ref in slices:
            for item in _slices(self.item(ref)):
                if item.address_type != "FQDN":
                    families[item.address_type == "IPv6"] += self._sliced(item, service, port)
        first = any(map(_is_v6, service.addresses[:1]))
        yield from families[first] or families[not first]
        found: api.Service | None = self.item(service.ref)
        if found is not None and found.spec.selector:
            for ref in self.selected(service.namespace, as_labels(found.spec.selector)):
                if (ref.kind == "WorkloadEntry" or not slices) and (workload := self.workload(ref)) is not None:
                    usable = workload.ready or service.publish_not_ready
                    yield from _of_workload(workload, port, Health.HEALTHY if usable else Health.UNHEALTHY)

    def _sliced(self, item: api.EndpointSlice, service: Service, port: Port) -> Iterator[Endpoint]:
        number = next((p.port for p in item.ports if (p.name or "") == port.name and p.port), None)
        if number is None:
            return
        for endpoint in item.endpoints:
            status = health(endpoint, service)
            if status is not None and endpoint.addresses:
                # Kubernetes: the addresses of one endpoint are interchangeable, and consumers use the first.
                yield self._of_slice(endpoint, item.ref.namespace, number, status)

    def _of_slice(self, endpoint: SliceEndpoint, namespace: str, port: int, status: Health) -> Endpoint:
        address, target = endpoint.addresses[0], endpoint.target_ref
        if target is not None and target.kind == "Pod":
            pod = self.workload(Ref("Pod", target.namespace or namespace, target.name or ""))
        else:
            pod = self.pod_at(namespace, address)
        node = endpoint.node_name or (pod.node if pod else "")
        locality = pod.locality if pod else self.node_locality(node)
        return Endpoint(
            address=address,
            port=port,
            labels=pod.labels if pod else (),
            locality=locality if locality != Locality() else Locality(zone=endpoint.zone or ""),
            health=status,
            namespace=namespace,
            workload=pod.name if pod else "",
            service_account=pod.service_account if pod else "",
            network=pod.network if pod else "",
            node=node,
            hostname=endpoint.hostname or "",
        )

    def _listed(self, service: Service, port: Port) -> Iterator[Endpoint]:
        """What ServiceEntries say. Without endpoints, a name that DNS resolves is its own endpoint."""
        if service.resolution in (Resolution.PASSTHROUGH, Resolution.DYNAMIC_DNS):
            return
        entries: list[api.ServiceEntry] = [
            self.item(ref) for ref in self.entries[service.hostname] if ref.namespace == service.namespace
        ]
        found = False
        for entry in entries:
            own = next((p for p in entry.spec.ports if p.number == port.number), None)
            if own is None:
                continue
            of = Port(port.number, own.name, port.protocol, own.target_port or 0)
            if entry.spec.workload_selector:
                for ref in self.selected(service.namespace, as_labels(entry.spec.workload_selector.labels)):
                    workload = self.workload(ref)
                    if workload is not None and workload.ready:
                        found = True
                        yield from _of_workload(workload, of)
            for endpoint in entry.spec.endpoints:
                found = True
                yield from _inline(endpoint, of, service)
        if not found and service.resolution is not Resolution.ENDPOINTS and not service.hostname.startswith("*"):
            yield Endpoint(service.hostname, _target(port), namespace=service.namespace)

    @flow.derived
    def targets(self, namespace: str, addresses: tuple[str, ...], labels: Labels) -> tuple[Target, ...]:
        """The service ports behind which the workload of `namespace` with these addresses and labels is, ready or not.

        A service is found by an endpoint's address, by a selector that the workload's own object matches, or both.
        """
        found: dict[Target, None] = {}
        for address in addresses:
            for ref in self.slices_at[namespace, address]:
                found.update(dict.fromkeys(self._slice_targets(ref, address)))
            for ref in self.entries_at[namespace, address]:
                found.update(dict.fromkeys(self._entry_targets(ref, address, labels)))
        for ref in self.selecting_entries[namespace]:
            found.update(dict.fromkeys(self._entry_targets(ref, "", labels)))
        for address in addresses:
            for ref in self.entries_by_address[namespace, address]:
                found.update(dict.fromkeys(self._selected_targets(ref)))
            pod = self.pod_at(namespace, address)
            if pod is not None:
                found.update(dict.fromkeys(self._selected_targets(pod.ref)))
        return tuple(found)

    @flow.derived
    def _slice_targets(self, ref: Ref, address: str) -> tuple[Target, ...]:
        found: api.EndpointSlice | api.Endpoints | None = self.item(ref)
        slices = [] if found is None else [s for s in _slices(found) if any(address in e.addresses for e in s.endpoints)]
        if not slices or ref not in self._slices_of(ref.namespace, slices[0].service_name):
            return ()
        service = self.service(kubernetes_host(slices[0].service_name, ref.namespace), ref.namespace)
        if service is None:
            return ()
        numbers = {p.name or "": p.port for item in slices for p in item.ports}
        return tuple(
            Target((service.hostname, service.namespace), port.number, number)
            for port in service.ports
            if port.protocol is not Protocol.UDP and (number := numbers.get(port.name))
        )

    @flow.derived
    def _entry_targets(self, ref: Ref, address: str, labels: Labels) -> tuple[Target, ...]:
        """Of a ServiceEntry: through the inline endpoints at `address`; where that is empty, through its workload selector."""
        entry: api.ServiceEntry | None = self.item(ref)
        if entry is None:
            return ()
        found = []
        for host in entry_hosts(entry):
            service = self.service(host, ref.namespace)
            if service is None or service.from_kubernetes:
                continue
            for own in entry.spec.ports:
                port = Port(own.number, own.name, target_port=own.target_port or 0)
                if address:
                    numbers = [e.ports.get(own.name) or _target(port) for e in entry.spec.endpoints if e.address == address]
                else:
                    selector = entry.spec.workload_selector
                    numbers = [_target(port)] if selector and contains(labels, selector.labels) else []
                found += [Target((host, ref.namespace), own.number, number) for number in numbers]
        return tuple(found)

    @flow.derived
    def _selected_targets(self, ref: Ref) -> tuple[Target, ...]:
        """The Services whose selector finds the WorkloadEntry, or Pod, `ref`."""
        workload = self.workload(ref)
        if workload is None:
            return ()
        labels = dict(workload.labels)
        found = []
        for key, value in workload.labels:
            for candidate in self.selecting_services[ref.namespace, key, value]:
                item: api.Service = self.item(candidate)
                service = self.service(kubernetes_host(candidate.name, ref.namespace), ref.namespace)
                if service is None or not item.spec.selector.items() <= labels.items():
                    continue
                if ref.kind == "Pod" and self.slices[ref.namespace, candidate.name]:
                    continue  # these say it
                found += [
                    Target((service.hostname, service.namespace), p.number, number)
                    for p in service.ports
                    if p.protocol is not Protocol.UDP and (number := workload_port(workload, p))
                ]
        return tuple(found)
