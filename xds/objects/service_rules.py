"""What an API server refuses of Services, their endpoints and Pods, of what Envoy would refuse too. Files are held to it here."""

from collections.abc import Iterator
from ipaddress import ip_address

from xds.errors import Problem
from xds.objects.kubernetes import Endpoints, EndpointSlice, Pod, Service

MAX_PORT = 65535


def service(item: Service) -> Iterator[Problem]:
    """What is wrong with a Service."""
    for i, port in enumerate(item.spec.ports):
        yield from _port(f"$.spec.ports[{i}].port", port.port)
        if isinstance(port.target_port, int) and port.target_port:
            yield from _port(f"$.spec.ports[{i}].targetPort", port.target_port)
    if item.spec.cluster_ip not in (None, "", "None"):
        yield from _address("$.spec.clusterIP", item.spec.cluster_ip)
    for i, address in enumerate(item.spec.cluster_ips):
        if address != "None":
            yield from _address(f"$.spec.clusterIPs[{i}]", address)


def endpoint_slice(item: EndpointSlice) -> Iterator[Problem]:
    """What is wrong with an EndpointSlice."""
    for i, port in enumerate(item.ports):
        if port.port is not None:
            yield from _port(f"$.ports[{i}].port", port.port)
    for i, endpoint in enumerate(item.endpoints):
        for j, address in enumerate(endpoint.addresses):
            if item.address_type != "FQDN":
                yield from _address(f"$.endpoints[{i}].addresses[{j}]", address, item.address_type)


def endpoints(item: Endpoints) -> Iterator[Problem]:
    """What is wrong with an Endpoints object."""
    for i, subset in enumerate(item.subsets):
        for j, port in enumerate(subset.ports):
            yield from _port(f"$.subsets[{i}].ports[{j}].port", port.port or 0)
        for name, addresses in (("addresses", subset.addresses), ("notReadyAddresses", subset.not_ready_addresses)):
            for j, address in enumerate(addresses):
                yield from _address(f"$.subsets[{i}].{name}[{j}].ip", address.ip)


def pod(item: Pod) -> Iterator[Problem]:
    """What is wrong with a Pod."""
    if item.status.pod_ip:
        yield from _address("$.status.podIP", item.status.pod_ip)
    for i, address in enumerate(item.status.pod_ips):
        yield from _address(f"$.status.podIPs[{i}].ip", address.ip)


def _port(at: str, number: int) -> Iterator[Problem]:
    if not 1 <= number <= MAX_PORT:
        yield Problem(at, f"{number} is not a port from 1 to {MAX_PORT}")


def _address(at: str, text: str | None, family: str = "") -> Iterator[Problem]:
    try:
        found = f"IPv{ip_address(text or '').version}"
    except ValueError:
        found = ""
    if not found or family not in ("", found):
        yield Problem(at, f"{text!r} is not an {family or 'IP'} address")
