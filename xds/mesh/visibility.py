"""Who sees what: exportTo, Sidecars, and the scopes that clients with the same view share.

A Sidecar's egress hosts are pairs `namespace/pattern`. They are read here as *imports*, one for each egress listener, with `.`
put in as the client's namespace. Services and VirtualServices are both imported by them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from xds import flow
from xds import objects as api
from xds.mesh.allocation import allocate
from xds.mesh.delegates import AnyMatch
from xds.mesh.endpoints import Endpoints, ServiceKey
from xds.mesh.inputs import Age, age
from xds.mesh.model import Labels, Protocol, Scope, Service
from xds.mesh.names import covers, qualified
from xds.mesh.protocols import declared
from xds.mesh.services import exported
from xds.mesh.settings import contains
from xds.objects.meta import Ref

MESH_GATEWAY = "mesh"
API_SERVER = Ref("Service", "default", "kubernetes")


class Listed(msgspec.Struct, frozen=True, order=True):
    """A service as listings have it; sorts older first, then by name."""

    age: Age
    hostname: str
    namespace: str
    export_to: tuple[str, ...]
    from_kubernetes: bool

    @property
    def key(self) -> ServiceKey:
        return self.hostname, self.namespace

    def exported_to(self, namespace: str) -> bool:
        return "*" in self.export_to or namespace in self.export_to


class Patterns(msgspec.Struct, frozen=True):
    """Hosts in namespaces, as `egress[].hosts` of a Sidecar names them. A namespace may be `*`, a host a wildcard."""

    exact: frozenset[tuple[str, str]] = frozenset()  # (namespace, host)
    wild: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> "Patterns":
        pairs = list(pairs)
        return cls(frozenset(p for p in pairs if "*" not in p[1]), tuple(p for p in pairs if "*" in p[1]))

    def cover(self, hostname: str, namespace: str) -> bool:
        """Whether every name that `hostname` stands for is meant, in `namespace`."""
        return (
            (namespace, hostname) in self.exact
            or ("*", hostname) in self.exact
            or any(n in ("*", namespace) and covers(pattern, hostname) for n, pattern in self.wild)
        )

    def touch(self, hosts: Iterable[str], namespace: str) -> bool:
        """Whether some name that `hosts` stand for is meant, in `namespace`."""
        return any(
            self.cover(host, namespace)
            or (host.startswith("*") and any(n in ("*", namespace) and covers(host, p) for n, p in (*self.exact, *self.wild)))
            for host in hosts
        )


class Import(msgspec.Struct, frozen=True):
    """One egress listener of a Sidecar: what it lets in and what it keeps out."""

    hosts: Patterns
    excluded: Patterns = Patterns()
    port: int = 0
    protocol: Protocol = Protocol.AUTO
    bind: str = ""
    captured: bool = True
    proxy: bool = False  # the port is a forward proxy's: services are taken whatever their ports

    @property
    def takes_rest(self) -> bool:
        """Whether it is for whatever port that no other listener is for."""
        return not self.port and not self.bind

    def takes(self, hostname: str, namespace: str) -> bool:
        """Whether a service of this name and namespace is imported, its ports aside."""
        return self.hosts.cover(hostname, namespace) and not self.excluded.cover(hostname, namespace)

    def touches(self, hosts: Iterable[str], namespace: str) -> bool:
        """Whether a rule of `namespace` for `hosts` is imported: by one of them that is not kept out."""
        return self.hosts.touch((host for host in hosts if not self.excluded.cover(host, namespace)), namespace)


class RuleHead(msgspec.Struct, frozen=True):
    """What listings have of a VirtualService that is bound to the mesh."""

    age: Age
    ref: Ref
    hosts: tuple[str, ...]
    export_to: frozenset[str]

    def rank(self, namespace: str) -> int | None:
        """How near it is to clients in `namespace`, None where they do not see it. The near win, whatever their age.

        Istio keeps VirtualServices that are private to a namespace before those exported to it, and these before public ones.
        """
        if "*" in self.export_to:
            return 2
        if namespace not in self.export_to:
            return None
        return 0 if self.export_to == {self.ref.namespace} else 1


def in_mesh(rule: api.VirtualService) -> bool:
    """Whether a VirtualService is for sidecars: it names the gateway `mesh`, or none. Without hosts it is a delegate."""
    return bool(rule.spec.hosts) and (not rule.spec.gateways or MESH_GATEWAY in rule.spec.gateways)


def _sources(rule: api.VirtualService) -> Iterator[AnyMatch]:
    routes: tuple[api.HTTPRoute | api.TLSRoute | api.TCPRoute, ...] = (*rule.spec.http, *rule.spec.tls, *rule.spec.tcp)
    for route in routes:
        yield from route.match


def _imports(listeners: Iterable[api.IstioEgressListener], namespace: str) -> Iterator[Import]:
    for listener in listeners:
        hosts: list[tuple[str, str]] = []
        excluded: list[tuple[str, str]] = []
        for text in listener.hosts:
            where, _, host = text.rpartition("/")
            pattern = host.lower().rstrip(".") or "*"
            into = excluded if where.startswith("~") else hosts
            where = where.removeprefix("~") or "*"
            into.append((namespace if where == "." else where, pattern))
        port = listener.port
        yield Import(
            hosts=Patterns.of(hosts),
            excluded=Patterns.of(excluded),
            port=(port.number or 0) if port else 0,
            protocol=declared((port.protocol or "") if port else ""),
            bind=listener.bind or "",
            captured=listener.capture_mode != "NONE",
            proxy=port is not None and (port.protocol or "").upper() == "HTTP_PROXY",
        )


def _preference(item: Listed, namespace: str) -> tuple[bool, bool]:
    return item.namespace == namespace, item.from_kubernetes


def chosen(listed: Iterable[Listed], namespace: str) -> tuple[ServiceKey, ...]:
    """One service for each hostname: that of `namespace`, else of Kubernetes, else the oldest. In their order."""
    best: dict[str, Listed] = {}
    order = list(listed)
    for item in order:
        known = best.setdefault(item.hostname, item)
        if known is not item and _preference(item, namespace) > _preference(known, namespace):
            best[item.hostname] = item
    return tuple(item.key for item in order if best[item.hostname] is item)


class Visibility(Endpoints):
    """Scopes, and the services that each sees."""

    def __init__(self) -> None:
        super().__init__()
        self.sidecars = self.index("Sidecars", lambda s: (s.ref.namespace,), "Sidecar")
        self.rules_in = self.index("VirtualServices by namespace", _rule_namespaces, "VirtualService")
        self.rules_by_host = self.index("VirtualServices by host", _rule_hosts, "VirtualService")
        self.rules_by_source = self.index("VirtualServices by source namespace", _source_namespaces, "VirtualService")
        self.rules_by_label = self.index("VirtualServices by source label", _source_labels, "VirtualService", "DestinationRule")
        # A rule's own namespace, and empty for all of them.
        self.destinations_in = self.index("DestinationRules by namespace", lambda d: (d.ref.namespace, ""), "DestinationRule")

    # Listings of services

    @flow.derived
    def registered(self, namespace: str) -> tuple[Listed, ...]:
        """The services that `namespace` defines, oldest first."""
        return tuple(sorted(item for host in self.hosts_in(namespace) if (item := self._listed_as(host, namespace)) is not None))

    @flow.derived
    def _listed_as(self, hostname: str, namespace: str) -> Listed | None:
        service = self.service(hostname, namespace)
        if service is None:
            return None
        export_to = tuple(sorted(service.export_to))
        return Listed(age(self.item(service.ref)), hostname, namespace, export_to, service.from_kubernetes)

    @flow.derived
    def all_services(self) -> tuple[Listed, ...]:
        """Every service of the mesh, oldest first."""
        namespaces = sorted({ref.namespace for ref in self.services[""]})
        return tuple(sorted(item for namespace in namespaces for item in self.registered(namespace)))

    def populated(self) -> list[str]:
        """The namespaces that define services, the largest first. The API server's own service says nothing of its namespace."""
        return [namespace for namespace, _ in Counter(r.namespace for r in self.services[""] if r != API_SERVER).most_common()]

    @flow.derived
    def _allocations(self) -> dict[ServiceKey, tuple[str, str]]:
        """The addresses that are given to the hosts of ServiceEntries that need some, older ones first."""
        entries = (self.service(*item.key) for item in self.all_services() if not item.from_kubernetes)
        return allocate((service.hostname, service.namespace) for service in entries if service is not None and service.wants_addresses)

    @flow.derived
    def _allocated(self, hostname: str, namespace: str) -> tuple[str, ...]:
        return self._allocations().get((hostname, namespace), ())

    def called_at(self, service: Service, *, allocates: bool) -> tuple[str, ...]:
        """Where a service is called: at its own addresses; where it has none, at those given to it, one of each family, by callers
        that are told of such.
        """
        given = allocates and service.wants_addresses
        return self._allocated(service.hostname, service.namespace) if given else service.addresses

    @flow.derived
    def public(self) -> tuple[ServiceKey, ...]:
        """What a namespace sees that has nothing of its own: one service for each hostname that is exported to all."""
        return chosen((item for item in self.all_services() if "*" in item.export_to), "")

    @flow.derived
    def particular_namespaces(self) -> frozenset[str]:
        """The namespaces that see other services than `public`."""
        owners: dict[str, ServiceKey] = {key[0]: key for key in self.public()}
        found: set[str] = set()
        for item in self.all_services():
            if "*" not in item.export_to:
                found.update(item.export_to)
            elif owners[item.hostname] != item.key:
                found.add(item.namespace)
        return frozenset(found)

    @flow.derived
    def _sees_other_services(self, namespace: str) -> bool:
        return namespace in self.particular_namespaces()

    @flow.derived
    def visible(self, namespace: str) -> tuple[ServiceKey, ...]:
        """The services that `namespace` sees when no Sidecar says otherwise, older ones first."""
        if not self._sees_other_services(namespace):
            return self.public()
        return chosen((item for item in self.all_services() if item.exported_to(namespace)), namespace)

    # Listings of VirtualServices

    @flow.derived
    def rule_head(self, ref: Ref) -> RuleHead | None:
        """A VirtualService as listings have it; None where the mesh does not look at it."""
        rule: api.VirtualService | None = self.item(ref)
        if rule is None or not self.discovered(ref.namespace):
            return None
        export_to = exported(rule.spec.export_to, ref.namespace, self.config().default_virtual_service_export_to)
        return RuleHead(age(rule), ref, tuple(qualified(h, ref.namespace) for h in rule.spec.hosts), export_to)

    @flow.derived
    def rule_heads(self, namespace: str) -> tuple[RuleHead, ...]:
        """The VirtualServices of `namespace`, or of all where it is empty, oldest first."""
        return tuple(head for ref in self.rules_in[namespace] if (head := self.rule_head(ref)) is not None)

    def seen_rules(self, scope: Scope) -> list[RuleHead]:
        """The VirtualServices that `scope` sees, first those that win."""
        imports = self.imports(scope)
        if imports is None:
            heads: Iterable[RuleHead] = self.rule_heads("")
        else:
            places = {where for i in imports for where, _ in (*i.hosts.exact, *i.hosts.wild)}
            heads = self.rule_heads("") if "*" in places else [h for place in sorted(places) for h in self.rule_heads(place)]
        ranked = [(rank, head.age, head) for head in heads if (rank := self.rank(scope, head)) is not None]
        return [head for _, _, head in sorted(ranked, key=lambda r: r[:2])]

    def rank(self, scope: Scope, head: RuleHead) -> int | None:
        """`head.rank` for a scope; None too where its Sidecar does not import the rule."""
        imports = self.imports(scope)
        if imports is not None and not any(i.touches(head.hosts, head.ref.namespace) for i in imports):
            return None
        return head.rank(scope.namespace)

    # Scopes

    @flow.derived
    def sidecar(self, namespace: str, labels: Labels) -> Ref | None:
        """The Sidecar of a workload: the oldest that selects it, else its namespace's, else the root namespace's."""
        if self.discovered(namespace):
            for ref in self.sidecars[namespace]:
                selector = self._sidecar_selector(ref)
                if selector and contains(labels, dict(selector)):
                    return ref
            if (general := self._general_sidecar(namespace)) is not None:
                return general
        return self._general_sidecar(self.root())

    @flow.derived
    def _general_sidecar(self, namespace: str) -> Ref | None:
        """The Sidecar of `namespace` that selects nothing in particular, the oldest of several."""
        return next((ref for ref in self.sidecars[namespace] if self._sidecar_selector(ref) is None), None)

    @flow.derived
    def egress_sidecar(self, ref: Ref) -> Ref:
        """The Sidecar whose egress listeners workloads under `ref` have.

        Istio: without any it "inherits the system detected defaults from the namespace-wide or the global default Sidecar".
        """
        for candidate in (ref, self._general_sidecar(ref.namespace), self._general_sidecar(self.root())):
            sidecar: api.Sidecar | None = self.item(candidate) if candidate is not None else None
            if sidecar is not None and sidecar.spec.egress:
                return sidecar.ref
        return ref

    @flow.derived
    def _sidecar_selector(self, ref: Ref) -> Labels | None:
        sidecar: api.Sidecar | None = self.item(ref)
        selector = None if sidecar is None else sidecar.spec.workload_selector
        return tuple(sorted(selector.labels.items())) if selector is not None and selector.labels else None

    @flow.derived
    def imports(self, scope: Scope) -> tuple[Import, ...] | None:
        """The egress listeners of the scope's Sidecar; None where it has none, and sees all that is exported to it."""
        sidecar: api.Sidecar | None = self.item(self.egress_sidecar(scope.sidecar)) if scope.sidecar is not None else None
        if sidecar is None:
            return None
        listeners = sidecar.spec.egress or (api.IstioEgressListener(hosts=("*/*",)),)
        # Istio: "the hosts exposed on a listener port will be based on the listener with the most specific port".
        return tuple(sorted(_imports(listeners, scope.namespace), key=lambda i: i.takes_rest))

    @flow.derived
    def imported(self, scope: Scope, listener: Import) -> tuple[ServiceKey, ...]:
        """The services that one egress listener lets in, older ones first."""
        found: dict[ServiceKey, Listed] = {}
        for namespace, host in listener.hosts.exact:
            for where in self.namespaces(host) if namespace == "*" else (namespace,):
                if (item := self._listed_as(host, where)) is not None:
                    found[item.key] = item
        for namespace in {n for n, _ in listener.hosts.wild}:
            for item in self.all_services() if namespace == "*" else self.registered(namespace):
                if listener.hosts.cover(item.hostname, item.namespace):
                    found[item.key] = item
        taken = [item for item in found.values() if item.exported_to(scope.namespace) and self._fits(listener, item)]
        return chosen(sorted(taken), scope.namespace)

    def _fits(self, listener: Import, item: Listed) -> bool:
        if listener.excluded.cover(item.hostname, item.namespace):
            return False
        if not listener.port or listener.proxy:
            return True
        service = self.service(item.hostname, item.namespace)
        return service is not None and service.port(listener.port) is not None

    @flow.derived
    def _is_relative(self, ref: Ref) -> bool:
        """Whether a Sidecar means something else in each namespace."""
        sidecar: api.Sidecar | None = self.item(ref)
        return sidecar is not None and any(
            host.startswith(("./", "~./")) for listener in sidecar.spec.egress for host in listener.hosts
        )

    @flow.derived
    def _has_own_rules(self, namespace: str) -> bool:
        """Whether some rule wins for clients in `namespace` that does not for others."""
        if self.rules_by_source[namespace] or namespace in self._rule_audience() or namespace in self._destination_audience():
            return True
        return any(self._is_particular(ref) for ref in self.destinations_in[namespace])

    @flow.derived
    def _rule_audience(self) -> frozenset[str]:
        """The namespaces that see VirtualServices that not everyone sees."""
        return frozenset(namespace for head in self.rule_heads("") for namespace in head.export_to) - {"*"}

    @flow.derived
    def _destination_audience(self) -> frozenset[str]:
        """The namespaces that are under DestinationRules of others that not everyone is under."""
        return frozenset(namespace for ref in self.destinations_in[""] for namespace in self._named_audience(ref))

    @flow.derived
    def _named_audience(self, ref: Ref) -> frozenset[str]:
        """The other namespaces that a DestinationRule is exported to by name."""
        rule: api.DestinationRule | None = self.item(ref)
        if rule is None or not self.discovered(ref.namespace):
            return frozenset()
        to = exported(rule.spec.export_to, ref.namespace, self.config().default_destination_rule_export_to)
        return to - {"*", ref.namespace}

    @flow.derived
    def _is_particular(self, ref: Ref) -> bool:
        """Whether clients in a DestinationRule's own namespace are under it where others are not.

        They are not, where it is exported to all, selects no workloads, and is for a host of that namespace: then it is found
        there by everyone, as the rule of the service's namespace. In the root namespace everyone finds it anyway.
        """
        rule: api.DestinationRule | None = self.item(ref)
        if rule is None or not self.discovered(ref.namespace):
            return False
        public = "*" in exported(rule.spec.export_to, ref.namespace, self.config().default_destination_rule_export_to)
        if not public or rule.spec.workload_selector is not None:
            return True
        if ref.namespace == self.root():
            return False
        host = qualified(rule.spec.host, ref.namespace)
        if host.endswith(f".{ref.namespace}.svc.cluster.local"):
            return any(namespace != ref.namespace for namespace in self.namespaces(host))  # ServiceEntries of others may have it
        return self.service(host, ref.namespace) is None

    @flow.derived
    def _selecting_labels(self, namespace: str, labels: Labels) -> Labels:
        """Those of a client's labels that some rule selects by."""
        return tuple((k, v) for k, v in labels if self.rules_by_label["", k, v] or self.rules_by_label[namespace, k, v])

    @flow.derived
    def placed_scope(self, namespace: str, labels: Labels) -> Scope:
        """The scope of clients in `namespace` with `labels`."""
        sidecar = self.sidecar(namespace, labels)
        own = (
            (sidecar is not None and (sidecar.namespace == namespace or self._is_relative(sidecar)))
            or self._sees_other_services(namespace)
            or self._has_own_rules(namespace)
        )
        return Scope(namespace if own else "", sidecar, self._selecting_labels(namespace, labels))


def _rule_namespaces(rule: api.VirtualService) -> tuple[str, ...]:
    """A rule's own namespace, and empty for all of them."""
    return (rule.ref.namespace, "") if in_mesh(rule) else ()


def _rule_hosts(rule: api.VirtualService) -> Iterator[str]:
    if in_mesh(rule):
        for host in rule.spec.hosts:
            yield qualified(host, rule.ref.namespace)


def _source_namespaces(rule: api.VirtualService) -> Iterator[str]:
    return (m.source_namespace for m in _sources(rule) if m.source_namespace)


def _source_labels(rule: api.VirtualService | api.DestinationRule) -> Iterator[tuple[str, str, str]]:
    if isinstance(rule, api.VirtualService):
        for match in _sources(rule):
            for key, value in match.source_labels.items():
                yield "", key, value
    elif rule.spec.workload_selector is not None:
        for key, value in rule.spec.workload_selector.match_labels.items():
            yield rule.ref.namespace, key, value
