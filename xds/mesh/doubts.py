"""What no object can tell of itself: rules that lead to nothing, and rules that others stand before.

All of these are warnings, as what is missing may be about to come. They are worked out over the whole mesh when somebody asks for
them; no derived value is kept for it, so that no change has more to do. That is done in steps, and the mesh may change between two
of them: each rule is held against the mesh as it is then, and nothing is said of rules that are not any more what they were at first.
"""

from collections.abc import Iterator
from typing import Any

from xds import objects as api
from xds.errors import Problem
from xds.mesh.model import Service
from xds.mesh.names import DOMAIN, covers, patterns, qualified
from xds.mesh.policies import Policies
from xds.mesh.services import as_labels, exported
from xds.mesh.settings import contains
from xds.mesh.visibility import MESH_GATEWAY, RuleHead
from xds.objects.meta import Ref

Doubt = tuple[Ref, Problem]


def _doubt(ref: Ref, field: str, reason: str) -> Doubt:
    return ref, Problem(field, reason, warning=True)


class Survey:
    """Looks at the rules of the mesh that there are now, those of namespaces that it looks at."""

    def __init__(self, mesh: Policies) -> None:
        self._mesh = mesh
        every = [item for _, item in mesh.objects.items() if isinstance(item, _RULES)]
        rules = [rule for rule in every if mesh.discovered(rule.ref.namespace)]
        self._rules: dict[Ref, Any] = {rule.ref: rule for rule in rules}
        self._found: list[Doubt] = []
        self._virtual_services = [rule for rule in rules if isinstance(rule, api.VirtualService) and _is_for_sidecars(rule)]
        self._destination_rules = [rule for rule in rules if isinstance(rule, api.DestinationRule)]
        self._sidecars = [rule for rule in rules if isinstance(rule, api.Sidecar)]
        self._subsets: dict[str, set[str]] = {}  # the names that any DestinationRule defines, by its host
        for rule in self._destination_rules:
            names = self._subsets.setdefault(qualified(rule.spec.host, rule.ref.namespace), set())
            names.update(subset.name for subset in rule.spec.subsets)

    def steps(self) -> Iterator[None]:
        """Look at one rule after the other, or at the rules for one host."""
        for doubts in self._doubts():
            self._found += doubts
            yield

    def found(self) -> list[Doubt]:
        """The warnings that objects give each other cause for, sorted by object."""
        stays = (doubt for doubt in self._found if self._rules.get(doubt[0]) is self._mesh.objects.peek(doubt[0]))
        return sorted(stays, key=lambda doubt: (doubt[0], doubt[1].field, doubt[1].reason))

    def _doubts(self) -> Iterator[Iterator[Doubt]]:
        for rule in self._virtual_services:
            yield self._delegates(rule)
            for path, destination in _destinations(rule):
                yield self._destination(rule, path, destination)
        yield from self._rivals()
        hostnames = {item.hostname for item in self._mesh.all_services()}
        for target in self._destination_rules:
            yield self._target(target, hostnames)
        yield self._general_sidecars()

    # VirtualServices

    def _delegates(self, rule: api.VirtualService) -> Iterator[Doubt]:
        """Istio: VirtualService `delegate`: what it names must be there, have no hosts, and be exported to the root's namespace."""
        for number, route in enumerate(rule.spec.http):
            if route.delegate is None:
                continue
            ref = Ref("VirtualService", route.delegate.namespace or rule.ref.namespace, route.delegate.name or "")
            delegate: api.VirtualService | None = self._mesh.item(ref)
            reason = ""
            if delegate is None or not self._mesh.discovered(ref.namespace):
                reason = f"there is no {ref}"
            elif delegate.spec.hosts:
                reason = f"{ref} is no delegate: it has hosts of its own"
            elif not self._audience(delegate) & {"*", rule.ref.namespace}:
                reason = f"{ref} is not exported to {rule.ref.namespace}"
            if reason:
                yield _doubt(rule.ref, f"$.spec.http[{number}].delegate", f"{reason}; the route has no effect")

    def _destination(self, rule: api.VirtualService, path: str, destination: api.Destination) -> Iterator[Doubt]:
        host = self._mesh.resolved(qualified(destination.host, rule.ref.namespace))
        # Who asks a delegate is told by its roots.
        audience = self._audience(rule) if rule.spec.hosts else frozenset({"*"})
        services = next((found for pattern in patterns(host) if (found := self._services(pattern, audience))), None)
        if services is None:
            yield _doubt(rule.ref, f"{path}.host", self._unknown(host))
            return
        if destination.subset and not any(destination.subset in self._subsets.get(pattern, ()) for pattern in patterns(host)):
            yield _doubt(rule.ref, f"{path}.subset", f"no DestinationRule defines the subset {destination.subset} of {host}")
        number = destination.port.number if destination.port is not None else None
        if number and not any(service.port(number) for service in services):
            ports = ", ".join(str(port) for port in sorted({port.number for service in services for port in service.ports}))
            yield _doubt(rule.ref, f"{path}.port.number", f"{host} has no port {number}; it has {ports or 'none'}")

    def _services(self, hostname: str, audience: frozenset[str]) -> list[Service]:
        """The services of this name that some client in `audience` sees."""
        found = [self._mesh.service(hostname, namespace) for namespace in self._mesh.namespaces(hostname)]
        return [s for s in found if s is not None and ("*" in audience or "*" in s.export_to or not audience.isdisjoint(s.export_to))]

    def _audience(self, rule: api.VirtualService) -> frozenset[str]:
        return exported(rule.spec.export_to, rule.ref.namespace, self._mesh.config().default_virtual_service_export_to)

    def _unknown(self, host: str) -> str:
        whole = f"{host}.{DOMAIN}" if host.endswith(".svc") else f"{host}.svc.{DOMAIN}"
        advice = f"; did you mean {whole}?" if self._mesh.namespaces(whole) else ""
        return f"there is no service {host}{advice}"

    def _rivals(self) -> Iterator[Iterator[Doubt]]:
        """Sidecars follow one VirtualService of a host, and never merge two."""
        heads: dict[str, list[tuple[RuleHead, str]]] = {}  # those for each host, with the field that says so
        for head in self._mesh.rule_heads(""):
            for number, host in enumerate(head.hosts):
                heads.setdefault(host, []).append((head, f"$.spec.hosts[{number}]"))
        for host, rivals in heads.items():
            if len(rivals) > 1:
                yield self._losers(host, rivals)

    def _losers(self, host: str, rivals: list[tuple[RuleHead, str]]) -> Iterator[Doubt]:
        """Those of `rivals` that clients in no namespace follow. A rule for all is behind those that name a namespace there."""
        winners: dict[str, RuleHead] = {}
        for head, _ in rivals:
            for place in _places(head):
                if _order(head, place) <= _order(winners.get(place, head), place):
                    winners[place] = head
        for head, field in rivals:
            followed = [winners[place] for place in sorted(_places(head))]
            if followed and head not in followed:
                yield _doubt(head.ref, field, f"for {host}, clients follow {followed[0].ref} and not this one")

    # DestinationRules and Sidecars

    def _target(self, rule: api.DestinationRule, hostnames: set[str]) -> Iterator[Doubt]:
        host = qualified(rule.spec.host, rule.ref.namespace)
        if host not in hostnames and not ("*" in host and any(covers(host, hostname) for hostname in hostnames)):
            yield _doubt(rule.ref, "$.spec.host", self._unknown(host))
        elif rule.spec.subsets:
            yield from self._empty_subsets(rule, host)

    def _empty_subsets(self, rule: api.DestinationRule, host: str) -> Iterator[Doubt]:
        """Those of which a service has no endpoint, while it has others."""
        services = self._services(host, frozenset({"*"}))
        endpoints = [e for s in services for port in s.ports for e in self._mesh.endpoints(s.hostname, s.namespace, port.number)]
        for number, subset in enumerate(rule.spec.subsets):
            if endpoints and not any(contains(endpoint.labels, subset.labels) for endpoint in endpoints):
                labels = ", ".join(f"{key}={value}" for key, value in as_labels(subset.labels))
                yield _doubt(rule.ref, f"$.spec.subsets[{number}].labels", f"no endpoint of {host} has {labels}")

    def _general_sidecars(self) -> Iterator[Doubt]:
        """Istio: Sidecar: a namespace can have only one without a workload selector."""
        general: dict[str, list[Ref]] = {}
        for sidecar in self._sidecars:
            selector = sidecar.spec.workload_selector
            if selector is None or not selector.labels:
                general.setdefault(sidecar.ref.namespace, []).append(sidecar.ref)
        for namespace, refs in general.items():
            by_age = [ref for ref in self._mesh.sidecars[namespace] if ref in refs]
            for ref in by_age[1:]:
                yield _doubt(ref, "$.spec", f"without a workloadSelector it has no effect: {by_age[0]} has none either, and is older")


_RULES = (api.VirtualService, api.DestinationRule, api.Sidecar)


def _is_for_sidecars(rule: api.VirtualService) -> bool:
    """Whether sidecars follow it, or what delegates to it."""
    return not rule.spec.gateways or MESH_GATEWAY in rule.spec.gateways


def _destinations(rule: api.VirtualService) -> Iterator[tuple[str, api.Destination]]:
    """Where a VirtualService leads, and the field that says so."""
    for number, http in enumerate(rule.spec.http):
        path = f"$.spec.http[{number}]"
        yield from ((f"{path}.route[{n}].destination", part.destination) for n, part in enumerate(http.route))
        yield from ((f"{path}.mirrors[{n}].destination", part.destination) for n, part in enumerate(http.mirrors))
        if http.mirror is not None:
            yield f"{path}.mirror", http.mirror
    for number, tls in enumerate(rule.spec.tls):
        yield from ((f"$.spec.tls[{number}].route[{n}].destination", part.destination) for n, part in enumerate(tls.route))
    for number, tcp in enumerate(rule.spec.tcp):
        yield from ((f"$.spec.tcp[{number}].route[{n}].destination", part.destination) for n, part in enumerate(tcp.route))


def _places(head: RuleHead) -> frozenset[str]:
    """The namespaces whose clients see a rule; empty stands for all."""
    return frozenset({""}) if "*" in head.export_to else head.export_to


def _order(head: RuleHead, namespace: str) -> tuple[int, int, object]:
    """Which of several rules for a host clients in `namespace` follow: the least."""
    rank = head.rank(namespace)
    return (1, 0, ()) if rank is None else (0, rank, head.age)
