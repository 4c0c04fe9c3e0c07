"""Which listeners a scope's outbound side needs, which services share each, and who lost an address to whom.

The plan is cheap and knows no Envoy messages, so it may be made anew whenever a service comes or goes; a listener is built again
only where its `Bind` changed. What shares what is Istio's: all HTTP services of a port share one wildcard listener and one route
table, as the Host header tells them apart; a TCP service has a listener on each of its addresses; a port whose protocol is not
declared has one too, which looks at the first bytes to tell HTTP from TCP. Where TCP has no address of its own (a CIDR, a
ServiceEntry without addresses), it joins the wildcard listener of its port.

A headless TCP service has one listener for each pod's address, as in Istio: a pod that comes or goes adds or removes one listener
and drains no connection of another's, which the alternative, filter chains of one wildcard listener, can't say of the connections
that share a chain. Unlike in Istio, a pod's own address is not left out for the pod itself: what it sends there never comes to
its outbound listeners, and leaving it out would give every pod of the service a set of listeners of its own.
"""

from collections.abc import Iterator

import msgspec

from xds.envoy.addresses import UNIX, is_ip, loopbacks, network, reaches, wildcards
from xds.envoy.bootstrap import PROMETHEUS_PORT, STATUS_PORT
from xds.mesh.model import Client, Egress, Mode, Port, Protocol, Resolution, Service
from xds.mesh.view import View

HTTP_PROXY = "http_proxy"  # the name of the route table of the HTTP proxy port

WILDCARDS = ("0.0.0.0", "::")

ServicePort = tuple[str, str, int]  # hostname, namespace, port number


class Target(msgspec.Struct, frozen=True):
    """A service port whose connections a listener forwards as bytes.

    `protocol` is the port's, or the Sidecar's egress listener's where that declares one. `subnets` are the CIDRs it is called at,
    empty where it takes what comes to the listener.
    """

    hostname: str
    namespace: str
    port: int
    protocol: Protocol
    subnets: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """The route table of its HTTP where it has an address of its own; empty where its protocol is declared."""
        return "" if self.protocol.is_tcp else f"{self.hostname}:{self.port}"


class Bind(msgspec.Struct, frozen=True):
    """One outbound listener, by what makes it: nothing else of the services that share it changes it.

    `addresses` has the listener's address first, then its additional ones. `port` is 0 for a Unix socket. `route` names the route
    table of its HTTP, empty where it takes none. `targets` are in order of precedence. A listener that is not `captured` is bound
    to its port, and its caller means it and no other address.
    """

    name: str
    addresses: tuple[str, ...]
    port: int
    captured: bool = True
    route: str = ""
    grpc_web: bool = False
    targets: tuple[Target, ...] = ()
    wildcard: bool = False  # takes what comes to any address, unless another listener has that address
    dynamic_dns: bool = False  # some of its HTTP services are names that are resolved when they are called
    proxy: bool = False  # a forward proxy

    @property
    def detects(self) -> bool:
        """Whether its first bytes tell HTTP from other traffic: always where strangers' traffic may come to it."""
        return bool(self.route) and (bool(self.targets) or (self.wildcard and self.captured))


class RouteNeed(msgspec.Struct, frozen=True):
    """What a route table is made of: these service ports, in order of precedence.

    `port` is what callers connect to, 0 where they may mean any port (HTTP proxy, Unix sockets). `sniffed` tables belong to one
    service port whose address is already known: any Host header means it. `egress` is the index of the egress listener whose
    services (and only they) the table may show.
    """

    port: int
    services: tuple[ServicePort, ...]
    sniffed: bool = False
    egress: int = 0


class Conflict(msgspec.Struct, frozen=True):
    """`loser` gets none of the bytes that come to `listener`, since `winner`, which is older, takes them all.

    Without a winner the address is that of a listener that every proxy has; what is called there is no service.
    """

    listener: str
    winner: ServicePort | None
    loser: ServicePort


class Plan(msgspec.Struct, frozen=True):
    """The outbound listeners of a scope by name, the route tables they ask for by name, and the conflicts.

    The listeners of `pods` come on top: one for each address that such a service has. Those are for `pod_binds` to say, so that
    a pod that comes or goes leaves the plan as it is.
    """

    binds: dict[str, Bind]
    routes: dict[str, RouteNeed]
    pods: tuple[Target, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


class _Draft:
    """A bind in the making."""

    def __init__(self, addresses: tuple[str, ...], port: int, captured: bool) -> None:
        self.addresses = addresses
        self.port = port
        self.captured = captured
        self.locked = False
        self.route = ""
        self.grpc_web = False
        self.dynamic_dns = False
        self.proxy = False
        self.targets: list[Target] = []

    def bind(self, name: str) -> Bind:
        return Bind(
            name=name,
            addresses=self.addresses,
            port=self.port,
            captured=self.captured,
            route=self.route,
            grpc_web=self.grpc_web,
            targets=tuple(self.targets),
            wildcard=self.addresses[0] in WILDCARDS,
            dynamic_dns=self.dynamic_dns,
            proxy=self.proxy,
        )


class _Asked(msgspec.Struct, frozen=True):
    """One service port that an egress listener shows, as callers see it: `number` and `protocol` may be the listener's own.

    `bind` has the addresses that the egress listener names, none where the service's count. `table` is the route table that
    the listener's HTTP shares.
    """

    egress: int
    service: Service
    port: Port
    number: int
    protocol: Protocol
    bind: tuple[str, ...]
    bound: bool
    table: str

    @property
    def service_port(self) -> ServicePort:
        return self.service.hostname, self.service.namespace, self.port.number


class _Planner:
    def __init__(self, view: View, client: Client) -> None:
        self.view = view
        self.client = client
        self.wildcards = wildcards(client)
        self.drafts: dict[str, _Draft] = {}
        self.routes: dict[str, RouteNeed] = {}
        self.pods: dict[ServicePort, Target] = {}
        self.claimed: set[int] = set()  # ports of captured traffic that an egress listener is for
        self.conflicts: list[Conflict] = []
        config = view.config
        capture = () if client.mode is Mode.NONE else (config.proxy_listen_port, config.proxy_inbound_listen_port)
        taken = [(self.wildcards[0], port) for port in (*capture, STATUS_PORT, PROMETHEUS_PORT)]
        taken.append((loopbacks(client)[0], config.proxy_http_port))
        self.reserved = {f"{address}_{port}" for address, port in taken}

    def add(self, index: int, egress: Egress) -> None:
        """Add what one egress listener asks for."""
        if egress.proxy:
            self.add_proxy(index, egress)
            return
        is_unix = egress.bind.startswith(UNIX)
        is_catch_all = not egress.port and not is_unix
        if is_catch_all:
            # What an explicit egress listener took is its own: the catch-all adds no services to it (Istio: Sidecar, "egress").
            for draft in self.drafts.values():
                draft.locked = True
        bound = not egress.captured or self.client.mode is Mode.NONE or is_unix
        bind = (egress.bind,) if egress.bind else loopbacks(self.client) if bound else ()
        if not is_catch_all and not bind:
            self.claimed.add(egress.port)
        http: dict[int, list[ServicePort]] = {}
        opened: dict[str, int] = {}  # route tables that some listener uses -> what callers connect to
        for service, port in self.shown(egress):
            number = port.number if is_catch_all else egress.port
            protocol = port.protocol if is_catch_all or egress.protocol is Protocol.AUTO else egress.protocol
            table = egress.bind if is_unix else f"{egress.bind}:{number}" if egress.bind else str(number)
            asked = _Asked(index, service, port, number, protocol, bind, bound, table)
            # A socket takes all ports of its services, of which some may not be HTTP; of one port the listener's word counts.
            if not (port.protocol if is_unix else protocol).is_tcp:
                http.setdefault(number, []).append(asked.service_port)
            # Istio: "the hosts exposed on a listener port will be based on the listener with the most specific port".
            if is_catch_all and number in self.claimed:
                continue
            if self.place(asked):
                opened[table] = number
        for table, number in opened.items():
            self.routes.setdefault(table, RouteNeed(number, tuple(http.get(number, ())), egress=index))
        if is_catch_all and self.view.config.proxy_http_port:
            every = tuple(port for ports in http.values() for port in ports)
            self.routes[HTTP_PROXY] = RouteNeed(0, every, egress=index)

    def add_proxy(self, index: int, egress: Egress) -> None:
        """Add a forward proxy: one listener for the HTTP of all ports of its services."""
        addresses = (egress.bind,) if egress.bind else loopbacks(self.client)
        name = f"{addresses[0]}_{egress.port}"
        if name in self.reserved or name in self.drafts:
            return
        draft = self.drafts[name] = _Draft(addresses, egress.port, captured=False)
        services = [(service, port) for service, port in self.shown(egress) if not port.protocol.is_tcp]
        draft.route, draft.proxy = f"{addresses[0]}:{egress.port}", True
        draft.dynamic_dns = any(service.resolution is Resolution.DYNAMIC_DNS for service, _ in services)
        every = tuple((service.hostname, service.namespace, port.number) for service, port in services)
        self.routes[draft.route] = RouteNeed(0, every, egress=index)

    def shown(self, egress: Egress) -> Iterator[tuple[Service, Port]]:
        """The service ports that an egress listener shows, in its order. A listener for one port shows just that one."""
        for hostname, namespace in egress.hosts:
            service = self.view.service(hostname)
            if service is None or service.namespace != namespace:
                continue
            for port in service.ports:
                if port.protocol is not Protocol.UDP and (egress.proxy or egress.port in (0, port.number)):
                    yield service, port

    def place(self, asked: _Asked) -> bool:
        """Find listeners for one service port; whether one of them uses the table it shares."""
        if asked.protocol.is_http:
            return self.take(asked, asked.bind or self.wildcards, asked.table)
        target = Target(*asked.service_port, asked.protocol)
        table = "" if asked.protocol.is_tcp else asked.table
        if asked.bind:
            return self.take(asked, asked.bind, table, target)
        addresses = self.view.called_at(asked.service, self.client)
        if not addresses:
            if not self.has_pods(asked):
                return self.take(asked, self.wildcards, table, target)
            self.pods.setdefault(asked.service_port, target)
            self.route_of_its_own(asked, target)
            return False
        subnets = []
        for address in addresses:
            if not reaches(self.client, address):
                continue
            if "/" in address and (whole := network(address)).num_addresses > 1:
                subnets.append(str(whole))
            elif self.take(asked, (address.partition("/")[0],), target.table, target):
                self.route_of_its_own(asked, target)
        if not subnets:
            return False
        return self.take(asked, self.wildcards, table, msgspec.structs.replace(target, subnets=tuple(subnets)))

    def has_pods(self, asked: _Asked) -> bool:
        """Whether a service without addresses is called at those of its endpoints: always where it is headless."""
        if asked.service.resolution is not Resolution.PASSTHROUGH:
            return False
        return asked.service.from_kubernetes or bool(self.view.endpoints(asked.service, asked.port.number))

    def route_of_its_own(self, asked: _Asked, target: Target) -> None:
        if target.table:
            self.routes[target.table] = RouteNeed(asked.number, (asked.service_port,), True, asked.egress)

    def take(self, asked: _Asked, addresses: tuple[str, ...], table: str, target: Target | None = None) -> bool:
        """Join or open the listener at `addresses`; whether it serves HTTP by `table` now."""
        name = f"{addresses[0]}_{asked.number}"
        draft = self.drafts.get(name)
        if name in self.reserved:
            # Envoy refuses two listeners with one address.
            self.conflicts.append(Conflict(name, None, asked.service_port))
            return False
        if draft is None:
            draft = self.drafts[name] = _Draft(addresses, asked.number, not asked.bound)
        elif draft.locked:
            return False
        if target is not None:
            rival = None if target.protocol.is_tls else next((t for t in draft.targets if _clash(t, target)), None)
            if rival is None:
                draft.targets.append(target)
            else:
                winner = rival.hostname, rival.namespace, rival.port
                self.conflicts.append(Conflict(name, winner, asked.service_port))
        draft.route = draft.route or table
        draft.grpc_web |= asked.protocol is Protocol.GRPC_WEB
        draft.dynamic_dns |= bool(table) and asked.service.resolution is Resolution.DYNAMIC_DNS
        return bool(table) and draft.route == table


def _clash(old: Target, new: Target) -> bool:
    """Whether `old` takes every connection that `new` could. What speaks TLS is told apart by its SNI."""
    return not old.protocol.is_tls and set(new.subnets) == set(old.subnets)


def plan(view: View, egress: tuple[Egress, ...], client: Client) -> Plan:
    """The outbound listeners for a proxy of this scope. Of `client`, only its mode and its addresses' families matter.

    Services come in the order of `egress`, which decides conflicts: the older wins (Istio: "pilot_conflict_outbound_listener").
    """
    planner = _Planner(view, client)
    for index, listener in enumerate(egress):
        planner.add(index, listener)
    if view.config.proxy_http_port:
        planner.routes.setdefault(HTTP_PROXY, RouteNeed(0, ()))
    binds = {name: draft.bind(name) for name, draft in planner.drafts.items()}
    return Plan(binds, planner.routes, tuple(planner.pods.values()), tuple(planner.conflicts))


def pod_binds(view: View, client: Client, target: Target) -> dict[str, Bind]:
    """The outbound listeners for one of a plan's `pods`: by name, one for each address of the service that `client` reaches."""
    service = view.service(target.hostname)
    if service is None:
        return {}
    found = {}
    for endpoint in view.endpoints(service, target.port):
        if is_ip(endpoint.address) and reaches(client, endpoint.address):
            name = f"{endpoint.address}_{target.port}"
            found[name] = Bind(name, (endpoint.address,), target.port, route=target.table, targets=(target,))
    return found
