"""What Istio's validation and API servers refuse, by JSON path. An error quarantines the object; a warning tells what has no effect."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any

from xds.errors import Problem
from xds.objects import service_rules
from xds.objects.constraints import check
from xds.objects.destination_rule import ClientTLSSettings, DestinationRule, TrafficPolicy
from xds.objects.kubernetes import ConfigMap, Endpoints, EndpointSlice, Pod, Service
from xds.objects.mesh_config import ROOT_NAMESPACE, MeshConfig, mesh_config
from xds.objects.service_entry import PROTOCOLS, ServiceEntry, WorkloadEntry
from xds.objects.sidecar import IstioEgressListener, IstioIngressListener, ServerTLSSettings, Sidecar
from xds.objects.virtual_service import Destination, HTTPRoute, TCPRoute, TLSRoute, VirtualService

_HOST = re.compile(
    r"(\*|(\*\.)?([A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)(\.[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)*\.?)",
    re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
MAX_WEIGHTS = 2**32 - 1  # Envoy: WeightedCluster
MAX_SOCKET_PATH = 107  # unix(7): 108 bytes with the zero at the end
UNIX = "unix://"
_APPLICATION_HOSTS = ("127.0.0.1", "[::1]", "0.0.0.0", "[::]")  # the loopback addresses, and the workload's own
_DEFAULT_MESH = MeshConfig()
_UNUSED_SETTINGS = ("config_sources", "ingress_selector", "service_settings", "service_scope_configs", "service_entry_visibility")
_REDIRECT_CODES = frozenset({301, 302, 303, 307, 308})


def validate(item: Any) -> list[Problem]:
    """What is wrong with a decoded object; empty for kinds that have no rules beyond their schema."""
    match item:
        case VirtualService():
            own = _virtual_service(item)
        case DestinationRule():
            own = _destination_rule(item)
        case ServiceEntry():
            own = _service_entry(item)
        case Sidecar():
            own = _sidecar(item)
        case WorkloadEntry():
            own = iter(())
        case ConfigMap():
            return list(_mesh_config(item))
        case Service():
            return list(service_rules.service(item))
        case EndpointSlice():
            return list(service_rules.endpoint_slice(item))
        case Endpoints():
            return list(service_rules.endpoints(item))
        case Pod():
            return list(service_rules.pod(item))
        case _:
            return []
    return [*own, *check("$.spec", item.spec)]


def _mesh_config(item: ConfigMap) -> Iterator[Problem]:
    if (item.ref.namespace, item.ref.name) == (ROOT_NAMESPACE, "istio"):
        config, problems = mesh_config(item.data.get("mesh", ""))
        for problem in (*problems, *(() if config is None else check("$", config))):
            path = problem.field.removeprefix("$").removeprefix(".")
            yield Problem("$.data.mesh", f"{path}: {problem.reason}" if path else problem.reason, warning=problem.warning)
        for name in _UNUSED_SETTINGS:
            if config is not None and getattr(config, name) != getattr(_DEFAULT_MESH, name):
                yield Problem("$.data.mesh", f"{_camel(name)}: has no effect here", warning=True)
        if config is not None and config.default_config.connection_settings is not None:
            yield Problem("$.data.mesh", "defaultConfig.connectionSettings: has no effect here", warning=True)
        if config is not None and config.outbound_traffic_policy.mode == "ALLOW_ANY_DYNAMIC_DNS":
            yield Problem("$.data.mesh", "outboundTrafficPolicy.mode: ALLOW_ANY_DYNAMIC_DNS is taken for ALLOW_ANY", warning=True)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _virtual_service(item: VirtualService) -> Iterator[Problem]:
    spec = item.spec
    if not spec.hosts and not (spec.http and not spec.tls and not spec.tcp):
        yield Problem("$.spec.hosts", "at least one host is needed; only a delegate, which has http routes alone, has none")
    for i, host in enumerate(spec.hosts):
        yield from _host(f"$.spec.hosts[{i}]", host, address=True)
    if len(set(spec.hosts)) < len(spec.hosts):
        yield Problem("$.spec.hosts", "a host stands twice")
    if not (spec.http or spec.tls or spec.tcp):
        yield Problem("$.spec", "no route: write http, tls or tcp")
    yield from _export_to("$.spec.exportTo", spec.export_to)
    for i, http in enumerate(spec.http):
        yield from _http_route(f"$.spec.http[{i}]", http, delegate=not spec.hosts)
    for i, tls in enumerate(spec.tls):
        yield from _l4_route(f"$.spec.tls[{i}]", tls)
        yield from _server_names(f"$.spec.tls[{i}].match", tls, item)
    for i, tcp in enumerate(spec.tcp):
        yield from _l4_route(f"$.spec.tcp[{i}]", tcp)


def _l4_route(at: str, route: TLSRoute | TCPRoute) -> Iterator[Problem]:
    if not route.route:
        yield Problem(f"{at}.route", "a route needs a destination")
    yield from _weights(f"{at}.route", [r.weight for r in route.route])
    for i, target in enumerate(route.route):
        yield from _destination(f"{at}.route[{i}].destination", target.destination)


def _server_names(at: str, route: TLSRoute, item: VirtualService) -> Iterator[Problem]:
    if not route.match:
        yield Problem(at, "a TLS route needs a match, which says for which SNI hosts it is")
    for i, match in enumerate(route.match):
        if not match.sni_hosts:
            yield Problem(f"{at}[{i}].sniHosts", "a TLS match needs at least one SNI host")
        for j, name in enumerate(match.sni_hosts):
            if not any(_falls_within(name, host, item.ref.namespace) for host in item.spec.hosts):
                yield Problem(f"{at}[{i}].sniHosts[{j}]", f"{name!r} is none of the hosts of this rule", warning=True)


def _falls_within(name: str, host: str, namespace: str) -> bool:
    """Whether a rule for `host` may be for the server name `name` (Istio: TLSMatchAttributes, `sniHosts`)."""
    name, host = name.lower(), host.lower()
    if host.startswith("*"):
        return name.endswith(host[1:])
    return name == host or ("." not in host and name == f"{host}.{namespace}.svc.cluster.local")


def _http_route(at: str, route: HTTPRoute, *, delegate: bool) -> Iterator[Problem]:
    actions = [
        name
        for name, value in (
            ("route", route.route), ("redirect", route.redirect), ("directResponse", route.direct_response), ("delegate", route.delegate),
        )
        if value
    ]  # fmt: skip
    if len(actions) != 1:
        found = " and ".join(actions) or "none of them"
        yield Problem(at, f"exactly one of route, redirect, directResponse and delegate is needed; here is {found}")
    if route.delegate is not None and delegate:
        yield Problem(f"{at}.delegate", "a delegate cannot delegate further")
    if route.redirect is not None and (code := route.redirect.redirect_code) and code not in _REDIRECT_CODES:
        yield Problem(f"{at}.redirect.redirectCode", f"{code} is not a redirect; use 301, 302, 303, 307 or 308")
    if route.direct_response is not None and not 200 <= route.direct_response.status <= 599:
        yield Problem(f"{at}.directResponse.status", f"{route.direct_response.status} is not a response status from 200 to 599")
    if route.redirect is not None and route.rewrite is not None:
        yield Problem(f"{at}.rewrite", "a redirect cannot be rewritten")
    if route.retries is not None and (route.retries.attempts or 0) < 0:
        yield Problem(f"{at}.retries.attempts", "cannot be negative")
    yield from _weights(f"{at}.route", [r.weight for r in route.route])
    for i, target in enumerate(route.route):
        yield from _destination(f"{at}.route[{i}].destination", target.destination)
    if route.mirror is not None:
        yield from _destination(f"{at}.mirror", route.mirror)
    for i, mirror in enumerate(route.mirrors):
        yield from _destination(f"{at}.mirrors[{i}].destination", mirror.destination)
    if route.fault is not None:
        yield from _fault(f"{at}.fault", route)


def _fault(at: str, route: HTTPRoute) -> Iterator[Problem]:
    fault = route.fault
    assert fault is not None
    if fault.delay is None and fault.abort is None:
        yield Problem(at, "a fault needs a delay or an abort")
    if fault.abort is not None and fault.abort.http_status is not None and not 200 <= fault.abort.http_status <= 599:
        yield Problem(f"{at}.abort.httpStatus", f"{fault.abort.http_status} is not a status from 200 to 599")


def _destination(at: str, destination: Destination) -> Iterator[Problem]:
    yield from _host(f"{at}.host", destination.host, address=False)
    if destination.subset and not _LABEL.fullmatch(destination.subset):
        yield Problem(f"{at}.subset", f"{destination.subset!r} is not a DNS label")
    if destination.port is not None:
        yield from _port(f"{at}.port.number", destination.port.number)


def _destination_rule(item: DestinationRule) -> Iterator[Problem]:
    yield from _host("$.spec.host", item.spec.host, address=False)
    yield from _export_to("$.spec.exportTo", item.spec.export_to)
    selects = item.spec.workload_selector is not None
    yield from _traffic_policy("$.spec.trafficPolicy", item.spec.traffic_policy, selects)
    names = [subset.name for subset in item.spec.subsets]
    for i, subset in enumerate(item.spec.subsets):
        if not _LABEL.fullmatch(subset.name):
            yield Problem(f"$.spec.subsets[{i}].name", f"{subset.name!r} is not a DNS label")
        elif subset.name in names[:i]:
            reason = f"the subset {subset.name!r} stands twice, and the first one is used"
            yield Problem(f"$.spec.subsets[{i}].name", reason, warning=True)
        yield from _traffic_policy(f"$.spec.subsets[{i}].trafficPolicy", subset.traffic_policy, selects)


def _traffic_policy(at: str, policy: TrafficPolicy | None, selects: bool) -> Iterator[Problem]:
    """`selects`: the rule is for some workloads only."""
    if policy is None:
        return
    yield from _identity(f"{at}.tls", policy.tls, selects)
    for i, setting in enumerate(policy.port_level_settings):
        if setting.port is None or not setting.port.number:
            yield Problem(f"{at}.portLevelSettings[{i}].port", "which port these settings are for must be said")
        yield from _identity(f"{at}.portLevelSettings[{i}].tls", setting.tls, selects)


def _identity(at: str, tls: ClientTLSSettings | None, selects: bool) -> Iterator[Problem]:
    """What needs certificates that a proxy is not sent."""
    if tls is None:
        return
    if tls.mode == "ISTIO_MUTUAL":
        reason = "the mesh's own certificates are not issued here: connections fail, and none is made without TLS"
        yield Problem(at, reason, warning=True)
    elif tls.mode != "DISABLE" and tls.credential_name and selects:
        reason = "secrets are not sent to proxies: connections fail; name the proxy's files instead"
        yield Problem(f"{at}.credentialName", reason, warning=True)
    elif tls.mode != "DISABLE" and tls.credential_name:
        reason = "is for gateways; without workloadSelector a sidecar does not look at it, and uses its files"
        yield Problem(f"{at}.credentialName", reason, warning=True)


def _service_entry(item: ServiceEntry) -> Iterator[Problem]:  # noqa: C901 - one rule after another
    spec = item.spec
    if not spec.hosts:
        yield Problem("$.spec.hosts", "at least one host is needed")
    for i, host in enumerate(spec.hosts):
        if host == "*":
            yield Problem(f"$.spec.hosts[{i}]", "a bare * would take all hosts; write a domain, as in *.example.com")
            continue
        yield from _host(f"$.spec.hosts[{i}]", host, address=False)
        if host.startswith("*") and spec.resolution in ("DNS", "DNS_ROUND_ROBIN") and not spec.endpoints:
            yield Problem(
                f"$.spec.hosts[{i}]",
                "a wildcard cannot be resolved by DNS; give endpoints, or use resolution NONE or DYNAMIC_DNS",
            )
    for i, address in enumerate(spec.addresses):
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            yield Problem(f"$.spec.addresses[{i}]", f"{address!r} is no IP address or CIDR")
    numbers = [port.number for port in spec.ports]
    names = [port.name for port in spec.ports if port.name]
    if len(set(numbers)) < len(numbers):
        yield Problem("$.spec.ports", "a port number stands twice")
    if len(set(names)) < len(names):
        yield Problem("$.spec.ports", "a port name stands twice")
    if spec.resolution not in ("NONE", "STATIC"):
        for i, address in enumerate(spec.addresses):
            if "/" in address:
                yield Problem(f"$.spec.addresses[{i}]", "a CIDR needs resolution NONE or STATIC")
    if spec.resolution == "DNS_ROUND_ROBIN" and len(spec.endpoints) > 1:
        yield Problem("$.spec.endpoints", "DNS_ROUND_ROBIN resolves one name: give one endpoint, or use DNS")
    if spec.endpoints and spec.workload_selector is not None:
        yield Problem("$.spec.endpoints", "either endpoints or a workloadSelector, not both")
    if spec.resolution in (None, "NONE") and spec.endpoints:
        yield Problem("$.spec.endpoints", "resolution NONE sends calls where they were going; endpoints need STATIC or DNS")
    if spec.resolution == "STATIC":
        for i, endpoint in enumerate(spec.endpoints):
            if endpoint.address and not endpoint.address.startswith("unix://") and not _is_ip(endpoint.address):
                yield Problem(f"$.spec.endpoints[{i}].address", f"resolution STATIC needs an IP address, not {endpoint.address!r}")
    sockets = [i for i, endpoint in enumerate(spec.endpoints) if (endpoint.address or "").startswith(UNIX)]
    for i in sockets:
        yield from _socket(f"$.spec.endpoints[{i}].address", spec.endpoints[i].address or "")
        if spec.resolution != "STATIC":
            yield Problem(f"$.spec.endpoints[{i}].address", "a Unix socket needs resolution STATIC")
        if len(spec.ports) > 1:
            yield Problem("$.spec.ports", "behind a Unix socket there is one port")
    if spec.resolution == "DYNAMIC_DNS" and spec.endpoints:
        yield Problem("$.spec.endpoints", "resolution DYNAMIC_DNS asks for the name that is called: no endpoint is used", warning=True)
    for i, port in enumerate(spec.ports):
        yield from _protocol(f"$.spec.ports[{i}].protocol", port.protocol)
        if spec.resolution == "DYNAMIC_DNS" and port.target_port not in (None, 0, port.number):
            reason = "resolution DYNAMIC_DNS goes to the port that is called; it has no effect"
            yield Problem(f"$.spec.ports[{i}].targetPort", reason, warning=True)
    yield from _export_to("$.spec.exportTo", spec.export_to)


def _sidecar(item: Sidecar) -> Iterator[Problem]:
    for i, egress in enumerate(item.spec.egress):
        yield from _egress(f"$.spec.egress[{i}]", egress)
    numbers: set[int] = set()
    for i, ingress in enumerate(item.spec.ingress):
        number = ingress.port.number
        yield from _ingress(f"$.spec.ingress[{i}]", ingress)
        if number and number in numbers:
            yield Problem(f"$.spec.ingress[{i}].port.number", f"the port {number} stands twice")
        numbers.add(number or 0)
    policy = item.spec.outbound_traffic_policy
    if policy is not None and policy.egress_proxy is not None:
        at = "$.spec.outboundTrafficPolicy.egressProxy"
        yield from _destination(at, policy.egress_proxy)
        if policy.mode != "ALLOW_ANY":
            yield Problem(at, "unknown traffic goes through a proxy only where the mode is ALLOW_ANY")


def _egress(at: str, egress: IstioEgressListener) -> Iterator[Problem]:
    if not egress.hosts:
        yield Problem(f"{at}.hosts", "at least one host is needed, as in ./*")
    for j, host in enumerate(egress.hosts):
        namespace, slash, name = host.partition("/")
        if not slash or not namespace or not name:
            yield Problem(f"{at}.hosts[{j}]", f"{host!r} is not of the form namespace/host; ./* means this namespace")
    is_unix = (egress.bind or "").startswith(UNIX)
    if is_unix:
        yield from _socket(f"{at}.bind", egress.bind or "")
    if is_unix and egress.capture_mode == "IPTABLES":
        yield Problem(f"{at}.captureMode", "nothing is captured for a Unix socket")
    if egress.bind and not is_unix:
        if not _is_ip(egress.bind):
            yield Problem(f"{at}.bind", f"{egress.bind!r} is no IP address, and does not begin with {UNIX}")
        if egress.port is None or not egress.port.number:
            yield Problem(f"{at}.port", "a listener with an address of its own needs a port")
    if egress.port is not None:
        if egress.port.number:
            yield from _port(f"{at}.port.number", egress.port.number)
        yield from _protocol(f"{at}.port.protocol", egress.port.protocol)


def _ingress(at: str, ingress: IstioIngressListener) -> Iterator[Problem]:
    yield from _port(f"{at}.port.number", ingress.port.number)
    yield from _protocol(f"{at}.port.protocol", ingress.port.protocol)
    if ingress.bind and not _is_ip(ingress.bind):
        yield Problem(f"{at}.bind", f"{ingress.bind!r} is no IP address")
    endpoint = ingress.default_endpoint
    if endpoint and endpoint.startswith(UNIX):
        yield from _socket(f"{at}.defaultEndpoint", endpoint)
    elif endpoint:
        host, _, number = endpoint.rpartition(":")
        if host not in _APPLICATION_HOSTS or not number.isdecimal() or not 1 <= int(number) <= service_rules.MAX_PORT:
            known = ", ".join(_APPLICATION_HOSTS)
            yield Problem(f"{at}.defaultEndpoint", f"must be {UNIX}/path, or a port of {known}; it is `{endpoint}`")
    if ingress.tls is not None:
        yield from _ingress_tls(f"{at}.tls", ingress.tls)


def _protocol(at: str, name: str | None) -> Iterator[Problem]:
    if name and name.lower() not in PROTOCOLS:
        yield Problem(at, f"{name!r} is no protocol that is known: what the port carries is found out", warning=True)


def _ingress_tls(at: str, tls: ServerTLSSettings) -> Iterator[Problem]:
    if tls.mode not in ("SIMPLE", "MUTUAL"):
        yield Problem(f"{at}.mode", f"a sidecar ends TLS of mode SIMPLE or MUTUAL, not {tls.mode}")
        return
    pairs = [(c.server_certificate, c.private_key) for c in tls.tls_certificates]
    if not pairs or tls.server_certificate or tls.private_key:
        pairs.append((tls.server_certificate, tls.private_key))
    if not all(certificate and key for certificate, key in pairs):
        yield Problem(at, "a sidecar reads its certificate from files: write serverCertificate and privateKey")
    if tls.mode == "MUTUAL" and not tls.ca_certificates:
        yield Problem(f"{at}.caCertificates", "mode MUTUAL needs the certificates of the callers' authorities")


def _host(at: str, host: str | None, *, address: bool) -> Iterator[Problem]:
    if not host:
        yield Problem(at, "a host is needed")
    elif not _HOST.fullmatch(host) and not (address and _is_ip(host)):
        yield Problem(at, f"{host!r} is not a DNS name, or one with a leading *.")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _socket(at: str, address: str) -> Iterator[Problem]:
    if len(address.removeprefix(UNIX).encode()) > MAX_SOCKET_PATH:
        yield Problem(at, f"the path of a Unix socket has {MAX_SOCKET_PATH} bytes at most")


def _port(at: str, number: int | None) -> Iterator[Problem]:
    if not number or not 1 <= number <= 65535:
        yield Problem(at, f"{number} is not a port from 1 to 65535")


def _weights(at: str, weights: Iterable[int | None]) -> Iterator[Problem]:
    given = [weight or 0 for weight in weights]
    for i, weight in enumerate(given):
        if weight < 0:
            yield Problem(f"{at}[{i}].weight", f"{weight} is negative")
    if len(given) > 1 and sum(given) == 0:
        yield Problem(at, "several destinations need weights, and their sum is 0")
    elif sum(given) > MAX_WEIGHTS:
        yield Problem(at, f"the sum of the weights is greater than {MAX_WEIGHTS}")


def _export_to(at: str, values: tuple[str, ...]) -> Iterator[Problem]:
    if len(values) > 1 and "*" in values:
        yield Problem(at, "* means all namespaces; others beside it mean nothing")
    if len(values) > 1 and "~" in values:
        yield Problem(at, "~ means no namespace; others beside it contradict it")
