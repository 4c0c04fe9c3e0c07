"""What a stream has asked for of one type, shared by all streams that ask for the same."""

from typing import Final
from weakref import WeakValueDictionary

from xds.discovery.names import SCHEME

Names = frozenset[str]
NONE: Final[Names] = frozenset()
WILDCARD = "*"


class Subscription:
    """A set of names, or all of them, or both (then the names are asked for even where `*` would not give them).

    Immutable, and equal ones are one object, so streams with equal subscriptions share it, and everything that is remembered
    by it. A step from one subscription to the next is remembered too: a thousand streams that add the same names cost one union.
    """

    __slots__ = ("__weakref__", "_steps", "names", "schemed", "wildcard")

    def __init__(self, names: Names, wildcard: bool) -> None:
        self.names = names
        self.wildcard = wildcard
        self.schemed = tuple(name for name in names if name.startswith(SCHEME))
        self._steps: WeakValueDictionary[tuple[Names, Names], Subscription] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Subscription {'* ' if self.wildcard else ''}{sorted(self.names)}>"

    @classmethod
    def of(cls, names: Names, *, wildcard: bool = False) -> "Subscription":
        """The one subscription to `names`, among which `*` means all."""
        if WILDCARD in names:
            names, wildcard = names - {WILDCARD}, True
        found = _all.get((names, wildcard))
        if found is None:
            found = _all[names, wildcard] = cls(names, wildcard)
        return found

    def covers(self, name: str) -> bool:
        """Whether `name` is asked for."""
        return self.wildcard or name in self.names

    def changed(self, subscribe: Names, unsubscribe: Names) -> "Subscription":
        """With `subscribe` added and then `unsubscribe` taken away (W9)."""
        key = (subscribe, unsubscribe)
        found = self._steps.get(key)
        if found is None:
            wildcard = (self.wildcard or WILDCARD in subscribe) and WILDCARD not in unsubscribe
            names = (self.names | subscribe) - unsubscribe - {WILDCARD}
            found = self._steps[key] = Subscription.of(names, wildcard=wildcard)
        return found


_all: WeakValueDictionary[tuple[Names, bool], Subscription] = WeakValueDictionary()
