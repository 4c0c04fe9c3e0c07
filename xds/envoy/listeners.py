"""A proxy's outbound listeners.

All captured connections come to `virtualOutbound`, which gives each to the listener that has the address it was going to (these
listeners are not bound to a port), and keeps those to nowhere in particular for itself. Names, structure and statistics prefixes
are Istio's, which `istioctl proxy-config`, Kiali and dashboards read.
"""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from xds import pb
from xds.envoy import names
from xds.envoy.access_logs import listener_access_logs
from xds.envoy.addresses import address, loopbacks, wildcards
from xds.envoy.filter_chains import EVERYTHING, PLAIN_HTTP, RAW, Draft, Match, distinct, target_chains
from xds.envoy.filters import Chain
from xds.envoy.filters.connection_manager import connection_manager
from xds.envoy.filters.listener import inspectors
from xds.envoy.filters.network import network_filters, tcp_proxy
from xds.envoy.outbound_plan import HTTP_PROXY, Bind, Conflict, Plan, RouteNeed, Target, plan, pod_binds
from xds.mesh.model import Client, Mode, Protocol
from xds.mesh.view import View
from xds.objects import MeshConfig, OutboundTrafficPolicy

if TYPE_CHECKING:
    from xds.pb import envoy_config_listener_v3_Filter_Init as NetworkFilter

__all__ = [
    "HTTP_PROXY",
    "Bind",
    "Conflict",
    "Plan",
    "RouteNeed",
    "Target",
    "http_proxy",
    "outbound_listener",
    "plan",
    "pod_binds",
    "virtual_outbound",
]

VIRTUAL_OUTBOUND = "virtualOutbound"


def outbound_listener(view: View, client: Client, bind: Bind, policy: OutboundTrafficPolicy) -> pb.Listener:
    """The listener of one entry of the plan.

    Of `client`, its labels, namespace, mode, address families and `http10` show. `policy` decides where captured traffic goes
    that no service on this listener takes.
    """
    config = view.config
    drafts = []
    if bind.route:
        protocol = Protocol.GRPC_WEB if bind.grpc_web else Protocol.HTTP
        chain = Chain(
            inbound=False, config=config, client=client, protocol=protocol, http=True, port=bind.port, dynamic_dns=bind.dynamic_dns
        )
        match = Match(transport=RAW, applications=PLAIN_HTTP) if bind.detects else EVERYTHING
        manager = connection_manager(chain, f"outbound_{bind.name}", bind.route, absolute_urls=bind.proxy)
        drafts.append(Draft(match, network_filters(chain, manager)))
    for target in bind.targets:
        for draft in target_chains(view, client, bind, target):
            if bind.detects and target.protocol is Protocol.AUTO and draft.match.subnets:
                subnets = draft.match.subnets
                drafts.append(replace(drafts[0], match=Match(subnets, transport=RAW, applications=PLAIN_HTTP)))
                drafts.append(replace(draft, match=Match(subnets, transport=RAW)))
            drafts.append(draft)
    chains = list(distinct(drafts))
    rest = next((draft for draft in chains if draft.match == EVERYTHING), None)
    others = [draft for draft in chains if draft is not rest]
    if rest is None and bind.captured:
        filters = unknown_destination(config, client, policy)
        rest = Draft(EVERYTHING, filters, "PassthroughFilterChain")
    filter_inspectors = inspectors(
        tls=any(d.match.server_names or d.match.transport for d in others), http=any(d.match.applications for d in others)
    )
    return pb.Listener(
        name=bind.name,
        address=address(bind.addresses[0], bind.port),
        additional_addresses=[{"address": address(extra, bind.port)} for extra in bind.addresses[1:]],
        bind_to_port={"value": False} if bind.captured else None,
        traffic_direction="OUTBOUND",
        listener_filters=filter_inspectors,
        listener_filters_timeout=config.protocol_detection_timeout if filter_inspectors else None,
        continue_on_listener_filters_timeout=bool(filter_inspectors),
        filter_chains=[draft.message() for draft in others] if others or rest is None else [rest.message()],
        default_filter_chain=rest.message() if others and rest is not None else None,
        access_log=listener_access_logs(config),
    )


def virtual_outbound(config: MeshConfig, client: Client, policy: OutboundTrafficPolicy) -> pb.Listener | None:
    """The listener that captured connections come to; None where nothing is captured.

    A connection to its own port was not redirected from anywhere: to pass it on would send it round for ever.
    """
    if client.mode is Mode.NONE:
        return None
    port = config.proxy_listen_port
    bind, *more = wildcards(client)
    chain = Chain(inbound=False, config=config, client=client, protocol=Protocol.TCP, port=port)
    black_hole = network_filters(chain, tcp_proxy(chain, names.BLACK_HOLE, [(names.BLACK_HOLE, 1)]))
    drafts = (
        Draft(Match(port=port), black_hole, f"{VIRTUAL_OUTBOUND}-blackhole"),
        Draft(EVERYTHING, unknown_destination(config, client, policy), f"{VIRTUAL_OUTBOUND}-catchall-tcp"),
    )
    return pb.Listener(
        name=VIRTUAL_OUTBOUND,
        address=address(bind, port),
        additional_addresses=[{"address": address(extra, port)} for extra in more],
        use_original_dst={"value": True},
        transparent={"value": True} if client.mode is Mode.TPROXY else None,
        traffic_direction="OUTBOUND",
        max_connections_to_accept_per_socket_event={"value": 1},
        filter_chains=[draft.message() for draft in drafts],
        access_log=listener_access_logs(config),
    )


def unknown_destination(config: MeshConfig, client: Client, policy: OutboundTrafficPolicy) -> "list[NetworkFilter]":
    """What becomes of connections to no service that this client sees (Istio: `outboundTrafficPolicy`).

    ALLOW_ANY lets them through to where they were going, or to the policy's egress proxy; REGISTRY_ONLY to nowhere.
    """
    chain = Chain(inbound=False, config=config, client=client, protocol=Protocol.TCP)
    cluster = names.BLACK_HOLE
    if policy.mode == "ALLOW_ANY":
        cluster = names.PASSTHROUGH
        proxy = policy.egress_proxy
        if proxy is not None:
            cluster = names.outbound(proxy.host, (proxy.port and proxy.port.number) or 0, proxy.subset or "")
    return network_filters(chain, tcp_proxy(chain, cluster, [(cluster, 1)]))


def http_proxy(config: MeshConfig, client: Client) -> pb.Listener | None:
    """The listener of the HTTP proxy port, for callers that know of it (`http_proxy=127.0.0.1:…`); None where there is none."""
    port = config.proxy_http_port
    if not port:
        return None
    bind, *more = loopbacks(client)
    name = f"{bind}_{port}"
    chain = Chain(inbound=False, config=config, client=client, protocol=Protocol.HTTP, http=True, port=port, dynamic_dns=True)
    manager = connection_manager(chain, f"outbound_{name}", HTTP_PROXY, absolute_urls=True)
    return pb.Listener(
        name=name,
        address=address(bind, port),
        additional_addresses=[{"address": address(extra, port)} for extra in more],
        traffic_direction="OUTBOUND",
        max_connections_to_accept_per_socket_event={"value": 1},
        filter_chains=[Draft(EVERYTHING, network_filters(chain, manager)).message()],
        access_log=listener_access_logs(config),
    )
