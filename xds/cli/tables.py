"""Resources as tables for a terminal, with the columns that users of `istioctl proxy-config` know."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from xds import pb

DISCOVERY = ("STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS", "ORIGINAL_DST")

WIDE = 1000  # columns, where there is no terminal that a table has to fit

Rows = Sequence[tuple[Message, tuple[str, ...]]]


def terminal() -> Console:
    """Where tables are printed: cut to fit a terminal, whole where the output is piped into something."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _table(*columns: str, why: bool) -> Table:
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    if why:
        table.add_column("WHY")
    return table


def clusters(rows: Rows, *, why: bool) -> Table:
    """SERVICE FQDN, PORT, SUBSET, DIRECTION, TYPE."""
    table = _table("SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", why=why)
    for message, refs in rows:
        cluster: Any = message
        direction, port, subset, host = (
            [*cluster.name.split("|"), "", "", ""][:4] if "|" in cluster.name else ("-", "-", "-", cluster.name)
        )
        kind = cluster.cluster_type.name or DISCOVERY[cluster.type]
        table.add_row(host or "", port, subset or "-", direction, kind, *_why(refs, why=why))
    return table


def endpoints(rows: Rows, *, why: bool) -> Table:
    """ENDPOINT, STATUS, WEIGHT, LOCALITY, CLUSTER."""
    table = _table("ENDPOINT", "STATUS", "LOCALITY", "CLUSTER", why=why)
    for message, refs in rows:
        assignment: Any = message
        shown = False
        for group in assignment.endpoints:
            locality = "/".join(p for p in (group.locality.region, group.locality.zone, group.locality.sub_zone) if p)
            for endpoint in group.lb_endpoints:
                status = {0: "HEALTHY", 1: "HEALTHY"}.get(endpoint.health_status, "UNHEALTHY")
                status = "DRAINING" if endpoint.health_status == 3 else status
                table.add_row(address(endpoint.endpoint.address), status, locality, assignment.cluster_name, *_why(refs, why=why))
                shown = True
        if not shown:
            table.add_row("-", "-", "", assignment.cluster_name, *_why(refs, why=why))
    return table


def listeners(rows: Rows, *, why: bool) -> Table:
    """ADDRESS, PORT, MATCH, DESTINATION: a line for each filter chain."""
    table = _table("NAME", "ADDRESS", "MATCH", "DESTINATION", why=why)
    for message, refs in rows:
        listener: Any = message
        chains = [
            *listener.filter_chains,
            *([listener.default_filter_chain] if listener.HasField("default_filter_chain") else []),
        ]
        for chain in chains:
            table.add_row(
                listener.name,
                address(listener.address),
                _match(chain.filter_chain_match),
                _destination(chain),
                *_why(refs, why=why),
            )
    return table


def routes(rows: Rows, *, why: bool) -> Table:
    """NAME, VHOST NAME, DOMAINS, MATCH, VIRTUAL SERVICE, DESTINATION."""
    table = _table("NAME", "VHOST NAME", "DOMAINS", "MATCH", "DESTINATION", "VIRTUAL SERVICE", why=why)
    for message, refs in rows:
        configuration: Any = message
        for host in configuration.virtual_hosts:
            domains = ", ".join(host.domains[:2]) + (f" + {len(host.domains) - 2} more" if len(host.domains) > 2 else "")
            for route in host.routes:
                rule = (
                    dict(route.metadata.filter_metadata["istio"].items()).get("config", "")
                    if "istio" in route.metadata.filter_metadata
                    else ""
                )
                parts = str(rule).split("/")
                source = f"{parts[-1]}.{parts[-3]}" if len(parts) > 3 else ""
                table.add_row(
                    configuration.name, host.name, domains, _path(route.match), _action(route), source, *_why(refs, why=why)
                )
    return table


TABLES: Mapping[str, Callable[..., Table]] = {
    "clusters": clusters,
    "endpoints": endpoints,
    "listeners": listeners,
    "routes": routes,
}


def address(message: Any) -> str:
    """`10.0.0.1:80`, `unix:///path`, or `-`."""
    if message.HasField("pipe"):
        return f"unix://{message.pipe.path}"
    if message.HasField("socket_address"):
        return f"{message.socket_address.address}:{message.socket_address.port_value}"
    return "-"


def _why(refs: tuple[str, ...], *, why: bool) -> tuple[str, ...]:
    return ("\n".join(refs),) if why else ()


def _match(match: Any) -> str:
    parts = []
    if match.server_names:
        parts.append(f"SNI: {','.join(match.server_names)}")
    if match.transport_protocol:
        parts.append(f"Trans: {match.transport_protocol}")
    if match.application_protocols:
        parts.append(f"App: {','.join(match.application_protocols)}")
    if match.prefix_ranges:
        parts.append("Addr: " + ",".join(f"{r.address_prefix}/{r.prefix_len.value}" for r in match.prefix_ranges))
    if match.HasField("destination_port"):
        parts.append(f"Port: {match.destination_port.value}")
    return "; ".join(parts) or "ALL"


def _destination(chain: Any) -> str:
    for filter_ in chain.filters:
        config = filter_.typed_config
        kind = config.type_url.rpartition(".")[2]
        if kind == "HttpConnectionManager":
            manager: Any = pb.HttpConnectionManager.FromString(config.value)
            if manager.HasField("rds"):
                return f"Route: {manager.rds.route_config_name}"
            return f"Inline route: {manager.route_config.name}"
        if kind == "TcpProxy":
            proxy: Any = pb.TcpProxy.FromString(config.value)
            return (
                f"Cluster: {proxy.cluster}"
                if proxy.cluster
                else "Clusters: " + ", ".join(f"{c.name} ({c.weight})" for c in proxy.weighted_clusters.clusters)
            )
    return "Non-HTTP/Non-TCP" if chain.filters else "-"


def _path(match: Any) -> str:
    kind = match.WhichOneof("path_specifier")
    path = {"prefix": f"{match.prefix}*", "path": match.path, "safe_regex": f"regex {match.safe_regex.regex}"}.get(kind, "/*")
    more = len(match.headers) + len(match.query_parameters)
    return f"{path} and {more} more" if more else path


def _action(route: Any) -> str:
    kind = route.WhichOneof("action")
    if kind == "redirect":
        return "redirect"
    if kind == "direct_response":
        return f"HTTP {route.direct_response.status}"
    if route.route.cluster:
        return str(route.route.cluster)
    return ", ".join(f"{c.name} ({c.weight.value})" for c in route.route.weighted_clusters.clusters)
