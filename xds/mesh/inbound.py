"""The ports on which a workload is called: those that services have it behind, or those that its Sidecar lists."""

from ipaddress import IPv6Address, ip_address

import msgspec

from xds import flow
from xds import objects as api
from xds.mesh.endpoints import Target
from xds.mesh.inputs import age
from xds.mesh.model import Client, Inbound, Mode, Scope, Service
from xds.mesh.policies import Policies
from xds.mesh.protocols import declared


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Inbounds(Policies):
    """Inbound ports by client."""

    @flow.derived
    def inbound(self, client: Client) -> tuple[Inbound, ...]:
        """The inbound ports of `client`, by port number. A Sidecar's `ingress` replaces all that services say."""
        scope = self.placed_scope(client.namespace, client.labels)
        sidecar: api.Sidecar | None = None if scope.sidecar is None else self.item(scope.sidecar)
        targets = self._by_age(self.targets(client.namespace, client.addresses, client.labels))
        pool = None if sidecar is None else sidecar.spec.inbound_connection_pool
        if sidecar is not None and sidecar.spec.ingress:
            # Istio: "inbound ports are configured if and only if the workload instance is associated with a service".
            found = [self._ingress(listener, client, targets) for listener in sidecar.spec.ingress if targets]
        else:
            found = [self._of_service(service, target, client) for service, target in targets]
        found = [i if i.pool is not None else msgspec.structs.replace(i, pool=pool or self._pool(scope, i)) for i in found]
        unique: dict[tuple[str, int], Inbound] = {}
        for inbound in found:
            unique.setdefault((inbound.bind, inbound.port), inbound)
        return tuple(sorted(unique.values(), key=lambda i: (i.port, i.bind)))

    def _pool(self, scope: Scope, inbound: Inbound) -> api.ConnectionPoolSettings | None:
        """What DestinationRules say of the service behind which the port is: they hold for its callers, and for itself.

        Istio: Sidecar `ingress[].connectionPool`: that of the port wins, then the Sidecar's, then the rule's; they are not merged.
        """
        service = inbound.service
        if service is None:
            return None
        return self.traffic_policy(scope, service.hostname, service.namespace, inbound.service_port).connection_pool

    def _by_age(self, targets: tuple[Target, ...]) -> list[tuple[Service, Target]]:
        """The targets with their services, the oldest service first: of two behind one port, it decides."""
        found = [(service, target) for target in targets if (service := self.service(*target.service)) is not None]
        return sorted(found, key=lambda pair: (age(self.item(pair[0].ref)), pair[1].service, pair[1].service_port))

    def _of_service(self, service: Service, target: Target, client: Client) -> Inbound:
        port = service.port(target.service_port)
        assert port is not None  # targets are read from the same service
        alone = client.mode is Mode.NONE  # nothing is captured: the proxy listens in the application's place
        return Inbound(
            port=target.port,
            protocol=port.protocol,
            service=service,
            service_port=port.number,
            name=port.name,
            bind=_own_address(client) if alone else "",
            forward_to=_host_port(_loopback(client), target.port) if alone or self._local() else "",
        )

    def _ingress(self, listener: api.IstioIngressListener, client: Client, targets: list[tuple[Service, Target]]) -> Inbound:
        number = listener.port.number or 0
        service, target = next((pair for pair in targets if pair[1].port == number), (None, None))
        alone = client.mode is Mode.NONE or listener.capture_mode == "NONE"
        forward_to = listener.default_endpoint or ""
        if not forward_to and (alone or self._local()):
            forward_to = _host_port(_loopback(client), number)
        return Inbound(
            port=number,
            protocol=declared(listener.port.protocol or ""),
            service=service,
            service_port=0 if target is None else target.service_port,
            name=listener.port.name or "",
            bind=(listener.bind or _own_address(client)) if alone else "",
            forward_to=forward_to,
            pool=listener.connection_pool,
            tls=listener.tls,
        )


    def _local(self) -> bool:
        """Whether applications listen on the loopback address (Istio: MeshConfig `inboundTrafficPolicy`)."""
        return self.config().inbound_traffic_policy.mode == "LOCALHOST"


def _own_address(client: Client) -> str:
    """Where a proxy listens for itself: its first address, or all where it has none (Istio: Sidecar `ingress[].bind`)."""
    return client.addresses[0] if client.addresses else "0.0.0.0"


def _loopback(client: Client) -> str:
    return "::1" if client.addresses and isinstance(ip_address(client.addresses[0]), IPv6Address) else "127.0.0.1"
