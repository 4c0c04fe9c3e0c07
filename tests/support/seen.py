"""A view of a mesh that is written down in the test: services, rules and endpoints by hand, and what follows by look-up."""

from collections.abc import Iterable, Mapping

from xds.mesh.model import Client, DestinationPolicy, Egress, Endpoint, Labels, Port, Protocol, Resolution, Routing, Scope, Service
from xds.objects import MeshConfig, TrafficPolicy, VirtualService
from xds.objects.meta import Ref


class Seen:
    """A `View` of just these things. `policies` are by service host, or by (host, subset)."""

    def __init__(
        self,
        *services: Service,
        rules: Iterable[VirtualService] = (),
        policies: Mapping[str | tuple[str, str], TrafficPolicy] | None = None,
        endpoints: Mapping[str, Iterable[str]] | None = None,
        config: MeshConfig | None = None,
    ) -> None:
        self.scope = Scope()
        self.config = config or MeshConfig()
        self.services = {s.hostname: s for s in services}
        self.rules = {host: Routing(rule, (rule.ref,)) for rule in rules for host in rule.spec.hosts}
        self.policies = policies or {}
        self.addresses = endpoints or {}

    def service(self, hostname: str) -> Service | None:
        return self.services.get(hostname)

    def destination(self, hostname: str) -> Service | None:
        wildcards = (s for s in self.services.values() if s.hostname.startswith("*.") and hostname.endswith(s.hostname[1:]))
        return self.services.get(hostname) or max(wildcards, key=lambda s: len(s.hostname), default=None)

    def called_at(self, service: Service, client: Client) -> tuple[str, ...]:
        return service.addresses

    def policy(self, service: Service) -> DestinationPolicy:
        return DestinationPolicy(self.policies.get(service.hostname))

    def traffic_policy(self, service: Service, port: int, subset: str = "") -> TrafficPolicy:
        return self.policies.get((service.hostname, subset)) or self.policies.get(service.hostname) or TrafficPolicy()

    def endpoints(self, service: Service, port: int, labels: Labels = ()) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(address, port) for address in self.addresses.get(service.hostname, ()))

    def routing(self, hostname: str) -> Routing | None:
        return self.rules.get(hostname)

    def all_egress(self) -> tuple[Egress, ...]:
        """What a scope without a Sidecar has: all services, the oldest first."""
        return (Egress(hosts=tuple((s.hostname, s.namespace) for s in self.services.values())),)


def service(hostname: str, *ports: tuple[int, Protocol], at: str | Iterable[str] = "10.96.0.1", **fields: object) -> Service:
    """A Kubernetes service in the namespace `default`, called at `at`."""
    addresses = (at,) if isinstance(at, str) else tuple(at)
    return Service(
        hostname=hostname,
        namespace="default",
        ref=Ref("Service", "default", hostname.partition(".")[0]),
        ports=tuple(Port(number, protocol=protocol) for number, protocol in ports),
        addresses=addresses,
        **fields,  # type: ignore[arg-type]
    )


def headless(hostname: str, *ports: tuple[int, Protocol]) -> Service:
    return service(hostname, *ports, at=(), headless=True, resolution=Resolution.PASSTHROUGH)


def entry(hostname: str, *ports: tuple[int, Protocol], at: str | Iterable[str] = (), **fields: object) -> Service:
    """A host of a ServiceEntry outside the mesh."""
    return service(hostname, *ports, at=at, external=True, from_kubernetes=False, **{"resolution": Resolution.DNS, **fields})
