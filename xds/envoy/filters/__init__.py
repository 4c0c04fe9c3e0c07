"""The filters of a proxy's listeners. Listeners ask for them by chain, so that a new filter touches no listener.

`http` and `network` hold the order in which filters stand. A filter is a function of the `Chain` it is for, in a module of its
own where it is more than a few lines. What a filter must know beyond the chain's fields becomes a field of the chain.
"""

import msgspec

from xds.mesh.model import Client, Protocol
from xds.objects import MeshConfig


class Chain(msgspec.Struct, frozen=True):
    """A filter chain, to those who make its filters.

    `http` chains end in a connection manager, the others in a TCP proxy; a port whose `protocol` is to be found out has both.
    `port` is the listener's for outbound chains, the workload's for inbound ones; 0 where the chain takes any port.
    """

    inbound: bool
    config: MeshConfig
    client: Client
    protocol: Protocol
    http: bool = False
    port: int = 0
    dynamic_dns: bool = False  # leads to names that are resolved when they are called
