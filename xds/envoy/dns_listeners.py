"""Where captured DNS queries come to: a table of the hosts that a client sees, and the way to its own DNS servers for the rest.

Envoy's DNS filter answers by UDP (`envoy.filters.udp.dns_filter`); a query by TCP goes on to where it was going, untouched. What
the filter cannot do is in docs/dns.md. Names are as the client's resolver completes them: short ones are asked for by their
search domains.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from xds import pb
from xds.envoy import names
from xds.envoy.addresses import address, is_ip, loopbacks, reaches
from xds.envoy.dns import MAX_QUERIES_A_SOCKET
from xds.envoy.filters import Chain
from xds.envoy.filters.listener import original_destination
from xds.envoy.filters.network import network_filters, tcp_proxy
from xds.mesh.model import Client, Mode, Protocol
from xds.objects import MeshConfig

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_Address_Init as Address
    from xds.pb import envoy_data_dns_v3_DnsTable_DnsVirtualDomain_Init as VirtualDomain

DNS, DNS_TCP = "dns", "dns-tcp"
PORT = 15053
TTL = timedelta(seconds=30)  # the least that Envoy takes
PATIENCE = timedelta(seconds=5)  # with a server; resolvers ask again after as long
PENDING = 1024
RETRIES = 1

Known = tuple[tuple[str, ...], tuple[str, ...]]  # names, addresses


def dns_listeners(client: Client, config: MeshConfig, known: Iterable[Known]) -> list[pb.Listener]:
    """The listeners for `client`'s queries. Of `known` names that are alike, the first counts; addresses are those it reaches."""
    found: dict[str, VirtualDomain] = {}
    for hosts, addresses in known:
        reached = [a for a in addresses if is_ip(a) and reaches(client, a)]
        for host in hosts if reached else ():
            found.setdefault(host, {"name": host, "endpoint": {"address_list": {"address": reached}}, "answer_ttl": TTL})
    listeners = [_udp(client, found.values())]
    if client.mode is not Mode.NONE:
        listeners.append(_tcp(client, config))
    return listeners


def _udp(client: Client, domains: "Iterable[VirtualDomain]") -> pb.Listener:
    options = pb.DnsFilter(
        stat_prefix=DNS,
        server_config={"inline_dns_table": {"external_retry_count": RETRIES, "virtual_domains": domains}},
        client_config={
            "resolver_timeout": PATIENCE,
            "max_pending_lookups": PENDING,
            "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": pb.any(_resolver())},
        },
    )
    first, *more = (_at(bind) for bind in loopbacks(client))
    return pb.Listener(
        name=DNS,
        address=first,
        additional_addresses=[{"address": extra} for extra in more],
        traffic_direction="OUTBOUND",
        udp_listener_config={},
        listener_filters=[{"name": "envoy.filters.udp.dns_filter", "typed_config": pb.any(options)}],
    )


def _resolver() -> pb.CaresDnsResolver:
    """The servers are those of the proxy's own resolv.conf. The client's resolver has completed names already."""
    return pb.CaresDnsResolver(dns_resolver_options={"no_default_search_domain": True}, udp_max_queries={"value": MAX_QUERIES_A_SOCKET})


def _tcp(client: Client, config: MeshConfig) -> pb.Listener:
    chain = Chain(inbound=False, config=config, client=client, protocol=Protocol.TCP, port=PORT)
    first, *more = loopbacks(client)
    return pb.Listener(
        name=DNS_TCP,
        address=address(first, PORT),
        additional_addresses=[{"address": address(extra, PORT)} for extra in more],
        traffic_direction="OUTBOUND",
        listener_filters=[original_destination()],
        filter_chains=[{"filters": network_filters(chain, tcp_proxy(chain, names.PASSTHROUGH, [(names.PASSTHROUGH, 1)]))}],
    )


def _at(bind: str) -> "Address":
    return {"socket_address": {"protocol": "UDP", "address": bind, "port_value": PORT}}
