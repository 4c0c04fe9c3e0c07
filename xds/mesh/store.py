"""The mesh: everything derived from objects that is not yet about Envoy.

Each layer reads those below it: inputs, settings, services, workloads, endpoints, visibility, routings, policies, inbounds.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from xds import flow
from xds import objects as api
from xds.mesh.doubts import Survey
from xds.mesh.inbound import Inbounds
from xds.mesh.model import Client, DestinationPolicy, Endpoint, Labels, Routing, Scope, Service
from xds.mesh.names import patterns, qualified


class Mesh(Inbounds):
    """The whole model. `apply` writes; everything else reads."""

    @flow.derived
    def scope(self, client: Client) -> Scope:
        """The view of the mesh that `client` has, which it shares with all that have the same."""
        return self.placed_scope(client.namespace, client.labels)

    def view(self, scope: Scope) -> "MeshView":
        """The look-ups of a scope."""
        return MeshView(self, scope)

    @flow.derived
    def outbound_policy(self, scope: Scope) -> api.OutboundTrafficPolicy:
        """What happens to calls to what the scope does not know: as its Sidecar says, else as the mesh does (ALLOW_ANY).

        The egress proxy has its name in full, and a port where it has just one.
        """
        sidecar: api.Sidecar | None = None if scope.sidecar is None else self.item(scope.sidecar)
        own = None if sidecar is None else sidecar.spec.outbound_traffic_policy
        if sidecar is None or own is None:
            only_known = self.config().outbound_traffic_policy.mode == "REGISTRY_ONLY"
            return api.OutboundTrafficPolicy(mode="REGISTRY_ONLY" if only_known else "ALLOW_ANY")
        if own.egress_proxy is None:
            return own
        proxy = msgspec.structs.replace(own.egress_proxy, host=qualified(own.egress_proxy.host, sidecar.ref.namespace))
        service = self.seen(scope, proxy.host)
        if service is not None and len(service.ports) == 1 and (proxy.port is None or not proxy.port.number):
            proxy = msgspec.structs.replace(proxy, port=api.PortSelector(number=service.ports[0].number))
        return msgspec.structs.replace(own, egress_proxy=proxy)

    def problems(self) -> list[dict[str, Any]]:
        """The objects that something is wrong with, for people: what, where, and whether an earlier version is in force."""
        found: list[dict[str, Any]] = []
        for _ in self.examine(found):
            pass
        return found

    def examine(self, found: list[dict[str, Any]]) -> Iterator[None]:
        """Put the `problems` into `found`, in steps between which the mesh may change."""
        survey = Survey(self)
        yield from survey.steps()
        said = (self.invalid, self.warnings)  # both, where an invalid version follows one with warnings
        own = ((ref, problem) for ref in sorted({*self.invalid, *self.warnings}) for by in said for problem in by.get(ref, ()))
        found += [
            {
                "object": str(ref),
                "problem": str(problem),
                "warning": problem.warning,
                "in_force": self.objects.peek(ref) is not None,
            }
            for ref, problem in (*own, *survey.found())
        ]

    def registry(self) -> list[dict[str, Any]]:
        """All services, for people."""
        found = (self.service(*item.key) for item in self.all_services())
        return [msgspec.to_builtins(service) for service in found if service is not None]


class MeshView:
    """A scope's look-ups; implements `xds.mesh.view.View`."""

    def __init__(self, mesh: Mesh, scope: Scope) -> None:
        self._mesh = mesh
        self.scope = scope

    @property
    def config(self) -> api.MeshConfig:
        return self._mesh.config()

    def service(self, hostname: str) -> Service | None:
        return self._mesh.seen(self.scope, hostname)

    def destination(self, hostname: str) -> Service | None:
        name = self._mesh.resolved(hostname)
        return next((s for pattern in patterns(name) if (s := self._mesh.seen(self.scope, pattern)) is not None), None)

    def called_at(self, service: Service, client: Client) -> tuple[str, ...]:
        return self._mesh.called_at(service, allocates=client.allocates)

    def policy(self, service: Service) -> DestinationPolicy:
        return self._mesh.policy(self.scope, service.hostname, service.namespace)

    def traffic_policy(self, service: Service, port: int, subset: str = "") -> api.TrafficPolicy:
        return self._mesh.traffic_policy(self.scope, service.hostname, service.namespace, port, subset)

    def endpoints(self, service: Service, port: int, labels: Labels = ()) -> tuple[Endpoint, ...]:
        return self._mesh.endpoints(service.hostname, service.namespace, port, labels)

    def routing(self, hostname: str) -> Routing | None:
        return self._mesh.routing(self.scope, hostname)
