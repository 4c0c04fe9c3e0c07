"""Keeps groups of resources equal to derived values.

A group is fed by nodes of the graph. Some are there for good, the others are named by a *listing*: a derived tuple of arguments,
one node for each. Every such node's value is a tuple of resources. When something changes, only the nodes that changed are looked
at, and what they say differently is what the group's proxies are sent.
"""

from collections.abc import Callable, Iterable, Iterator
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
        self._fixed = tuple(fixed)
        self._listing = listing
        self._member = member
        self._members: dict[Any, flow.Node] = {}
        self._owners: dict[str, flow.Node] = {}  # resource name -> the node it comes from
        self._rivals: dict[str, list[flow.Node]] = {}  # resource name -> others that have one of that name
        self._resources: dict[flow.Node, dict[str, Resource]] = {}
        self.pending: Changes = {}

    def start(self, watch: flow.Watch) -> Iterator[flow.Node]:
        """Begin watching; yields every node as it is watched, so that the caller may pause between two."""
        for node in self._fixed:
            self._replace(node, watch.add(node) or ())
            yield node
        if self._listing is not None:
            yield self._listing
            for key in watch.add(self._listing) or ():
                yield self._join(key, watch)

    def stop(self, watch: flow.Watch) -> Iterator[flow.Node]:
        """Stop watching; yields the nodes let go."""
        listing = () if self._listing is None else (self._listing,)
        for node in (*self._fixed, *listing, *self._members.values()):
            watch.discard(node)
            yield node
        self._members.clear()

    def changed(self, node: flow.Node, old: Any, new: Any, watch: flow.Watch) -> tuple[list[flow.Node], list[flow.Node]]:
        """Take in that `node` went from `old` to `new`; the nodes now fed from, and those no longer. Fills `pending`."""
        if node is not self._listing:
            self._replace(node, new or ())
            return [], []
        before, after = set(old or ()), set(new or ())
        joined = [self._join(key, watch) for key in new or () if key not in before]
        left = [self._leave(key, watch) for key in old or () if key not in after]
        return joined, left

    def flush(self) -> None:
        """Bring the group up to date with what is pending."""
        pending, self.pending = self.pending, {}
        if pending:
            self.group.update(pending)

    def sources(self, name: str) -> flow.Node | None:
        """The node that the group's resource `name` comes from."""
        return self._owners.get(name)

    def _join(self, key: Any, watch: flow.Watch) -> flow.Node:
        assert self._member is not None
        node = self._members[key] = self._member(key)
        self._replace(node, watch.add(node) or ())
        return node

    def _leave(self, key: Any, watch: flow.Watch) -> flow.Node:
        node = self._members.pop(key)
        watch.discard(node)
        self._replace(node, ())
        del self._resources[node]
        return node

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
