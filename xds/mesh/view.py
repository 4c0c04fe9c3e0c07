"""What one scope sees of the mesh: the interface that the Envoy room is written against."""

from typing import Protocol

from xds.mesh.model import Client, DestinationPolicy, Endpoint, Labels, Routing, Scope, Service
from xds.objects import MeshConfig, TrafficPolicy


class View(Protocol):
    """A scope's look-ups. Each reads through the graph, so what is built from a view is rebuilt just when an answer changes."""

    scope: Scope

    @property
    def config(self) -> MeshConfig:
        """The mesh-wide settings, defaults filled in."""

    def service(self, hostname: str) -> Service | None:
        """The service that this scope sees under exactly this fully qualified hostname."""

    def destination(self, hostname: str) -> Service | None:
        """The service a route to `hostname` means: its own, or that it is an alias of, else the most specific wildcard's."""

    def called_at(self, service: Service, client: Client) -> tuple[str, ...]:
        """Where `client` calls `service`: at its own addresses, or at those that are given to it where it has none."""

    def policy(self, service: Service) -> DestinationPolicy:
        """The DestinationRules that apply to `service` here, merged; empty where there is none."""

    def traffic_policy(self, service: Service, port: int, subset: str = "") -> TrafficPolicy:
        """Mesh defaults, then the rule's policy, its settings for `port`, the subset's policy and its settings for `port`.

        Istio: DestinationRule, `portLevelSettings` replace the whole policy's fields for that port; a subset's win over the rule's.
        """

    def endpoints(self, service: Service, port: int, labels: Labels = ()) -> tuple[Endpoint, ...]:
        """The endpoints of one port of `service` that carry all of `labels`, sorted by address."""

    def routing(self, hostname: str) -> Routing | None:
        """The VirtualService (of the gateway `mesh`) for calls to this host: exact before wildcard, older first."""
