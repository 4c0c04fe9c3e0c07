"""The addresses that a proxy's listeners have: which IP families it speaks, and where wildcard and loopback are for it."""

import ipaddress
from typing import TYPE_CHECKING

from xds.mesh.model import Client

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_Address_Init as Address

UNIX = "unix://"


def families(client: Client) -> tuple[bool, bool]:
    """Whether the proxy's workload has IPv4 addresses, and whether IPv6. IPv4 where nothing is known."""
    v6 = any(":" in address for address in client.addresses)
    v4 = any(":" not in address for address in client.addresses)
    return v4 or not v6, v6


def wildcards(client: Client) -> tuple[str, ...]:
    """`0.0.0.0`, `::`, or both for a dual-stack workload."""
    v4, v6 = families(client)
    return ("0.0.0.0",) * v4 + ("::",) * v6


def loopbacks(client: Client) -> tuple[str, ...]:
    """`127.0.0.1`, `::1`, or both for a dual-stack workload."""
    v4, v6 = families(client)
    return ("127.0.0.1",) * v4 + ("::1",) * v6


def reaches(client: Client, address: str) -> bool:
    """Whether the workload can send to `address` (an IP or a CIDR) at all."""
    v4, v6 = families(client)
    return v6 if ":" in address else v4


def network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """`cidr`, or the one address it is, with its host bits cleared. ValueError where it is neither."""
    return ipaddress.ip_network(cidr, strict=False)


def is_ip(address: str) -> bool:
    """Whether `address` is one IP address: not a name, a CIDR or a Unix socket."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def address(bind: str, port: int) -> "Address":
    """Envoy's address of an IP and port, or of `unix:///path` (`unix://@name` is in the abstract namespace)."""
    if bind.startswith(UNIX):
        return {"pipe": {"path": bind.removeprefix(UNIX)}}
    return {"socket_address": {"address": bind, "port_value": port}}
