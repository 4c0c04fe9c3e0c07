"""Route tables: what is common to them, how they are joined, and those of the inbound side.

An outbound table is kept as serialised virtual hosts, which many tables share, and is joined from them at the end: in the wire
form of a message, the entries of a repeated field just follow one another.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from xds import pb
from xds.envoy import names
from xds.envoy.http_routes import default_route, http_routes
from xds.envoy.route_actions import DISABLED
from xds.envoy.virtual_hosts import (
    catch_all,
    domains,
    proxied_domains,
    rule_domains,
    rule_virtual_host,
    service_virtual_host,
    shortened,
)
from xds.mesh.model import Client, Inbound

if TYPE_CHECKING:
    from xds.pb import RouteConfiguration
    from xds.pb import envoy_config_route_v3_RetryPolicy_Init as RetryPolicy

__all__ = [
    "catch_all",
    "default_route",
    "domains",
    "http_routes",
    "inbound_route_configuration",
    "join",
    "proxied_domains",
    "route_configuration_header",
    "rule_domains",
    "rule_virtual_host",
    "service_virtual_host",
    "shortened",
]

MAX_DIRECT_RESPONSE_BODY = 1024 * 1024  # bytes; Istio's, Envoy's own is 4096

# A request that the application's side reset before it read any of it can be sent again safely, whatever it is.
INBOUND_RETRIES: "RetryPolicy" = {"retry_on": "reset-before-request", "num_retries": {"value": 2}}

VIRTUAL_HOSTS_TAG = b"\x12"  # RouteConfiguration.virtual_hosts: field 2, length-delimited


def route_configuration_header(name: str, *, proxied: bool = False, pieces: bool = False) -> "RouteConfiguration":
    """A route table without its virtual hosts. In `proxied` ones the Host header's port matters, as nothing else tells it.

    Those of a table in `pieces` come as resources of their own.
    """
    return pb.RouteConfiguration(
        name=name,
        # A route may lead to a service that is gone: its requests fail, and no other's.
        validate_clusters={"value": False},
        max_direct_response_body_size_bytes={"value": MAX_DIRECT_RESPONSE_BODY},
        ignore_port_in_host_matching=not proxied,
        vhds={"config_source": {"ads": {}, "resource_api_version": "V3"}} if pieces else None,
    )


def join(header: bytes, virtual_hosts: Iterable[bytes]) -> bytes:
    """The serialised route table of a serialised header and serialised virtual hosts, in their order. Nothing is parsed."""
    parts = [header]
    for body in virtual_hosts:
        parts += (VIRTUAL_HOSTS_TAG, _varint(len(body)), body)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def inbound_route_configuration(inbound: Inbound, client: Client) -> "RouteConfiguration":  # noqa: ARG001
    """The route table of one port on which a workload is called: all requests go to the application, for as long as it likes."""
    cluster = names.inbound(inbound.port)
    hostname = inbound.service.hostname if inbound.service is not None else ""
    return pb.RouteConfiguration(
        name=cluster,
        validate_clusters={"value": False},
        virtual_hosts=[
            {
                "name": f"inbound|http|{inbound.service_port}",
                "domains": ["*"],
                "routes": [
                    {
                        "name": "default",
                        "match": {"prefix": "/"},
                        "decorator": {"operation": f"{hostname}:{inbound.service_port}/*"},
                        "route": {
                            "cluster": cluster,
                            "timeout": DISABLED,
                            "max_stream_duration": {
                                "max_stream_duration": timedelta(),
                                "grpc_timeout_header_max": timedelta(),
                            },
                            "retry_policy": INBOUND_RETRIES,
                        },
                    }
                ],
            }
        ],
    )
