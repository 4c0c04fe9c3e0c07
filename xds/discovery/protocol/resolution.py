"""What names stand for: collections for their members, aliases for the resource that has them.

Few clients ask for such names. For all others, what is asked for is what is subscribed to, and that is one object.
"""

from collections.abc import Iterable

from xds.discovery.names import belongs, is_collection, normal
from xds.discovery.protocol.knowledge import Groups
from xds.discovery.protocol.subscription import Names, Subscription


def resolved(asked: Subscription, groups: Groups, before: Subscription | None = None) -> Subscription:
    """What `asked` stands for now; with what it stood for `before`, since what is gone from that is yet to be told as removed."""
    if not asked.schemed and not _aliased(groups):
        return asked
    names = set(members(asked.names, groups))
    if before is not None:
        names |= before.names - asked.names
    return Subscription.of(frozenset(names), wildcard=asked.wildcard)


def members(names: Iterable[str], groups: Groups) -> Names:
    """What each of `names` stands for now: where that is nothing, for itself."""
    found: set[str] = set()
    for name in names:
        own = normal(name)
        if is_collection(own):
            found.update([member for group in groups for member in group.resources if belongs(member, own)] or [own])
        else:
            found.add(next((group.aliases[own] for group in groups if own in group.aliases), own))
    return frozenset(found)


def moves(asked: Subscription, groups: Groups) -> bool:
    """Whether what `asked` stands for can change with `groups`."""
    return bool(asked.schemed) or _aliased(groups)


def _aliased(groups: Groups) -> bool:
    for group in groups:  # noqa: SIM110 - asked for every push
        if group.aliases:
            return True
    return False
