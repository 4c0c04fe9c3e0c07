"""A proxy's inbound listeners.

All captured calls of a workload come to `virtualInbound`, which has filter chains for each port that the workload is known to
serve, and some for all others: those are passed on to where they were going. Only ports that say so have listeners of their own
(a Sidecar's `bind` without capture, interception mode NONE).
"""

import enum
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from xds import pb
from xds.envoy import names
from xds.envoy.access_logs import listener_access_logs
from xds.envoy.addresses import address, wildcards
from xds.envoy.clusters import stat_name
from xds.envoy.filter_chains import PLAIN_HTTP, RAW, Draft, Match, distinct
from xds.envoy.filter_chains import TLS as TLS_TRANSPORT
from xds.envoy.filters import Chain
from xds.envoy.filters.connection_manager import connection_manager
from xds.envoy.filters.listener import original_destination, original_source, port_inspectors
from xds.envoy.filters.network import network_filters, tcp_proxy
from xds.envoy.routes import inbound_route_configuration
from xds.envoy.transport_sockets import server_socket
from xds.mesh.model import Client, Inbound, Mode, Port, Protocol
from xds.objects import MeshConfig

if TYPE_CHECKING:
    from xds.pb import envoy_config_listener_v3_ListenerFilter_Init as ListenerFilter

VIRTUAL_INBOUND = "virtualInbound"
LOOPBACKS = ("127.", "[::1]")


class Mtls(enum.Enum):
    """What a port accepts (Istio: PeerAuthentication)."""

    DISABLE = "DISABLE"


class Opening(msgspec.Struct, frozen=True):
    """One way into a port: what the connection looks like, and whether it is HTTP then."""

    http: bool
    transport: str = ""
    applications: tuple[str, ...] = ()


# What a port opens itself to, by what it accepts and whether its protocol is HTTP (None: to be found out).
# The last one of a port always takes what the others do not, so that an application's own TLS goes through as bytes.
OPENINGS: dict[tuple[Mtls, bool | None], tuple[Opening, ...]] = {
    (Mtls.DISABLE, None): (
        Opening(http=True, transport=RAW, applications=PLAIN_HTTP),
        Opening(http=False, transport=RAW),
        Opening(http=False),
    ),
    (Mtls.DISABLE, True): (Opening(http=True),),
    (Mtls.DISABLE, False): (Opening(http=False),),
}


# Those of a port where the proxy ends TLS itself: nothing comes in without. HTTP shows by what caller and proxy agree on.
TLS_OPENINGS: dict[bool | None, tuple[Opening, ...]] = {
    None: (Opening(http=True, transport=TLS_TRANSPORT, applications=("h2", "http/1.1")), Opening(http=False, transport=TLS_TRANSPORT)),
    True: (Opening(http=True, transport=TLS_TRANSPORT),),
    False: (Opening(http=False, transport=TLS_TRANSPORT),),
}


def openings(mode: Mtls, protocol: Protocol, *, tls: bool = False) -> tuple[Opening, ...]:
    """The ways into a port; `tls`: one where the proxy ends TLS."""
    http = None if protocol is Protocol.AUTO else protocol.is_http
    return TLS_OPENINGS[http] if tls else OPENINGS[mode, http]


def inbound_listeners(client: Client, inbounds: Iterable[Inbound], config: MeshConfig) -> list[pb.Listener]:
    """A workload's inbound listeners: `virtualInbound`, unless nothing is captured, and those with an address of their own.

    Of several inbounds for one port, the first has it.
    """
    captured: dict[int, Inbound] = {}
    bound: dict[tuple[str, int], Inbound] = {}
    for inbound in inbounds:
        if inbound.bind:
            bound.setdefault((inbound.bind, inbound.port), inbound)
        else:
            captured.setdefault(inbound.port, inbound)
    virtual = [] if client.mode is Mode.NONE else [virtual_inbound(client, captured.values(), config)]
    return virtual + [bound_inbound(client, inbound, config) for inbound in bound.values()]


def virtual_inbound(client: Client, inbounds: Collection[Inbound], config: MeshConfig) -> pb.Listener:
    """The listener that captured calls come to, with chains for `inbounds` (one at most for each port) and for all other ports.

    A call to its own port was not redirected from anywhere: to pass it on would send it round for ever.
    """
    port = config.proxy_inbound_listen_port
    bind, *more = wildcards(client)
    chain = Chain(inbound=True, config=config, client=client, protocol=Protocol.TCP, port=port)
    black_hole = network_filters(chain, tcp_proxy(chain, names.BLACK_HOLE, [(names.BLACK_HOLE, 1)]))
    drafts = [Draft(Match(port=port), black_hole, f"{VIRTUAL_INBOUND}-blackhole")]
    drafts += _passthrough_chains(client, config)
    for inbound in inbounds:
        drafts += _chains(client, inbound, config, f"{bind}_{inbound.port}", inbound.port)
    transparent = client.mode is Mode.TPROXY
    filters = [original_destination()]
    if transparent:
        filters.append(original_source(inbound.port for inbound in inbounds if inbound.forward_to.startswith(LOOPBACKS)))
    return pb.Listener(
        name=VIRTUAL_INBOUND,
        address=address(bind, port),
        additional_addresses=[{"address": address(extra, port)} for extra in more],
        transparent={"value": True} if transparent else None,
        traffic_direction="INBOUND",
        max_connections_to_accept_per_socket_event={"value": 1},
        listener_filters=filters + _inspectors(drafts),
        listener_filters_timeout=config.protocol_detection_timeout,
        continue_on_listener_filters_timeout=True,
        filter_chains=[draft.message() for draft in distinct(drafts)],
        access_log=listener_access_logs(config),
    )


def bound_inbound(client: Client, inbound: Inbound, config: MeshConfig) -> pb.Listener:
    """The listener of an inbound with an address of its own: `10.0.0.7_9080`."""
    name = f"{inbound.bind}_{inbound.port}"
    drafts = list(_chains(client, inbound, config, name, 0))
    filters = _inspectors(drafts)
    return pb.Listener(
        name=name,
        address=address(inbound.bind, inbound.port),
        traffic_direction="INBOUND",
        max_connections_to_accept_per_socket_event={"value": 1},
        listener_filters=filters,
        listener_filters_timeout=config.protocol_detection_timeout if filters else None,
        continue_on_listener_filters_timeout=bool(filters),
        filter_chains=[draft.message() for draft in drafts],
        access_log=listener_access_logs(config),
    )


def _chains(client: Client, inbound: Inbound, config: MeshConfig, name: str, port: int) -> Iterator[Draft]:
    """The chains of one inbound. `port` is the one to match, 0 where the listener has no other."""
    cluster = names.inbound(inbound.port)
    stat_prefix = cluster
    if inbound.service is not None:
        service_port = Port(inbound.service_port, inbound.name, target_port=inbound.port)
        stat_prefix = stat_name(config.inbound_cluster_stat_name, inbound.service, service_port) or cluster
    socket = None if inbound.tls is None else server_socket(inbound.tls, config, http=not inbound.protocol.is_tcp)
    for opening in openings(Mtls.DISABLE, inbound.protocol, tls=socket is not None):
        chain = Chain(inbound=True, config=config, client=client, protocol=inbound.protocol, http=opening.http, port=inbound.port)
        if opening.http:
            last = connection_manager(chain, f"inbound_{name}", inbound_route_configuration(inbound, client))
        else:
            last = tcp_proxy(chain, stat_prefix, [(cluster, 1)])
        match = Match(port=port, transport=opening.transport, applications=opening.applications)
        yield Draft(match, network_filters(chain, last), name, transport_socket=socket)


def _passthrough_chains(client: Client, config: MeshConfig) -> Iterator[Draft]:
    """The chains for ports that no service or Sidecar declares. What they carry is found out as far as it shows."""
    cluster = names.INBOUND_PASSTHROUGH
    for opening in openings(Mtls.DISABLE, Protocol.AUTO):
        chain = Chain(inbound=True, config=config, client=client, protocol=Protocol.AUTO, http=opening.http)
        match = Match(transport=opening.transport, applications=opening.applications)
        if opening.http:
            manager = connection_manager(chain, f"inbound_{cluster}", _passthrough_routes(cluster))
            yield Draft(match, network_filters(chain, manager), f"{VIRTUAL_INBOUND}-catchall-http")
        else:
            yield Draft(match, network_filters(chain, tcp_proxy(chain, cluster, [(cluster, 1)])), VIRTUAL_INBOUND)


def _passthrough_routes(cluster: str) -> pb.RouteConfiguration:
    """The route table of HTTP calls to undeclared ports: all go where they were going."""
    return pb.RouteConfiguration(
        name=cluster,
        validate_clusters={"value": False},
        virtual_hosts=[
            {
                "name": "inbound|http|0",
                "domains": ["*"],
                "routes": [
                    {
                        "name": "default",
                        "match": {"prefix": "/"},
                        "decorator": {"operation": cluster},
                        "route": {"cluster": cluster, "timeout": timedelta()},
                    }
                ],
            }
        ],
    )


def _inspectors(drafts: Iterable[Draft]) -> "list[ListenerFilter]":
    return port_inspectors((d.match.port, bool(d.match.transport), bool(d.match.applications)) for d in drafts)
