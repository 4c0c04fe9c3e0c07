"""Traffic capture: the nftables rules by which a pod's connections go through its proxy.

The rules are one text, made here and nowhere else. The injector puts it into the pod's init container, whose image has `nft`, `ip`
and a shell; `xds capture` runs it in the network namespace it is started in. One table of family `inet` holds IPv4 and IPv6 alike.
It is replaced in one transaction, so running it twice, or after a crash, is the same as running it once.

Who is meant by the proxy: every process with one of the `users` or `groups`. What it sends is not captured, with one exception: its
calls to its own pod's address are calls to a service that happens to be here, and come in as from outside.

Istio: `traffic.sidecar.istio.io/*` annotations, and its `istio-iptables` options, which have the same meaning.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

import msgspec

from xds.errors import ConfigError
from xds.mesh.model import Mode

TABLE = "xds_capture"
OUTBOUND_PORT, INBOUND_PORT, DNS_PORT = 15001, 15006, 15053
PROXY_ID = 1337  # user and group of the proxy, and the mark of a transparent proxy's own packets
OWN_PORTS = (15020, 15021, 15090)  # readiness and metrics, which the proxy itself answers
ROUTES = 133  # the routing table of marked packets
PROBE = ("127.0.0.6", 15002)  # calls to this lead to the outbound port wherever these rules are: anybody can find out that they are
NOT_CAPTURED = 126  # what `validation_script` exits with where they are not; Istio's number for it
_TCP = "meta l4proto tcp"  # nft wants to see it in the very rule that redirects
_INTERFACE = re.compile(r"[^\s/\"\\*]{1,15}\+?")


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """What is captured. None stands for everything (`*`); ports and ranges that are excluded win."""

    mode: Mode = Mode.REDIRECT
    inbound_ports: tuple[int, ...] | None = None
    excluded_inbound_ports: tuple[int, ...] = ()
    outbound_ports: tuple[int, ...] = ()  # captured wherever they go
    excluded_outbound_ports: tuple[int, ...] = ()
    outbound_ranges: tuple[str, ...] | None = None  # CIDRs
    excluded_outbound_ranges: tuple[str, ...] = ()
    excluded_interfaces: tuple[str, ...] = ()  # names; `eth+` is every one that begins so
    users: tuple[int, ...] = (PROXY_ID,)
    groups: tuple[int, ...] = (PROXY_ID,)
    own_ports: tuple[int, ...] = OWN_PORTS  # never captured inbound
    dns: bool = False  # whether DNS queries go to the proxy's own DNS listener


def script(capture: Capture) -> str:
    """The shell program that installs the rules: it needs `nft`, `ip` and the capability NET_ADMIN."""
    lines = ["set -eu", "nft -f - <<'RULES'", *_fresh_table(), *_table(capture), "RULES", _ADDRESS]
    lines += _marked_routes(capture.mode is Mode.TPROXY)
    return "\n".join(lines) + "\n"


def clean_up_script() -> str:
    """The shell program that takes everything away again; nothing to take away is no error."""
    lines = ["set -eu", "nft -f - <<'RULES'", *_fresh_table(), "RULES", _NO_ADDRESS, *_marked_routes(False)]
    return "\n".join(lines) + "\n"


def validation_script() -> str:
    """The shell program that finds out whether the rules are there: without privilege, by a call. It needs `nc`, and free ports."""
    address, port = PROBE
    return f"""nc -ll -p {OUTBOUND_PORT} -e echo captured &
trap "kill $!" EXIT
for _ in $(seq 50); do
  if [ "$(nc -w 1 {address} {port} < /dev/null 2> /dev/null)" = captured ]; then exit 0; fi
  sleep 0.1
done
echo "traffic of this pod is not captured: it was made before the node's CNI plugin was there; make it anew" >&2
exit {NOT_CAPTURED}
"""


# The source of a proxy's connections to its own workload is 127.0.0.6, which every loopback interface has, and ::6, which none has.
_IF_IPV6 = 'if [ "$(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6 2> /dev/null)" = 0 ]; then'
_ADDRESS = f"{_IF_IPV6} ip -6 address replace ::6/128 dev lo; fi"
_NO_ADDRESS = f"{_IF_IPV6} ip -6 address del ::6/128 dev lo 2> /dev/null || true; fi"


def _marked_routes(wanted: bool) -> list[str]:
    """Marked packets are for this host, whatever their address. Rules are taken away first: they could be there twice otherwise."""
    lines = []
    for family in ("-4", "-6"):
        steps = [f"ip {family} rule del fwmark {PROXY_ID} lookup {ROUTES} 2> /dev/null || true"]
        if wanted:
            steps.append(f"ip {family} rule add fwmark {PROXY_ID} lookup {ROUTES}")
            steps.append(f"ip {family} route replace local default dev lo table {ROUTES}")
        else:
            steps.append(f"ip {family} route del local default dev lo table {ROUTES} 2> /dev/null || true")
        lines += [f"{_IF_IPV6} {'; '.join(steps)}; fi"] if family == "-6" else steps
    return lines


def _fresh_table() -> list[str]:
    return [f"add table inet {TABLE}", f"delete table inet {TABLE}"]


def _table(capture: Capture) -> list[str]:
    chains: dict[str, list[str]] = {}
    if capture.mode is Mode.TPROXY:
        chains["inbound"] = ["type filter hook prerouting priority mangle", *_transparent_inbound(capture)]
        # What the application answers on such a connection goes back to the proxy, though it is addressed to the caller.
        chains["answers"] = ["type route hook output priority mangle", f"ct mark {PROXY_ID} meta mark set ct mark"]
    else:
        chains["inbound"] = ["type nat hook prerouting priority -100", *_redirected_inbound(capture)]
    chains["outbound"] = ["type nat hook output priority -100", *_outbound(capture)]
    chains["proxy"] = _proxy(capture)
    lines = [f"table inet {TABLE} {{"]
    # A chain must be there before another goes to it.
    for name in sorted(chains, key=lambda name: name != "proxy"):
        lines += [f"  chain {name} {{", *(f"    {rule}" for rule in chains[name]), "  }"]
    return [*lines, "}"]


def _inbound(capture: Capture) -> list[str]:
    rules = ["meta l4proto != tcp accept"]
    rules += [f"iifname {name} accept" for name in map(_interface, capture.excluded_interfaces)]
    if excluded := sorted({*capture.own_ports, *capture.excluded_inbound_ports}):
        rules.append(f"tcp dport {_set(excluded)} accept")
    if capture.inbound_ports == ():
        rules.append("accept")
    elif capture.inbound_ports is not None:
        rules.append(f"tcp dport != {_set(sorted(set(capture.inbound_ports)))} accept")
    return rules


def _redirected_inbound(capture: Capture) -> list[str]:
    return [*_inbound(capture), f"{_TCP} redirect to :{INBOUND_PORT}"]


def _transparent_inbound(capture: Capture) -> list[str]:
    """The proxy sees the connection as the workload would; so it must be told apart from what the proxy then sends to the workload."""
    mark = f"meta mark {PROXY_ID}"
    return [
        f"{mark} ct mark set {PROXY_ID} accept",
        "iif lo accept",
        f"socket transparent 1 meta mark set {PROXY_ID} accept",
        *_inbound(capture),
        f"{_TCP} meta nfproto ipv4 tproxy ip to :{INBOUND_PORT} meta mark set {PROXY_ID}",
        f"{_TCP} meta nfproto ipv6 tproxy ip6 to :{INBOUND_PORT} meta mark set {PROXY_ID}",
    ]


def _outbound(capture: Capture) -> list[str]:
    captured = f"{_TCP} redirect to :{OUTBOUND_PORT}"
    rules = [f"ip daddr {PROBE[0]} tcp dport {PROBE[1]} redirect to :{OUTBOUND_PORT}"]
    if capture.mode is Mode.TPROXY:
        rules.append(f"meta mark {PROXY_ID} accept")
    rules += ["oif lo ip saddr 127.0.0.6 accept", "oif lo ip6 saddr ::6 accept"]
    rules += [f"meta skuid {_set(capture.users)} goto proxy"] if capture.users else []
    rules += [f"meta skgid {_set(capture.groups)} goto proxy"] if capture.groups else []
    if capture.dns:  # before loopback is left alone: a node's cache of DNS answers may be there
        rules += [f"{protocol} dport 53 redirect to :{DNS_PORT}" for protocol in ("udp", "tcp")]
    rules += ["meta l4proto != tcp accept", "oif lo accept"]
    rules += [f"oifname {name} accept" for name in map(_interface, capture.excluded_interfaces)]
    if capture.excluded_outbound_ports:
        rules.append(f"tcp dport {_set(sorted(set(capture.excluded_outbound_ports)))} accept")
    rules += [f"{match} accept" for match in _destinations(capture.excluded_outbound_ranges)]
    if capture.outbound_ranges is None:
        return [*rules, captured]
    if capture.outbound_ports:
        rules.append(f"tcp dport {_set(sorted(set(capture.outbound_ports)))} {captured}")
    return [*rules, *(f"{match} {captured}" for match in _destinations(capture.outbound_ranges))]


def _proxy(capture: Capture) -> list[str]:
    """What the proxy sends: to its own pod's address, in by the way of all inbound calls; anywhere else, as it is."""
    if capture.inbound_ports == ():
        return ["accept"]
    rules = ["meta l4proto != tcp accept", "oif != lo accept", "ip daddr 127.0.0.0/8 accept", "ip6 daddr ::1 accept"]
    if excluded := sorted({*capture.own_ports, *capture.excluded_inbound_ports}):
        rules.append(f"tcp dport {_set(excluded)} accept")
    if capture.inbound_ports is not None:
        rules.append(f"tcp dport != {_set(sorted(set(capture.inbound_ports)))} accept")
    return [*rules, f"{_TCP} redirect to :{INBOUND_PORT}"]


def _set(values: Iterable[object]) -> str:
    return "{ " + ", ".join(map(str, values)) + " }"


def _destinations(ranges: Iterable[str]) -> list[str]:
    """Matches of these CIDRs, one of each family at most. nft refuses a set whose ranges overlap: they are merged."""
    networks = [ipaddress.ip_network(cidr) for cidr in ranges]
    v4 = ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))
    return [f"{family} daddr {_set(found)}" for family, found in (("ip", list(v4)), ("ip6", list(v6))) if found]


def _interface(name: str) -> str:
    return f'"{name[:-1]}*"' if name.endswith("+") else f'"{name}"'


def parse_ports(text: str, where: str) -> tuple[int, ...] | None:
    """Ports as annotations list them: `80,443`; None for `*`. ConfigError at `where` for anything else."""
    if text.strip() == "*":
        return None
    return tuple(_port(part, where) for part in _parts(text))


def parse_some_ports(text: str, where: str) -> tuple[int, ...]:
    """As `parse_ports`, but not all of them."""
    ports = parse_ports(text, where)
    if ports is None:
        raise ConfigError(where, "all ports cannot be meant here: list them, as in 80,443")
    return ports


def parse_ranges(text: str, where: str) -> tuple[str, ...] | None:
    """Ranges of addresses as annotations list them: `10.96.0.0/12,fd00::/8`; None for `*`. ConfigError for anything else."""
    if text.strip() == "*":
        return None
    ranges = []
    for part in _parts(text):
        try:
            ranges.append(str(ipaddress.ip_network(part, strict=False)))
        except ValueError:
            raise ConfigError(where, f"{part!r} is no range of addresses: write 10.96.0.0/12") from None
    return tuple(ranges)


def parse_some_ranges(text: str, where: str) -> tuple[str, ...]:
    """As `parse_ranges`, but not all addresses."""
    ranges = parse_ranges(text, where)
    if ranges is None:
        raise ConfigError(where, "all addresses cannot be meant here: list ranges, as in 10.96.0.0/12")
    return ranges


def parse_interfaces(text: str, where: str) -> tuple[str, ...]:
    """Names of network interfaces, separated by commas. ConfigError for what cannot be one."""
    names = tuple(_parts(text))
    for name in names:
        if not _INTERFACE.fullmatch(name):
            raise ConfigError(where, f"{name!r} is no name of a network interface")
    return names


def _parts(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _port(text: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(where, f"{text!r} is no port: write numbers from 1 to 65535, or * for all")
    return int(text)
