"""The objects as they came, and the indices by which readers ask for them.

An index files an object under keys that are a function of the object. What it answers is a tuple of references, oldest object
first, which is how Istio orders rivals. A change costs what it changes: keys that stay are not touched, and a listing does not
depend on what is in its objects.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from xds import flow
from xds.errors import Problem
from xds.objects import Object
from xds.objects.meta import Ref
from xds.sources.changes import Change

K = TypeVar("K", bound=Hashable)
Age = tuple[datetime, str, str, str]

_ALWAYS = datetime.min.replace(tzinfo=UTC)


def age(item: Object) -> Age:
    """Sorts rivals, the oldest first; those of one second, or without a time (which come first), by name, then namespace."""
    ref = item.ref
    return item.meta.creation_timestamp or _ALWAYS, ref.name, ref.namespace, ref.kind


class Index(Generic[K]):
    """Objects by keys: `index[key]` reads a tuple of references, the oldest object first."""

    def __init__(
        self, table: flow.Table[K, tuple[Ref, ...]], keys: Callable[[Any], Iterable[K]], age_of: Callable[[Ref], Age]
    ) -> None:
        self._keys = keys
        self._table = table
        self._age = age_of
        self._staged: dict[K, list[Ref]] = {}

    def __getitem__(self, key: K) -> tuple[Ref, ...]:
        return self._table[key] or ()

    def keys(self, item: Object | None) -> set[K]:
        """What `item` is filed under."""
        return set() if item is None else set(self._keys(item))

    def remove(self, ref: Ref, keys: Iterable[K]) -> None:
        """Take `ref` from under `keys`; its object is the one that was filed."""
        for key in keys:
            refs = self._stage(key)
            del refs[bisect_left(refs, self._age(ref), key=self._age)]

    def add(self, ref: Ref, keys: Iterable[K]) -> None:
        """File `ref` under `keys`; its object is the new one."""
        for key in keys:
            insort(self._stage(key), ref, key=self._age)

    def flush(self) -> None:
        """Show what was staged."""
        for key, refs in self._staged.items():
            self._table[key] = tuple(refs) or None
        self._staged.clear()

    def _stage(self, key: K) -> list[Ref]:
        refs = self._staged.get(key)
        if refs is None:
            refs = self._staged[key] = list(self._table.peek(key) or ())
        return refs


class Inputs(flow.Graph):
    """All objects by reference, their indices, and what is wrong with them. Written by `apply` only."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: flow.Table[Ref, Any] = self.table("objects")
        self.invalid: dict[Ref, tuple[Problem, ...]] = {}  # the last version was unusable; the one before is in force, if any
        self.warnings: dict[Ref, tuple[Problem, ...]] = {}
        self._indices: dict[str, list[Index[Any]]] = {}

    def index(self, name: str, keys: Callable[[Any], Iterable[K]], *kinds: str) -> Index[K]:
        """A new index of the objects of `kinds`. `keys` is pure."""
        index = Index(self.table(name), keys, self._age)
        for kind in kinds:
            self._indices.setdefault(kind, []).append(index)
        return index

    def item(self, ref: Ref) -> Any:
        """The object that `ref` names, None where there is none. Untyped: the reader knows what kinds it asks for."""
        return self.objects[ref]

    def _age(self, ref: Ref) -> Age:
        found: Any = self.objects.peek(ref)
        return age(found)

    def apply(self, changes: Sequence[Change]) -> None:
        """Take `changes` in, in order. An unusable object keeps its last good version in force."""
        touched: dict[Index[Any], None] = {}
        for change in changes:
            ref = change.ref
            if change.invalid:
                self.invalid[ref] = change.problems
                continue
            self.invalid.pop(ref, None)
            self.warnings.pop(ref, None)
            if change.problems:
                self.warnings[ref] = change.problems
            touched.update(dict.fromkeys(self._write(ref, change.object)))
        for index in touched:
            index.flush()

    def _write(self, ref: Ref, new: Object | None) -> list[Index[Any]]:
        old = self.objects.peek(ref)
        if new == old:
            return []
        indices = self._indices.get(ref.kind, [])
        aged = old is None or new is None or age(old) != age(new)
        moves = []
        for index in indices:
            before, after = index.keys(old), index.keys(new)
            gone, come = (before, after) if aged else (before - after, after - before)
            if gone or come:
                index.remove(ref, gone)
                moves.append((index, come))
        self.objects[ref] = new
        for index, come in moves:
            index.add(ref, come)
        return [index for index, _ in moves]
