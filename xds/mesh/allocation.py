"""Addresses for hosts that have none: so that a name can be resolved, and what is called there can be told from other calls.

Istio: "DNS Proxying", *Address auto allocation*: ServiceEntries without addresses, whose hosts are no wildcards, get one of
240.240.0.0/16, which is nobody's (class E). Here an address is a hash of the host's name and namespace, so that replicas agree and a
restart changes nothing; of two hosts with one hash the older keeps it. IPv6 has the same numbers under 2001:2::/48, for benchmarking.
"""

import hashlib
from collections.abc import Iterable
from typing import TypeVar

Host = TypeVar("Host", bound=tuple[str, str])  # hostname, namespace

OCTETS = 254  # of the last two octets, 0 and 255 are left out
HOSTS = OCTETS * OCTETS


def allocate(hosts: Iterable[Host]) -> dict[Host, tuple[str, str]]:
    """An IPv4 and an IPv6 address for each of `hosts`, older ones first: later ones change nothing for those before.

    There are 64 516; hosts beyond get none.
    """
    taken: set[int] = set()
    found = {}
    for host in hosts:
        if len(taken) == HOSTS:
            break
        digest = hashlib.blake2b("/".join(host).encode(), digest_size=8).digest()
        number = int.from_bytes(digest) % HOSTS
        while number in taken:
            number = (number + 1) % HOSTS
        taken.add(number)
        third, fourth = number // OCTETS + 1, number % OCTETS + 1
        found[host] = f"240.240.{third}.{fourth}", f"2001:2::f0f0:{third << 8 | fourth:x}"
    return found
