"""What a client holds of one type, shared by all streams whose clients hold the same.

A stream does not keep the names and versions that it sent. It refers to a `Known`: the groups, the generation of each that was
sent, and the few names that are an exception to that. Equal ones are one object. So a thousand proxies that are up to date hold
one reference each to the same `Known`, and what they miss after a change is computed, and encoded, once.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from xds.discovery.protocol.subscription import NONE, Names, Subscription
from xds.discovery.resources import Group, Resource

Groups = tuple[Group, ...]

ABSENT: Final = ""  # in place of a version: the client holds nothing of that name
UNSURE: Final = "?"  # it may hold anything, or nothing
NOTHING: Final = -1  # in place of a generation: nothing of the group was sent

_NO_DEVIATIONS: Final[Mapping[str, str]] = {}


class Known:
    """The versions a client holds of the names it subscribes to: what `groups` offered at `generations`, but for `deviations`."""

    __slots__ = ("__weakref__", "deviations", "expected", "generations", "groups", "version")

    def __init__(self, groups: Groups, generations: tuple[int, ...], deviations: Mapping[str, str], version: str) -> None:
        self.groups = groups
        self.generations = generations
        self.deviations = deviations  # name -> version, ABSENT or UNSURE
        self.version = version  # of the whole; equal knowledge has an equal version in every replica
        self.expected: dict[Subscription, Any] = {}  # what one who comes with this knowledge says it holds: see `holdings`

    @classmethod
    def nothing(cls, groups: Groups) -> "Known":
        """What a client of `groups` knows before it was sent anything."""
        return cls._of(groups, (NOTHING,) * len(groups), _NO_DEVIATIONS)

    @classmethod
    def present(cls, groups: Groups, deviations: Mapping[str, str] = _NO_DEVIATIONS) -> "Known":
        """What `groups` offer now, but for `deviations`."""
        return cls._of(groups, tuple([group.generation for group in groups]), deviations)

    @classmethod
    def _of(cls, groups: Groups, generations: tuple[int, ...], deviations: Mapping[str, str]) -> "Known":
        key = (groups, generations, frozenset(deviations.items()) if deviations else NONE)
        found = _all.get(key)
        if found is None:
            sent = bool(generations) and generations[0] != NOTHING
            version = _common_version(groups) if sent or not groups else ""
            if deviations:
                version = f"{version}~{_stable_hash(deviations):08x}"
            found = _all[key] = cls(groups, generations, deviations, version)
            if sent:
                for group in groups:
                    group.read(found)
        return found

    def resource(self, name: str) -> Resource | None:
        """What the groups offered under `name` then."""
        for group, generation in zip(self.groups, self.generations, strict=True):
            resource = group.at(name, generation) if generation != NOTHING else None
            if resource is not None:
                return resource
        return None

    def held(self, name: str) -> str:
        """The version the client holds of `name`, which it subscribes to; ABSENT or UNSURE."""
        held = self.deviations.get(name)
        if held is not None:
            return held
        resource = self.resource(name)
        return ABSENT if resource is None else resource.version

    def is_nothing(self) -> bool:
        """Whether the client holds nothing of what it subscribes to."""
        return not self.deviations and not any(generation != NOTHING for generation in self.generations)

    def but(self, deviations: Mapping[str, str]) -> "Known":
        """The same, but for further `deviations`."""
        if not deviations:
            return self
        return self._of(self.groups, self.generations, {**self.deviations, **deviations})

    def outdated(self) -> bool:
        """Whether the groups have changed since."""
        return self.generations != tuple([group.generation for group in self.groups])

    def suspects(self, subscription: Subscription) -> dict[str, None]:
        """The names whose held version may differ from what is offered now, among others. Costs the change, not the whole."""
        names = dict.fromkeys(self.deviations)
        for group, generation in zip(self.groups, self.generations, strict=True):
            if generation == NOTHING:
                names.update(dict.fromkeys(group.resources if subscription.wildcard else subscription.names))
            elif generation != group.generation:
                names.update(dict.fromkeys(group.changed_since(generation)))
        return names

    def rebased(self, groups: Groups, subscription: Subscription) -> "Known":
        """The same knowledge, told as deviations from what `groups` offer now."""
        if groups == self.groups:
            return self
        if self.is_nothing():
            return Known.nothing(groups)
        names = dict.fromkeys(self.deviations)
        for group, generation in zip(self.groups, self.generations, strict=True):
            names.update(dict.fromkeys(group.resources))
            names.update(dict.fromkeys(group.changed_since(generation)))
        for group in groups:
            names.update(dict.fromkeys(group.resources))
        deviations = {}
        for name in names:
            if subscription.covers(name):
                held, resource = self.held(name), offered(groups, name)
                if held != (ABSENT if resource is None else resource.version):
                    deviations[name] = held
        return Known.present(groups, deviations)


_all: WeakValueDictionary[tuple[Groups, tuple[int, ...], frozenset[tuple[str, str]] | Names], Known] = WeakValueDictionary()
_MASK = (1 << 64) - 1


def _common_version(groups: Groups) -> str:
    """The version of all that `groups` offer: the one that each resource has, as where an author gives it, else a hash of all."""
    versions = {resource.version for group in groups for resource in islice(group.offered(), 2)}
    if len(versions) == 1 and all(resource.version in versions for group in groups for resource in group.offered()):
        return versions.pop()
    return f"{sum(group.fingerprint for group in groups) & _MASK:016x}"


def _stable_hash(deviations: Mapping[str, str]) -> int:
    return zlib.crc32("\n".join(f"{name} {held}" for name, held in sorted(deviations.items())).encode())


def table_of(virtual_host: str) -> str:
    """The name of the route table that the virtual host of this name is of."""
    return virtual_host.rpartition("/")[0]


def offered(groups: Groups, name: str) -> Resource | None:
    """What the union of `groups` offers under `name`: the first group that has it wins."""
    for group in groups:
        resource = group.get(name)
        if resource is not None:
            return resource
    return None


def newest(groups: Groups, name: str) -> Resource | None:
    """The newest resource of `name`, be it withheld."""
    for group in groups:
        resource = group.resources.get(name)
        if resource is not None:
            return resource
    return None


def tried(groups: Groups, name: str, resource: Resource) -> Resource | None:
    """What to send of `name` where a client is to try `resource` by itself: that, if nothing newer has come."""
    return resource if offered(groups, name) == resource else newest(groups, name)


def everything(groups: Groups, subscription: Subscription) -> Iterator[Resource]:
    """All that the union of `groups` offers to `subscription`."""
    if not subscription.wildcard:
        for name in subscription.names:
            resource = offered(groups, name)
            if resource is not None:
                yield resource
        return
    seen: set[str] = set()
    for group in groups:
        if seen.isdisjoint(group.resources):
            yield from group.offered()
        else:
            yield from (resource for resource in group.offered() if resource.name not in seen)
        if group is not groups[-1]:
            seen.update((resource.name for resource in group.offered()) if group.withheld else group.resources)


class Rejected(NamedTuple):
    """A version that one client rejected, and what it holds instead."""

    version: str  # ABSENT: the removal was rejected
    instead: Resource | None


class Difference(NamedTuple):
    """What a client lacks, and what it knows when it has been sent that."""

    resources: list[Resource]
    removed: list[str]
    after: Known


def _from_nothing(groups: Groups, subscription: Subscription, forced: Names) -> Difference:
    """What a client lacks that holds nothing: `difference` without the questions that this answers. All new proxies ask for it."""
    removed = [name for name in forced if offered(groups, name) is None]
    return Difference(list(everything(groups, subscription)), removed, Known.present(groups))


def difference(
    known: Known,
    subscription: Subscription,
    *,
    forced: Names = NONE,
    rejected: Mapping[str, Rejected],
    only: Mapping[str, Resource] | None = None,
    keep_removed: bool = False,
    hidden: Names = NONE,
) -> Difference:
    """What a client that holds `known` lacks of what is offered to its `subscription`.

    `forced` names are sent whether the client holds them or not, and those that do not exist are told as removed. What is
    `rejected` is left out while it is at that version. With `only`, these resources are sent, be they
    withheld, or what has come in their place, and nothing else is. With `keep_removed` no removal is sent yet. Virtual hosts of
    `hidden` route tables do not exist for the client.
    """
    if only is None and not rejected and not hidden and known.is_nothing():
        return _from_nothing(known.groups, subscription, forced)
    return _compared(known, subscription, forced, rejected, only, keep_removed, hidden)


def _compared(
    known: Known,
    subscription: Subscription,
    forced: Names,
    rejected: Mapping[str, Rejected],
    only: Mapping[str, Resource] | None,
    keep_removed: bool,
    hidden: Names,
) -> Difference:
    """`difference`, name by name."""
    groups = known.groups
    names = known.suspects(subscription)
    if forced:
        names.update(dict.fromkeys(forced))
    resources: list[Resource] = []
    removed: list[str] = []
    deviations: dict[str, str] = {}
    for name in names:
        if not subscription.covers(name):
            continue
        held = known.held(name)
        resource = _visible(groups, name, hidden) if hidden else offered(groups, name)
        version = ABSENT if resource is None else resource.version
        if only is not None:
            trial = tried(groups, name, only[name]) if name in only else None
            if trial is not None:
                resources.append(trial)
                held = trial.version
            if held != version:
                deviations[name] = held
        elif name in forced:
            refused = rejected.get(name)
            if refused is not None and refused.version == version and refused.instead is not None:
                resource = refused.instead
                deviations[name] = resource.version
            if resource is None:
                removed.append(name)
            else:
                resources.append(resource)
        elif held != version:
            refused = rejected.get(name)
            if refused is not None and refused.version == version:
                deviations[name] = held
            elif resource is not None:
                resources.append(resource)
            elif keep_removed:
                deviations[name] = held
            else:
                removed.append(name)
    return Difference(resources, removed, Known.present(groups, {**_veiled(groups, names, hidden), **deviations}))


def _visible(groups: Groups, name: str, hidden: Names) -> Resource | None:
    return None if table_of(name) in hidden else offered(groups, name)


def _veiled(groups: Groups, names: Iterable[str], hidden: Names) -> dict[str, str]:
    """Of what is offered under `names`, what the client does not hold because it is of `hidden` route tables."""
    return {name: ABSENT for name in names if table_of(name) in hidden and offered(groups, name) is not None} if hidden else {}
