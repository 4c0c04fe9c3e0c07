"""Loopback ports for servers that are started later, and started again.

They lie below the range that the kernel takes the ends of outgoing connections from: a port of that range is free when it is asked
for, and may be the end of somebody's connection when the server is to listen there.
"""

import itertools
import os
import socket
from pathlib import Path

_EPHEMERAL = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_FIRST = 16000  # above the ports that are known to belong to somebody: 15000 to 15021 are a sidecar's
# Another run of the tests begins elsewhere; a port is given out once.
_CANDIDATES = itertools.cycle(range(_FIRST, _EPHEMERAL))
for _ in range(os.getpid() * 97 % (_EPHEMERAL - _FIRST)):
    next(_CANDIDATES)


def free_port() -> int:
    """A loopback port that nobody listens on, and that no outgoing connection will have."""
    for port in _CANDIDATES:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the candidates never end")
