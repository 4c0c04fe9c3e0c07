"""Chains of ordered rules, held to how Envoy finds a chain: the most specific subnet, then in it the most specific name."""

from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from xds.envoy.filter_chains import Draft, Match, first_match

SUBNETS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "192.168.0.0/16", "fd00::/8")
NAMES = ("a.x.test", "b.x.test", "*.x.test", "*.test", "other.test")
ADDRESSES = ("10.9.9.9", "10.1.9.9", "10.1.2.9", "10.1.2.3", "192.168.1.1", "172.16.0.1", "fd00::1")
ASKED = ("a.x.test", "b.x.test", "c.x.test", "y.test", "other.test", "elsewhere")

rules = st.lists(
    st.builds(
        Match,
        subnets=st.lists(st.sampled_from(SUBNETS), max_size=3, unique=True).map(tuple),
        server_names=st.lists(st.sampled_from(NAMES), max_size=3, unique=True).map(tuple),
    ),
    max_size=6,
)


def takes(match: Match, address: str, name: str) -> bool:
    """Whether a rule is for a connection."""
    there = not match.subnets or any(ip_address(address) in ip_network(subnet) for subnet in match.subnets)
    return there and (not match.server_names or any(name == n or (n.startswith("*") and name.endswith(n[1:])) for n in match.server_names))


def found(chains: list[Draft], address: str, name: str) -> str:
    """The chain that Envoy gives a connection, empty for the default one. It does not come back from a subnet, nor from a name."""
    sizes = [ip_network(s).prefixlen for c in chains for s in c.match.subnets if ip_address(address) in ip_network(s)]
    here = [c for c in chains if any(ip_address(address) in (n := ip_network(s)) and n.prefixlen == max(sizes) for s in c.match.subnets)]
    here = here if sizes else [c for c in chains if not c.match.subnets]
    suffixes = ["*" + name[i:] for i, letter in enumerate(name) if letter == "."]
    for wanted in (name, *suffixes):
        for chain in here:
            if wanted in chain.match.server_names:
                return chain.name
    return next((chain.name for chain in here if not chain.match.server_names), "")


@given(rules)
@settings(deadline=None)
def test_the_first_rule_that_matches_a_connection_takes_it(matches: list[Match]) -> None:
    chains = list(first_match(Draft(match, filters=None, name=str(number)) for number, match in enumerate(matches)))
    for address in ADDRESSES:
        for name in ASKED:
            expected = next((str(n) for n, match in enumerate(matches) if takes(match, address, name)), "")
            assert found(chains, address, name) == expected, (address, name)


@given(rules)
@settings(deadline=None)
def test_no_two_chains_take_the_same(matches: list[Match]) -> None:
    """Envoy refuses a listener in which they do."""
    chains = list(first_match(Draft(match, filters=None) for match in matches))
    keys = [(s, n) for chain in chains for s in chain.match.subnets or ("",) for n in chain.match.server_names or ("",)]
    assert len(keys) == len(set(keys))
