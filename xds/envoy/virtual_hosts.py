"""The virtual hosts of sidecars' route tables: which Host headers mean which service, and what becomes of all others.

Two virtual hosts of one table must not claim the same domain: Envoy would refuse the whole table. `domains` says what a service
would claim, so that whoever joins a table can find the clashes and give each domain to the older service.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from xds import pb
from xds.envoy import names
from xds.envoy.addresses import is_ip
from xds.envoy.http_routes import default_route, http_routes
from xds.envoy.route_actions import DISABLED
from xds.mesh.model import Client, Port, Routing, Service
from xds.mesh.names import DOMAIN
from xds.mesh.view import View
from xds.objects import MeshConfig, OutboundTrafficPolicy

if TYPE_CHECKING:
    from xds.pb import VirtualHost
    from xds.pb import envoy_config_route_v3_Route_Init as Route

ALLOW_ANY = "allow_any"
BLOCK_ALL = "block_all"

NOTHING: frozenset[str] = frozenset()
SERVICES = f".svc.{DOMAIN}"


def service_virtual_host(
    view: View,
    client: Client,
    service: Service,
    port: Port,
    exclude_domains: frozenset[str] = NOTHING,
    *,
    proxied: bool = False,
) -> "VirtualHost | None":
    """The virtual host of one port of `service`; None where all its domains are excluded, being others' already.

    Its routes are those of the VirtualService that governs the service, where one applies to this client and port, else the
    default route. `proxied` is for tables with services of all ports, where the Host header's port tells them apart.
    """
    known = (client.namespace, client.domain, service)
    wanted = [d for d in (proxied_domains(*known, port) if proxied else domains(*known)) if d not in exclude_domains]
    if not wanted:
        return None
    routing = view.routing(service.hostname)
    routes = http_routes(view, client, routing, service.hostname, port.number) if routing is not None else []
    name = f"{service.hostname}:{port.number}"
    return _virtual_host(view.config, name, wanted, routes or [default_route(view, service, port.number)])


def rule_virtual_host(
    view: View, client: Client, host: str, routing: Routing, port: int = 80, exclude_domains: frozenset[str] = NOTHING
) -> "VirtualHost | None":
    """The virtual host of a VirtualService's host that no service has; None where no rule of it applies, or no domain is left."""
    wanted = [d for d in rule_domains(client.namespace, client.domain, host) if d not in exclude_domains]
    routes = http_routes(view, client, routing, host, port) if wanted else []
    return _virtual_host(view.config, f"{host}:{port}", wanted, routes) if routes else None


def _virtual_host(config: MeshConfig, name: str, wanted: "Iterable[str]", routes: "Iterable[Route]") -> "VirtualHost":
    headers = config.default_config.proxy_headers
    counts = headers is None or headers.attempt_count is None or not headers.attempt_count.disabled
    return pb.VirtualHost(name=name, domains=wanted, routes=routes, include_request_attempt_count=counts)


def catch_all(policy: OutboundTrafficPolicy, config: MeshConfig) -> "VirtualHost":
    """Takes the requests to hosts that no other virtual host claims.

    REGISTRY_ONLY refuses them with a 502. Otherwise they go where they were going, or to the policy's egress proxy.
    """
    if policy.mode == "REGISTRY_ONLY":
        refusal: Route = {"name": BLOCK_ALL, "match": {"prefix": "/"}, "direct_response": {"status": 502}}
        return _virtual_host(config, BLOCK_ALL, ["*"], [refusal])
    cluster, proxy = names.PASSTHROUGH, policy.egress_proxy
    if proxy is not None:
        cluster = names.outbound(proxy.host, (proxy.port and proxy.port.number) or 0, proxy.subset or "")
    return _virtual_host(
        config,
        ALLOW_ANY,
        ["*"],
        [
            {
                "name": ALLOW_ANY,
                "match": {"prefix": "/"},
                "route": {"cluster": cluster, "timeout": DISABLED, "max_grpc_timeout": DISABLED},
            }
        ],
    )


def domains(client_namespace: str, domain: str, service: Service) -> tuple[str, ...]:
    """The Host headers by which a client in `client_namespace` means `service`, without ports, none twice.

    They are its names as the client's resolver would complete them (`domain` is the cluster's DNS domain), its aliases' names
    and its addresses; of a headless service also its pods' names.
    """
    hostnames = (service.hostname, *service.aliases)
    hosts = [host for hostname in hostnames for host in _hosts(hostname, client_namespace, domain)]
    if service.headless:
        hosts += [f"*.{host}" for host in hosts if not host.startswith("*")]
    hosts += [f"[{address}]" if ":" in address else address for address in service.addresses if is_ip(address)]
    return tuple(dict.fromkeys(hosts))


def proxied_domains(client_namespace: str, domain: str, service: Service, port: Port) -> tuple[str, ...]:
    """The Host headers that mean this port of `service` where nothing but them tells the port.

    A host without a port means port 80; of a service that has no port 80, its first HTTP port.
    """
    hosts = domains(client_namespace, domain, service)
    with_port = tuple(f"{host}:{port.number}" for host in hosts)
    first = next((p for p in service.ports if p.protocol.is_http), port)
    return hosts + with_port if port.number == 80 or (service.port(80) is None and first == port) else with_port


def shortened(hostnames: Iterable[str]) -> frozenset[str]:
    """The namespaces in which one of `hostnames` has a name that is shorter than elsewhere: `reviews` for `reviews.default.svc…`."""
    inside = (hostname.removesuffix(SERVICES) for hostname in hostnames if hostname.endswith(SERVICES))
    return frozenset(namespace for name, _, namespace in (head.rpartition(".") for head in inside) if name not in ("", "*"))


def rule_domains(client_namespace: str, domain: str, host: str) -> tuple[str, ...]:
    """The Host headers by which a client in `client_namespace` means a VirtualService's host."""
    return tuple(_hosts(host, client_namespace, domain))


def _hosts(hostname: str, namespace: str, domain: str) -> "Iterator[str]":
    """`hostname`, and what a resolver in `namespace` completes to it: the search path is ns.svc.domain, svc.domain, domain."""
    yield f"[{hostname}]" if ":" in hostname else hostname
    if is_ip(hostname) or hostname == "*":
        return
    yield f"{hostname}."  # absolute: not to be completed
    for suffix in (f".{namespace}.svc.{domain}", f".svc.{domain}", f".{domain}"):
        short = hostname.removesuffix(suffix)
        if short not in (hostname, "*"):
            yield short
