"""Derived values that are computed again only when something they read has changed.

A `Graph` holds *tables*, which are written from outside, and *derived* methods: pure functions of their arguments and of
what they read from tables and from other derived methods. Each (method, arguments) pair is a node that remembers its value.
Reading inside a derived method records the dependency, absent table keys included.

A write marks every node that depends on it: *stale* where it read the written key itself, *suspect* where it read something
stale. Nothing is computed then. A later read settles just the nodes it needs, and a node whose new value equals its old one
stops the wave there: those that read it are not computed at all.

    class Prices(flow.Graph):
        def __init__(self) -> None:
            super().__init__()
            self.price = self.table("price")          # key -> value, None where never written

        @flow.derived
        def total(self, *names: str) -> int:
            return sum(self.price[n] or 0 for n in names)

An exception in a derived method is kept on its node as `error` while readers go on with the last good value; where there is
none yet, reading raises the exception again. The law that tests hold: after any sequence of writes, what is read equals what
a new graph with the same tables would give, last good values aside.

Not thread-safe: one thread owns a graph. Values must not be changed once they are in it.
"""

from collections.abc import Callable, Hashable, Iterator
from types import MethodType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
G = TypeVar("G", bound="Graph")
P = ParamSpec("P")
T = TypeVar("T")

CLEAN, SUSPECT, STALE, COMPUTING = range(4)
_UNSET: Any = object()
_reader: "Node | None" = None  # the node now being computed


class CycleError(RuntimeError):
    """A derived value needs itself. The message lists the way round."""


class Node:
    """One value of the graph: a table's key, or a derived method's arguments."""

    __slots__ = ("args", "error", "owner", "readers", "sources", "state", "value", "watch")

    def __init__(self, owner: "Table[Any, Any] | Derived[Any, Any]", args: tuple[Any, ...], value: Any, state: int) -> None:
        self.owner = owner
        self.args = args
        self.value = value
        self.state = state
        self.error: Exception | None = None
        self.sources: list[Node] | tuple[()] = ()
        self.readers: set[Node] = set()
        self.watch: Watch | None = None

    def __repr__(self) -> str:
        return f"{self.owner.name}({', '.join(map(repr, self.args))})"

    def read(self) -> Any:
        """The value, settled; recorded as read by the node that is being computed, if there is one."""
        reader = _reader
        if reader is not None and reader not in self.readers:
            self.readers.add(reader)
            reader.sources.append(self)  # type: ignore[union-attr]  # a list while it is being computed
        if self.state:
            self.settle()
        if self.value is _UNSET:
            assert self.error is not None
            raise self.error.with_traceback(_origin(self.error))
        return self.value

    def settle(self) -> None:
        """Compute this node if something it read has changed."""
        if self.state == COMPUTING:
            raise CycleError(f"{self!r} needs itself: {' <- '.join(self._cycle())}")
        if self.state == SUSPECT:
            for source in self.sources:
                if source.state:
                    source.settle()
                    if self.state == STALE:
                        break
            else:
                self.state = CLEAN
        if self.state == STALE:
            self.compute()

    def compute(self) -> None:
        global _reader
        graph = self.owner.graph
        previous = self.sources
        for source in previous:
            source.readers.discard(self)
        self.sources = []
        self.state = COMPUTING
        outer, _reader = _reader, self
        try:
            new = self.owner.function(*self.args)
        except CycleError:
            self.state = STALE
            if self.watch is not None:
                self.watch.dirty[self] = None  # no mark would reach it there while it is stale
            raise
        except Exception as e:  # noqa: BLE001 - kept on the node; readers go on with the last good value
            self.error = graph.failing[self] = e
            changed = self.value is _UNSET  # those who read the previous error must see this one
        else:
            if self.error is not None:
                self.error = None
                graph.failing.pop(self, None)
            changed = new is not self.value and (self.value is _UNSET or bool(new != self.value))
            if changed:
                self.value = new
        finally:
            _reader = outer
            for source in previous:
                if not source.readers:
                    graph.orphans.add(source)
        self.state = CLEAN
        if changed:
            for reader in self.readers:
                if reader.state != COMPUTING:
                    reader.state = STALE

    def mark(self) -> None:
        """Mark what reads this node as stale, and what reads that as suspect; tell the watches."""
        todo = [(reader, STALE) for reader in self.readers]
        while todo:
            node, state = todo.pop()
            if node.state >= state:
                continue
            first = node.state == CLEAN
            node.state = state
            if first:
                if node.watch is not None:
                    node.watch.dirty[node] = None
                todo += [(reader, SUSPECT) for reader in node.readers]

    def why(self) -> "Iterator[Node]":
        """The table keys this value was made from, each once, in the order they were first read."""
        seen: set[Node] = set()
        todo = [self]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node.owner, Table):
                yield node
            todo += reversed(node.sources)

    def _cycle(self) -> list[str]:
        way, node = [repr(self)], _reader
        while node is not None and node is not self:
            way.append(repr(node))
            node = next((r for r in node.readers if r.state == COMPUTING), None)
        return [*way, repr(self)]


def _origin(error: Exception) -> TracebackType | None:
    """The traceback of `error` from the derived method that raised it: without what it grew by, each time it was raised again."""
    origin = trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is Node.compute.__code__:
            origin = trace
        trace = trace.tb_next
    return origin


class Table(Generic[K, V]):
    """Inputs by key. A key that was never written, or was written None, reads as None."""

    __slots__ = ("graph", "name", "nodes")

    def __init__(self, graph: "Graph", name: str) -> None:
        self.graph = graph
        self.name = name
        self.nodes: dict[K, Node] = {}

    def _node(self, key: K) -> Node:
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(self, (key,), None, CLEAN)
        return node

    def __getitem__(self, key: K) -> V | None:
        node = self.nodes.get(key) or self._node(key)
        value: V | None = node.read()
        return value

    def __setitem__(self, key: K, value: V | None) -> None:
        if _reader is not None:
            raise RuntimeError(f"{_reader!r} writes {self.name}[{key!r}]: a derived value only reads")
        node = self._node(key)
        if node.value != value:
            node.value = value
            node.mark()
        if value is None and not node.readers:
            self.graph.orphans.add(node)

    def peek(self, key: K) -> V | None:
        """The value of `key`, without recording that it was read."""
        node = self.nodes.get(key)
        return None if node is None else node.value

    def items(self) -> Iterator[tuple[K, V]]:
        """The keys that have a value, with it. Not recorded as read: a derived method that needs a listing reads one from a key."""
        for key, node in self.nodes.items():
            if node.value is not None:
                yield key, node.value

    def function(self, *_: Any) -> Any:
        raise AssertionError("a table's key is never computed")


class Derived(Generic[P, T]):
    """A derived method bound to its graph: call it with hashable positional arguments to read the value."""

    __slots__ = ("arity", "defaults", "function", "graph", "name", "nodes")

    def __init__(self, graph: "Graph", name: str, function: Callable[..., T]) -> None:
        self.graph = graph
        self.name = name
        self.function = function
        code = function.__func__.__code__ if isinstance(function, MethodType) else function.__code__
        self.arity = code.co_argcount - 1
        self.defaults: tuple[Any, ...] = function.__defaults__ or ()
        self.nodes: dict[tuple[Any, ...], Node] = {}

    @property
    def argument_names(self) -> tuple[str, ...]:
        """What its arguments are called."""
        code = self.function.__func__.__code__ if isinstance(self.function, MethodType) else self.function.__code__
        return code.co_varnames[1 : code.co_argcount]

    def node(self, *args: Any) -> Node:
        """The node of these arguments, which may not have been computed yet."""
        missing = self.arity - len(args)
        if missing:
            args += self.defaults[-missing:]  # one node, whether the defaults are given or not
        node = self.nodes.get(args)
        if node is None:
            node = self.nodes[args] = Node(self, args, _UNSET, STALE)
            self.graph.orphans.add(node)
        return node

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if kwargs:
            raise TypeError(f"{self.name} takes positional arguments only: they name its node")
        node = self.nodes.get(args)
        if node is None:
            node = self.node(*args)
        value: T = node.read()
        return value


class derived(Generic[G, P, T]):  # noqa: N801 - used as a decorator
    """Makes a method of a `Graph` a derived value, kept by its arguments. But for what it reads from the graph, it is pure."""

    def __init__(self, function: Callable[Concatenate[G, P], T]) -> None:
        self.wrapped = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, graph: None, owner: type[G]) -> "derived[G, P, T]": ...
    @overload
    def __get__(self, graph: G, owner: type[G]) -> Derived[P, T]: ...
    def __get__(self, graph: G | None, owner: type[G]) -> "derived[G, P, T] | Derived[P, T]":
        if graph is None:
            return self
        bound: Derived[P, T] = Derived(graph, self.name, self.wrapped.__get__(graph))
        graph.derivations.append(bound)
        graph.__dict__[self.name] = bound  # shadows this descriptor: later reads cost a dictionary look-up
        return bound


class Graph:
    """Tables and derived methods that belong together. Graphs that read one another share the `parent`'s bookkeeping."""

    def __init__(self, parent: "Graph | None" = None) -> None:
        self.tables: list[Table[Any, Any]] = [] if parent is None else parent.tables
        self.derivations: list[Derived[Any, Any]] = [] if parent is None else parent.derivations
        self.orphans: set[Node] = set() if parent is None else parent.orphans  # may have no readers left
        self.failing: dict[Node, Exception] = {} if parent is None else parent.failing

    def table(self, name: str) -> Table[Any, Any]:
        """A new table. `name` is what `why` and error messages call it."""
        table: Table[Any, Any] = Table(self, name)
        self.tables.append(table)
        return table

    def errors(self) -> Iterator[tuple[Node, Exception]]:
        """The derived values whose last computation failed. Their readers go on with the last good value."""
        yield from tuple(self.failing.items())

    def sweep(self) -> int:
        """Forget the nodes that nobody reads or watches, and absent keys that nobody asks for; returns how many.

        The cost follows what was orphaned since the last sweep, not the size of the graph.
        """
        swept = 0
        while self.orphans:
            orphans = tuple(self.orphans)
            self.orphans.clear()  # a set that was large once is slow to take single members from
            swept += sum(map(self._forget, orphans))
        return swept

    def _forget(self, node: Node) -> bool:
        """Forget `node` if nobody needs it; whether it was forgotten."""
        is_input = isinstance(node.owner, Table)
        if node.readers or node.watch is not None or (is_input and node.value is not None):
            return False
        key = node.args[0] if is_input else node.args
        if node.owner.nodes.get(key) is not node:
            return False
        del node.owner.nodes[key]
        self.failing.pop(node, None)
        for source in node.sources:
            source.readers.discard(node)
            if not source.readers:
                self.orphans.add(source)
        node.sources = ()
        node.state = CLEAN if is_input else STALE
        return True


class Watch:
    """The derived values that somebody outside the graph looks at, and which of them have changed since."""

    def __init__(self) -> None:
        self.dirty: dict[Node, None] = {}  # marked since the last `changes`, in that order
        self._seen: dict[Node, Any] = {}

    def add(self, node: Node) -> Any:
        """Watch `node`; its value now, None where computing it failed. A node has one watch at most."""
        if node.watch is not None and node.watch is not self:
            raise RuntimeError(f"{node!r} is watched already")
        node.watch = self
        value = self._seen[node] = self._read(node)
        return value

    def discard(self, node: Node) -> None:
        """Stop watching `node`, if it is watched here."""
        if self._seen.pop(node, _UNSET) is not _UNSET:
            node.watch = None
            self.dirty.pop(node, None)
            if not node.readers:
                node.owner.graph.orphans.add(node)

    def changes(self) -> Iterator[tuple[Node, Any, Any]]:
        """Settle what was marked: each watched node whose value differs from the one last reported, with both values.

        Nodes may be added and discarded between two steps.
        """
        while self.dirty:
            node = next(iter(self.dirty))
            del self.dirty[node]
            old, new = self._seen[node], self._read(node)
            if new is not old and new != old:
                self._seen[node] = new
                yield node, old, new

    def __len__(self) -> int:
        return len(self._seen)

    @staticmethod
    def _read(node: Node) -> Any:
        try:
            return node.read()
        except CycleError:
            raise
        except Exception:  # noqa: BLE001 - kept on the node, reported by Graph.errors
            return None
