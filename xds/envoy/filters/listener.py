"""Listener filters: what learns about a connection before its filter chain is chosen.

Inspectors wait for the caller's first bytes. Where the server speaks first (MySQL, SMTP), both would wait for ever: so inspectors
run only where some chain's match needs what they find, and not on the other ports of a shared listener.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from xds import pb

if TYPE_CHECKING:
    from xds.pb import envoy_config_listener_v3_ListenerFilter_Init as ListenerFilter
    from xds.pb import envoy_config_listener_v3_ListenerFilterChainMatchPredicate_Init as Predicate

OUR_MARK = 1337  # what the capture rules of a transparent proxy know its own connections by


def _filter(name: str, config: Message, disabled: "Predicate | None" = None) -> "ListenerFilter":
    return {"name": f"envoy.filters.listener.{name}", "typed_config": pb.any(config), "filter_disabled": disabled}


def original_destination() -> "ListenerFilter":
    """Restores the address that the caller meant before the capture redirected it."""
    return _filter("original_dst", pb.OriginalDst())


def original_source(but: Iterable[int] = ()) -> "ListenerFilter":
    """Makes the proxy call the application from its caller's address, in a way that the capture's rules recognise.

    Not on the ports `but`, whose applications are on a loopback address: nobody answers from there to another machine's address.
    """
    return _filter("original_src", pb.OriginalSrc(mark=OUR_MARK), _any_of(but))


def inspectors(tls: bool, http: bool) -> "list[ListenerFilter]":
    """The inspectors that a listener needs."""
    return port_inspectors([(0, tls, http)])


def port_inspectors(needs: Iterable[tuple[int, bool, bool]]) -> "list[ListenerFilter]":
    """The inspectors of a listener for many ports: by (port, needs TLS, needs HTTP), port 0 for all that are not listed.

    TLS comes first: what it found to be TLS, the HTTP inspector leaves alone.
    """
    by_port: dict[int, tuple[bool, bool]] = {}
    for port, tls, http in needs:
        before = by_port.get(port, (False, False))
        by_port[port] = (before[0] or tls, before[1] or http)
    found = []
    if any(tls for tls, _ in by_port.values()):
        found.append(_filter("tls_inspector", pb.TlsInspector(), _except({p: tls for p, (tls, _) in by_port.items()})))
    if any(http for _, http in by_port.values()):
        found.append(_filter("http_inspector", pb.HttpInspector(), _except({p: http for p, (_, http) in by_port.items()})))
    return found


def _except(needed: dict[int, bool]) -> "Predicate | None":
    """Matches the ports where an inspector has nothing to do; None where it runs on all."""
    elsewhere = needed.get(0, False)
    others = sorted(port for port, need in needed.items() if port and need != elsewhere)
    listed = _any_of(others)
    return listed if elsewhere or listed is None else {"not_match": listed}


def _any_of(ports: Iterable[int]) -> "Predicate | None":
    """Matches connections to one of `ports`; None where there are none."""
    rules: list[Predicate] = [{"destination_port_range": {"start": port, "end": port + 1}} for port in ports]
    if not rules:
        return None
    return rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}
