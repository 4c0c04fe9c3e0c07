"""Keeps groups of resources equal to derived values.

A group is fed by nodes of the graph. Some are there for good, the others are named by a *listing*: a derived tuple of arguments,
one node for each. Every such node's value is a tuple of resources. When something changes, only the nodes that changed are looked
at, and what they say differently is what the group's proxies are sent.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from xds import flow
from xds.discovery.resources import Group, Resource

Changes = dict[str, Resource | None]


class Feed:
    """One group, the nodes that feed it, and who owns each of its resources."""

    def __init__(
        self,
        group: Group,
        fixed: Iterable[flow.Node],
        listing: flow.Node | None = None,
        member: Callable[[Any], flow.Node] | None = None,
    ) -> None:
        self.group = group
        self.watch = flow.Watch()
        self.users = 0  # of the assignments that have it, those that some proxy has: without one, nobody settles it
        self.assignments = 0  # that have it
        self._fixed = tuple(fixed)
        self._listing = listing
        self._member = member
        self._members: dict[Any, flow.Node] = {}
        self._owners: dict[str, flow.Node] = {}  # resource name -> the node it comes from
        self._rivals: dict[str, list[flow.Node]] = {}  # resource name -> others that have one of that name
        self._resources: dict[flow.Node, dict[str, Resource]] = {}
        self.pending: Changes = {}

    def start(self) -> None:
        """Begin watching. Fills `pending`."""
        for node in self._fixed:
            self._replace(node, self.watch.add(node) or ())
        if self._listing is not None:
            for key in self.watch.add(self._listing) or ():
                self._join(key)

    def stop(self) -> None:
        """Stop watching."""
        listing = () if self._listing is None else (self._listing,)
        for node in (*self._fixed, *listing, *self._members.values()):
            self.watch.discard(node)
        self._members.clear()

    def nodes(self) -> Iterator[flow.Node]:
        """The nodes it is fed from."""
        yield from self._resources
        if self._listing is not None:
            yield self._listing

    def settle(self) -> Iterator[None]:
        """Take in what has changed, a node at a time. Fills `pending`."""
        for node, old, new in self.watch.changes():
            if node is not self._listing:
                self._update(node, old or (), new or ())
            else:
                before, after = set(old or ()), set(new or ())
                for key in new or ():
                    if key not in before:
                        self._join(key)
                        yield
                for key in old or ():
                    if key not in after:
                        self._leave(key)
            yield

    def flush(self) -> None:
        """Bring the group up to date with what is pending."""
        pending, self.pending = self.pending, {}
        if pending:
            self.group.update(pending)

    def sources(self, name: str) -> flow.Node | None:
        """The node that the group's resource `name` comes from."""
        return self._owners.get(name)

    def _join(self, key: Any) -> None:
        assert self._member is not None
        node = self._members[key] = self._member(key)
        self._replace(node, self.watch.add(node) or ())

    def _leave(self, key: Any) -> None:
        node = self._members.pop(key)
        self.watch.discard(node)
        self._replace(node, ())
        del self._resources[node]

    def _update(self, node: flow.Node, old: Sequence[Resource], new: Sequence[Resource]) -> None:
        """`_replace`, which costs what differs where names stay as they are."""
        if len(old) != len(new):
            self._replace(node, new)
            return
        changed = [(before, after) for before, after in zip(old, new, strict=True) if before is not after]
        if any(before.name != after.name or self._owners[after.name] is not node for before, after in changed):
            self._replace(node, new)
            return
        for before, after in changed:
            self._resources[node][after.name] = after
            if before != after:
                self.pending[after.name] = after

    def _replace(self, node: flow.Node, new: Iterable[Resource]) -> None:
        before = self._resources.get(node, {})
        after = self._resources[node] = {resource.name: resource for resource in new}
        for name, resource in after.items():
            # The first to have a name keeps it until it lets go: two sources never take turns.
            if self._owners.setdefault(name, node) is not node:
                rivals = self._rivals.setdefault(name, [])
                if node not in rivals:
                    rivals.append(node)
            elif before.get(name) != resource:
                self.pending[name] = resource
        for name in before.keys() - after.keys():
            if self._owners[name] is node:
                self._release(name)
            else:
                self._rivals[name].remove(node)

    def _release(self, name: str) -> None:
        del self._owners[name]
        self.pending[name] = None
        rivals = self._rivals.pop(name, [])
        if rivals:
            self._owners[name] = heir = rivals.pop(0)
            self.pending[name] = self._resources[heir][name]
            if rivals:
                self._rivals[name] = rivals
