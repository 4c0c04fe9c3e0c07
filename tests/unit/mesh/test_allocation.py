"""Addresses for hosts that have none."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from xds.mesh.allocation import HOSTS, allocate

hosts = st.lists(st.tuples(st.text("abc.", min_size=1, max_size=4), st.sampled_from(["a", "b"])), unique=True, max_size=30)


@given(hosts, hosts)
def test_newer_hosts_change_nothing_for_older_ones(older: list[tuple[str, str]], newer: list[tuple[str, str]]) -> None:
    before = allocate(older)
    after = allocate(dict.fromkeys([*older, *newer]))
    assert {host: after[host] for host in older} == before


def test_an_address_is_a_hosts_alone_and_in_the_documented_networks() -> None:
    found = allocate((f"host-{n}.example.com", "default") for n in range(5000))
    v4, v6 = zip(*found.values(), strict=True)
    assert len(set(v4)) == len(set(v6)) == 5000
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("240.240.0.0/16") for a in v4)
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("2001:2::/48") for a in v6)
    assert not {a.rpartition(".")[2] for a in v4} & {"0", "255"}


def test_it_is_the_same_everywhere_and_for_ever() -> None:
    assert allocate([("one.example.com", "default")]) == {("one.example.com", "default"): ("240.240.112.173", "2001:2::f0f0:70ad")}


def test_where_there_are_more_hosts_than_addresses_the_oldest_have_them() -> None:
    found = allocate((str(n), "default") for n in range(HOSTS + 10))
    assert list(found) == [(str(n), "default") for n in range(HOSTS)]
