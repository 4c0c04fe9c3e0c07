"""Which VirtualService governs calls to a host, for clients of a scope.

Of those that a scope sees, the one with the most specific host wins; of several with the same host, the nearest, then the oldest.
Sidecars never merge VirtualServices.
"""

from collections.abc import Iterable, Iterator

from xds import flow
from xds import objects as api
from xds.mesh.delegates import destinations, merge, qualify, qualify_route
from xds.mesh.endpoints import ServiceKey
from xds.mesh.model import Egress, Protocol, Routing, Scope, Service
from xds.mesh.names import covers, patterns
from xds.mesh.services import exported
from xds.mesh.visibility import RuleHead, Visibility
from xds.objects.meta import Ref

RULE_HOSTS_PORT = 80  # of hosts of which only a VirtualService knows


class Routings(Visibility):
    """VirtualServices by host, and what of the registry they bring into a scope."""

    @flow.derived
    def resolved_rule(self, ref: Ref) -> Routing | None:
        """A VirtualService with its delegates merged in and all names in full."""
        rule: api.VirtualService | None = self.item(ref)
        if rule is None:
            return None
        routes: list[api.HTTPRoute] = []
        refs = [ref]
        for route in rule.spec.http:
            own = qualify_route(route, ref.namespace)
            if route.delegate is None:
                routes.append(own)
                continue
            to = Ref("VirtualService", route.delegate.namespace or ref.namespace, route.delegate.name or "")
            refs.append(to)
            routes += self._delegated(own, to, ref.namespace)
        return Routing(qualify(rule, routes), tuple(dict.fromkeys(refs)))

    def _delegated(self, root: api.HTTPRoute, ref: Ref, namespace: str) -> Iterator[api.HTTPRoute]:
        """The routes of the delegate `ref`: none where there is no such delegate, or `namespace` does not see it."""
        delegate: api.VirtualService | None = self.item(ref)
        if delegate is None or delegate.spec.hosts or not self.discovered(ref.namespace):
            return
        export_to = exported(delegate.spec.export_to, ref.namespace, self.config().default_virtual_service_export_to)
        if "*" not in export_to and namespace not in export_to:
            return
        for route in delegate.spec.http:
            if route.delegate is None and (merged := merge(root, qualify_route(route, ref.namespace))) is not None:
                yield merged

    @flow.derived
    def routing(self, scope: Scope, hostname: str) -> Routing | None:
        """The VirtualService that governs calls to `hostname`."""
        ref = self.rule_for(scope, hostname)
        return None if ref is None else self.resolved_rule(ref)

    @flow.derived
    def rule_for(self, scope: Scope, hostname: str) -> Ref | None:
        """The VirtualService that `routing` is made of."""
        for pattern in patterns(hostname):
            seen = []
            for ref in self.rules_by_host[pattern]:
                head = self.rule_head(ref)
                if head is not None and (rank := self.rank(scope, head)) is not None:
                    seen.append((rank, head.age, ref))
            if seen:
                return min(seen)[2]
        return None

    @flow.derived
    def rule_hosts(self, scope: Scope, port: int) -> tuple[tuple[str, Routing], ...]:
        """The hosts of VirtualServices that name no service of the scope, as far as `port` has them, and what governs each."""
        found = ((host, self.resolved_rule(ref)) for host, ref in self._unknown_hosts(scope).get(port, ()))
        return tuple((host, routing) for host, routing in found if routing is not None)

    def rule_ports(self, scope: Scope) -> Iterable[int]:
        """The ports that have such hosts."""
        return self._unknown_hosts(scope)

    @flow.derived
    def _unknown_hosts(self, scope: Scope) -> dict[int, tuple[tuple[str, Ref], ...]]:
        """By port. No service says which ports they have: it is those of the services that the rule names too, else 80 (Istio)."""
        owners: dict[str, RuleHead] = {}
        for head in self.seen_rules(scope):
            for host in head.hosts:
                owners.setdefault(host, head)
        found: dict[int, list[tuple[str, Ref]]] = {}
        for host, head in owners.items():
            if next(self._named(scope, host), None) is None:
                for port in self._http_ports(scope, head.hosts) or {RULE_HOSTS_PORT}:
                    found.setdefault(port, []).append((host, head.ref))
        return {port: tuple(hosts) for port, hosts in found.items()}

    def _http_ports(self, scope: Scope, hosts: tuple[str, ...]) -> set[int]:
        """The ports of the services that `hosts` name, those that may speak HTTP."""
        named = (self.service(*key) for host in hosts for key in self._named(scope, host))
        ports = (port for service in named if service is not None for port in service.ports)
        return {port.number for port in ports if port.protocol.is_http or port.protocol is Protocol.AUTO}

    def _named(self, scope: Scope, host: str) -> Iterator[ServiceKey]:
        """The services of the scope that a rule's host names."""
        if not host.startswith("*"):
            hostname = self.resolved(host)
            namespace = self.lookup(scope, hostname)
            if namespace is not None:
                yield hostname, namespace
            return
        for egress in self.egress(scope):
            yield from (key for key in egress.hosts if covers(host, key[0]))

    # What a scope sees

    @flow.derived
    def lookup(self, scope: Scope, hostname: str) -> str | None:
        """The namespace whose service `scope` sees as `hostname`; None where it sees none."""
        namespaces = self.namespaces(hostname)
        if not namespaces:
            return None
        imports = self.imports(scope)
        if imports is None:
            return next(iter(self._preferred(scope, hostname, namespaces)), None)
        for listener in imports:
            taken = [n for n in namespaces if listener.takes(hostname, n)]
            for namespace in self._preferred(scope, hostname, tuple(taken)):
                service = self.service(hostname, namespace)
                if service is not None and (not listener.port or listener.proxy or service.port(listener.port)):
                    return namespace
        return dict(self.routed(scope)).get(hostname)

    def _preferred(self, scope: Scope, hostname: str, namespaces: tuple[str, ...]) -> list[str]:
        """Those of `namespaces` that export the host to `scope`: its own first, then as they come (Kubernetes, then oldest)."""
        found = []
        for namespace in namespaces:
            service = self.service(hostname, namespace)
            if service is not None and ("*" in service.export_to or scope.namespace in service.export_to):
                found.append(namespace)
        return sorted(found, key=lambda n: n != scope.namespace)

    @flow.derived
    def seen(self, scope: Scope, hostname: str) -> Service | None:
        """The service that `scope` sees as `hostname`."""
        namespace = self.lookup(scope, hostname)
        return None if namespace is None else self.service(hostname, namespace)

    @flow.derived
    def egress(self, scope: Scope) -> tuple[Egress, ...]:
        """The egress listeners of `scope`: one of all it sees, where no Sidecar says otherwise."""
        imports = self.imports(scope)
        if imports is None:
            return (Egress(hosts=self.visible(scope.namespace)),)
        return tuple(
            Egress(self.imported(scope, i), port=i.port, protocol=i.protocol, bind=i.bind, captured=i.captured, proxy=i.proxy)
            for i in imports
        )

    @flow.derived
    def routed(self, scope: Scope) -> tuple[ServiceKey, ...]:
        """The services that only VirtualServices of the scope lead to: its Sidecar imports those, and not these.

        They get clusters, but no listeners and virtual hosts of their own. Istio: a name that several namespaces define is its
        own namespace's, else that of the first by name.
        """
        if self.imports(scope) is None:
            return ()
        listed = {hostname for egress in self.egress(scope) for hostname, _ in egress.hosts}
        found: dict[str, str] = {}
        for head in self.seen_rules(scope):
            for destination in self._destinations(head.ref, scope.namespace):
                for hostname in patterns(self.resolved(destination)):
                    if hostname in listed or hostname in found:
                        break
                    candidates = self._preferred(scope, hostname, tuple(sorted(self.namespaces(hostname))))
                    if candidates:
                        found[hostname] = candidates[0]
                        break
        return tuple(sorted(found.items()))

    @flow.derived
    def _destinations(self, ref: Ref, source_namespace: str) -> tuple[str, ...]:
        routing = self.resolved_rule(ref)
        return () if routing is None else tuple(dict.fromkeys(destinations(routing.rule, source_namespace)))

    @flow.derived
    def hosts(self, scope: Scope) -> tuple[ServiceKey, ...]:
        """All services of a scope, each once: those of its egress listeners, then those that its rules lead to."""
        seen = (key for egress in self.egress(scope) for key in egress.hosts)
        return tuple(dict.fromkeys((*seen, *self.routed(scope))))
