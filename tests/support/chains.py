"""Reading listeners: what a filter chain matches and where it leads."""

from typing import Any

from xds import pb


def unpacked(packed: Any) -> Any:
    """The message in an Any."""
    return pb.message_class(packed.type_url.removeprefix(pb.TYPE_URL_PREFIX)).FromString(packed.value)


def last_filter(chain: Any) -> Any:
    """What ends a chain: an HttpConnectionManager or a TcpProxy."""
    return unpacked(chain.filters[-1].typed_config)


def is_http(chain: Any) -> bool:
    return bool(chain.filters[-1].name == "envoy.filters.network.http_connection_manager")


def clusters(chain: Any) -> list[tuple[str, int]]:
    """Where a chain's TCP proxy leads: (cluster, weight)."""
    proxy = last_filter(chain)
    return [(c.name, c.weight) for c in proxy.weighted_clusters.clusters] or [(proxy.cluster, 1)]


def matched(chain: Any) -> dict[str, Any]:
    """A chain's match, without what it leaves open."""
    match = chain.filter_chain_match
    found = {
        "port": match.destination_port.value,
        "subnets": [f"{r.address_prefix}/{r.prefix_len.value}" for r in match.prefix_ranges],
        "sni": list(match.server_names),
        "transport": match.transport_protocol,
        "applications": list(match.application_protocols),
    }
    return {key: value for key, value in found.items() if value}


def inspectors(listener: Any) -> list[str]:
    """The short names of its listener filters."""
    return [f.name.rpartition(".")[2] for f in listener.listener_filters]


def http_filters(chain: Any) -> list[str]:
    """The short names of a chain's HTTP filters."""
    return [f.name.rpartition(".")[2] for f in last_filter(chain).http_filters]
