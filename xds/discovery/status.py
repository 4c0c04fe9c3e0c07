"""What `xds proxies` and `/debug/syncz` show of each stream."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from xds.discovery.protocol import Session, Watch
from xds.discovery.resources import Assignable

LONGEST_ERROR = 1000

_PEM = re.compile(r"-----BEGIN.*?(?:-----END[^-]*-----|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\Z)', re.DOTALL)
_INLINE = re.compile(
    r'''((?:inline_string|inline_bytes|private_key|password|secret|token)\w*:\s*)"(?:[^"\\]|\\.)*(?:"|\Z)''', re.DOTALL
)


class TypeStatus(msgspec.Struct, frozen=True):
    """How far one type is on one stream."""

    status: str  # SYNCED, STALE (sent, not yet acknowledged), NACK or NOT SENT
    sent: str  # version of the whole type, "" where nothing was sent
    acked: str
    resources: int | None  # subscribed to by name; None: all
    error: str  # the proxy's text, without secrets
    withheld: tuple[str, ...]  # names that are not sent again until they change


class Rejection(msgspec.Struct, frozen=True):
    """What a proxy rejects of one type, and why, without secrets."""

    stream: Assignable
    type_url: str
    names: frozenset[str]
    error: str


class ProxyStatus(msgspec.Struct, frozen=True):
    """One stream. A proxy whose types are not aggregated has several."""

    node: str
    version: str  # of the proxy, as it says: `envoy 1.40.0`
    assignment: str  # the class of the proxy
    peer: str
    identity: str  # verified, or empty
    connected: datetime
    variant: str  # delta or sotw
    types: dict[str, TypeStatus]  # by short name: cds, eds, …


def version_of(node: Any) -> str:
    """Name and version of a proxy's program."""
    number = node.user_agent_build_version.version
    version = f"{number.major_number}.{number.minor_number}.{number.patch}" if node.HasField("user_agent_build_version") else ""
    return f"{node.user_agent_name} {version or node.user_agent_version}".strip()


def type_statuses(session: Session) -> dict[str, TypeStatus]:
    """The status of every type that `session` serves."""
    watches = sorted(session.watches.values(), key=lambda watch: watch.rules.order)
    return {watch.rules.short: _status(watch) for watch in watches}


def rejections(stream: Assignable, session: Session) -> Iterator[Rejection]:
    """What the client of `session` rejects, and would again: of each type that has some."""
    for watch in session.watches.values():
        if watch.rejected:
            error = readable(watch.rules.short, watch.error)
            yield Rejection(stream, watch.rules.type_url, frozenset(watch.rejected), error)


def state(watch: Watch) -> str:
    """SYNCED, STALE (sent, not yet acknowledged), NACK or NOT SENT."""
    if watch.rejected or watch.trials:
        return "NACK"
    if watch.unacked:
        return "STALE"
    if watch.sequence or not (watch.dirty or watch.known.is_nothing()):  # one that returns may need nothing
        return "SYNCED"
    return "NOT SENT"


def _status(watch: Watch) -> TypeStatus:
    return TypeStatus(
        status=state(watch),
        sent=watch.sent_version,
        acked=watch.acked_version,
        resources=None if watch.subscription.wildcard else len(watch.subscription.names),
        error=readable(watch.rules.short, watch.error),
        withheld=tuple(sorted(watch.rejected)),
    )


def readable(kind: str, text: str) -> str:
    """A proxy's text without what may be secret: keys, inline data, and for secrets everything quoted."""
    text = _PEM.sub("[PEM]", text)
    text = _QUOTED.sub('"…"', text) if kind == "sds" else _INLINE.sub(r'\1"…"', text)
    return text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + " …"
