"""The incremental core: what is computed when, and that it comes to the same as computing everything anew."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds import flow


class Prices(flow.Graph):
    """`total` of names and their `receipt`; `computed` counts how often each was worked out."""

    def __init__(self) -> None:
        super().__init__()
        self.price = self.table("price")
        self.discount = self.table("discount")
        self.computed: Counter[str] = Counter()

    @flow.derived
    def net(self, name: str) -> int:
        self.computed[f"net {name}"] += 1
        price = self.price[name] or 0
        if price < 0:
            raise ValueError(f"the price of {name} is {price}")
        return price * (100 - (self.discount[name] or 0)) // 100

    @flow.derived
    def is_dear(self, name: str) -> bool:
        self.computed[f"is_dear {name}"] += 1
        return self.net(name) >= 100

    @flow.derived
    def label(self, name: str) -> str:
        self.computed[f"label {name}"] += 1
        return f"{name}: {'dear' if self.is_dear(name) else 'cheap'}"

    @flow.derived
    def total(self, *names: str) -> int:
        self.computed["total"] += 1
        return sum(self.net(n) for n in names)


def sources(node: flow.Node) -> list[str]:
    return list(map(repr, node.why()))


class TestReading:
    def test_what_was_read_before_is_not_computed_again(self) -> None:
        graph = Prices()
        graph.price["a"] = 10
        assert [graph.net("a"), graph.net("a")] == [10, 10]
        assert graph.computed == {"net a": 1}

    def test_a_write_computes_nothing(self) -> None:
        graph = Prices()
        graph.label("a")
        graph.computed.clear()
        graph.price["a"] = 500
        assert not graph.computed

    def test_only_what_depends_on_a_write_is_computed_again(self) -> None:
        graph = Prices()
        graph.price["a"], graph.price["b"] = 1, 2
        assert graph.total("a", "b") == 3
        graph.computed.clear()
        graph.price["b"] = 5
        assert graph.total("a", "b") == 6
        assert graph.computed == {"net b": 1, "total": 1}

    def test_an_equal_value_stops_the_wave(self) -> None:
        graph = Prices()
        graph.price["a"] = 10
        graph.label("a")
        graph.computed.clear()
        graph.price["a"] = 20
        assert graph.label("a") == "a: cheap"
        assert graph.computed == {"net a": 1, "is_dear a": 1}

    def test_writing_what_is_there_marks_nothing(self) -> None:
        graph = Prices()
        graph.price["a"] = 10
        graph.net("a")
        graph.price["a"] = 10
        assert graph.net.node("a").state == flow.CLEAN

    def test_an_absent_key_is_read_too(self) -> None:
        graph = Prices()
        assert graph.net("a") == 0
        graph.price["a"] = 7
        assert graph.net("a") == 7
        graph.price["a"] = None
        assert graph.net("a") == 0

    def test_what_is_no_longer_read_no_longer_counts(self) -> None:
        class Choice(flow.Graph):
            def __init__(self) -> None:
                super().__init__()
                self.chosen, self.value = self.table("chosen"), self.table("value")
                self.times = 0

            @flow.derived
            def result(self) -> Any:
                self.times += 1
                return self.value[self.chosen["it"]]

        graph = Choice()
        graph.chosen["it"], graph.value["a"], graph.value["b"] = "a", 1, 2
        assert graph.result() == 1
        graph.chosen["it"] = "b"
        assert graph.result() == 2
        graph.value["a"] = 10
        assert (graph.result(), graph.times) == (2, 2)

    def test_defaults_and_arguments_name_one_node(self) -> None:
        class Defaults(flow.Graph):
            @flow.derived
            def pair(self, a: int, b: int = 2) -> tuple[int, int]:
                return a, b

        graph = Defaults()
        assert graph.pair.node(1) is graph.pair.node(1, 2)
        assert graph.pair(1) == graph.pair(1, 2) == (1, 2)

    def test_arguments_by_name_are_refused(self) -> None:
        with pytest.raises(TypeError, match="positional arguments only"):
            Prices().net(name="a")

    def test_listing_a_table_is_not_reading_it(self) -> None:
        graph = Prices()
        graph.price["a"] = 1
        graph.price["b"] = None
        assert list(graph.price.items()) == [("a", 1)]
        assert (graph.price.peek("a"), graph.price.peek("c")) == (1, None)


class TestErrors:
    def test_the_first_one_reaches_the_reader(self) -> None:
        graph = Prices()
        graph.price["a"] = -1
        for _ in range(2):
            with pytest.raises(ValueError, match="the price of a is -1"):
                graph.total("a", "b")
        assert graph.computed == {"net a": 1, "total": 1}, "raised again, not computed again"

    def test_the_last_good_value_stays(self) -> None:
        graph = Prices()
        graph.price["a"], graph.price["b"] = 10, 1
        assert graph.total("a", "b") == 11
        graph.price["a"], graph.price["b"] = -1, 2
        assert graph.total("a", "b") == 12
        assert [(repr(node), str(error)) for node, error in graph.errors()] == [("net('a')", "the price of a is -1")]

    def test_the_next_good_value_ends_it(self) -> None:
        graph = Prices()
        for price in (10, -1, 30):
            graph.price["a"] = price
            graph.total("a")
        assert graph.total("a") == 30
        assert not list(graph.errors())

    def test_a_reader_that_failed_for_another_recovers_with_it(self) -> None:
        graph = Prices()
        graph.price["a"] = -1
        with pytest.raises(ValueError, match="-1"):
            graph.label("a")
        graph.price["a"] = 100
        assert graph.label("a") == "a: dear"
        assert not list(graph.errors())

    def test_a_new_error_replaces_the_old_one(self) -> None:
        graph = Prices()
        for price in (-1, -2):
            graph.price["a"] = price
            with pytest.raises(ValueError, match=f"is {price}"):
                graph.label("a")

    def test_a_traceback_does_not_grow_by_being_raised_again(self) -> None:
        def length(error: BaseException) -> int:
            count, trace = 0, error.__traceback__
            while trace is not None:
                count, trace = count + 1, trace.tb_next
            return count

        graph = Prices()
        graph.price["a"] = -1
        lengths = set()
        for _ in range(5):
            with pytest.raises(ValueError, match="-1") as caught:
                graph.net("a")
            lengths.add(length(caught.value))
        assert len(lengths) == 1


class Knot(flow.Graph):
    """`here` needs `there`, which needs what `way` says."""

    def __init__(self) -> None:
        super().__init__()
        self.way = self.table("way")

    @flow.derived
    def here(self) -> int:
        return self.there() + 1

    @flow.derived
    def there(self) -> int:
        return self.here() if self.way["back"] else 0


class TestCycles:
    def test_the_way_round_is_told(self) -> None:
        graph = Knot()
        graph.way["back"] = True
        with pytest.raises(flow.CycleError, match=r"here\(\) <- there\(\) <- here\(\)"):
            graph.here()

    def test_they_end_when_what_made_them_does(self) -> None:
        graph = Knot()
        graph.way["back"] = True
        for _ in range(2):
            with pytest.raises(flow.CycleError):
                graph.here()
        graph.way["back"] = None
        assert graph.here() == 1

    def test_a_later_one_is_found_too(self) -> None:
        graph = Knot()
        assert graph.here() == 1
        graph.way["back"] = True
        with pytest.raises(flow.CycleError):
            graph.here()
        graph.way["back"] = None
        assert graph.here() == 1

    def test_a_watched_one_is_reported_when_it_ends(self) -> None:
        graph, watch = Knot(), flow.Watch()
        watch.add(graph.here.node())
        graph.way["back"] = True
        with pytest.raises(flow.CycleError):
            list(watch.changes())
        graph.way["back"] = None
        assert list(watch.changes()) == []
        assert graph.here() == 1


def test_a_derived_value_cannot_write() -> None:
    class Meddling(flow.Graph):
        def __init__(self) -> None:
            super().__init__()
            self.value = self.table("value")

        @flow.derived
        def bad(self) -> int:
            self.value["a"] = 1
            return 1

    with pytest.raises(RuntimeError, match=r"bad\(\) writes value\['a'\]"):
        Meddling().bad()


class TestWhy:
    def test_names_each_key_once_in_reading_order(self) -> None:
        graph = Prices()
        graph.total("b", "a", "b")
        assert sources(graph.total.node("b", "a", "b")) == ["price('b')", "discount('b')", "price('a')", "discount('a')"]

    def test_follows_what_is_read_now(self) -> None:
        graph = Prices()
        graph.price["a"] = -1
        with pytest.raises(ValueError, match="-1"):
            graph.net("a")
        assert sources(graph.net.node("a")) == ["price('a')"]
        graph.price["a"] = 1
        graph.net("a")
        assert sources(graph.net.node("a")) == ["price('a')", "discount('a')"]


class TestSweep:
    def test_forgets_what_nobody_reads_or_watches(self) -> None:
        graph, watch = Prices(), flow.Watch()
        watch.add(graph.label.node("a"))
        graph.label("b")
        assert graph.sweep() == 5  # label, is_dear, net and two absent keys of b
        assert set(graph.net.nodes) == {("a",)}
        assert graph.sweep() == 0

    def test_forgets_what_was_unwatched(self) -> None:
        graph, watch = Prices(), flow.Watch()
        node = watch.add(graph.label.node("a")) and graph.label.node("a")
        watch.discard(node)
        graph.sweep()
        assert not any(derivation.nodes for derivation in graph.derivations)
        assert not any(table.nodes for table in graph.tables)

    def test_keeps_inputs(self) -> None:
        graph = Prices()
        graph.price["a"] = 3
        graph.net("a")
        graph.sweep()
        assert list(graph.price.items()) == [("a", 3)]
        assert graph.net("a") == 3

    def test_a_deleted_key_that_nobody_reads_goes(self) -> None:
        graph = Prices()
        graph.price["a"] = 3
        graph.price["a"] = None
        assert graph.sweep() == 1
        assert not graph.price.nodes

    def test_a_swept_node_comes_back(self) -> None:
        graph = Prices()
        graph.price["a"] = 3
        node = graph.net.node("a")
        node.read()
        graph.sweep()
        graph.price["a"] = 4
        assert graph.net("a") == node.read() == 4

    def test_errors_of_swept_nodes_go(self) -> None:
        graph = Prices()
        graph.price["a"] = -1
        with pytest.raises(ValueError, match="-1"):
            graph.net("a")
        graph.sweep()
        assert not list(graph.errors())

    def test_memory_is_given_back(self) -> None:
        class Boxed:
            pass

        class Boxes(flow.Graph):
            @flow.derived
            def box(self, name: str) -> Boxed:
                return Boxed()

        graph = Boxes()
        kept = weakref.ref(graph.box("a"))
        graph.sweep()
        gc.collect()
        assert kept() is None


class TestWatch:
    def test_reports_what_changed_with_both_values(self) -> None:
        graph, watch = Prices(), flow.Watch()
        a, b = graph.net.node("a"), graph.net.node("b")
        assert [watch.add(a), watch.add(b), len(watch)] == [0, 0, 2]
        graph.price["a"] = 10
        assert list(watch.changes()) == [(a, 0, 10)]
        assert list(watch.changes()) == []

    def test_there_and_back_is_no_change(self) -> None:
        graph, watch = Prices(), flow.Watch()
        watch.add(graph.net.node("a"))
        graph.price["a"] = 10
        graph.price["a"] = None
        assert list(watch.changes()) == []

    def test_one_that_fails_keeps_its_last_value(self) -> None:
        graph, watch = Prices(), flow.Watch()
        graph.price["a"] = 10
        node = graph.net.node("a")
        watch.add(node)
        graph.price["a"] = -1
        assert list(watch.changes()) == []
        graph.price["a"] = 11
        assert list(watch.changes()) == [(node, 10, 11)]

    def test_one_that_never_worked_is_none(self) -> None:
        graph, watch = Prices(), flow.Watch()
        graph.price["a"] = -1
        node = graph.net.node("a")
        assert watch.add(node) is None
        graph.price["a"] = 1
        assert list(watch.changes()) == [(node, None, 1)]

    def test_others_may_join_and_leave_between_two(self) -> None:
        graph, watch = Prices(), flow.Watch()
        a, b = graph.net.node("a"), graph.net.node("b")
        watch.add(a)
        watch.add(b)
        graph.price["a"], graph.price["b"] = 1, 2
        seen = []
        for node, _, _ in watch.changes():
            seen.append(node)
            watch.discard(b)
        assert seen == [a]
        assert len(watch) == 1

    def test_a_node_has_one_watch(self) -> None:
        graph, first = Prices(), flow.Watch()
        node = graph.net.node("a")
        first.add(node)
        with pytest.raises(RuntimeError, match="watched already"):
            flow.Watch().add(node)
        first.discard(node)
        flow.Watch().add(node)


class Cells(flow.Graph):
    """A sheet: each cell has a formula over earlier cells. `fail` makes formulas fail; what a `pick` reads depends on values."""

    COUNT = 7

    def __init__(self) -> None:
        super().__init__()
        self.formula = self.table("formula")

    @flow.derived
    def cell(self, index: int) -> int:
        match self.formula[index]:
            case None:
                return 0
            case ("number", number):
                return int(number)
            case ("fail", text):
                raise ValueError(text)
            case ("sum", *refs):
                return sum(self.cell(r % index) for r in refs if index)
            case ("half", ref):
                return self.cell(ref % index) // 4 if index else 0
            case ("pick", ref, one, other):
                if not index:
                    return 1
                return self.cell((one if self.cell(ref % index) > 1 else other) % index)
        raise AssertionError


index = st.integers(0, Cells.COUNT - 1)
formulas = st.one_of(
    st.none(),
    st.tuples(st.just("number"), st.integers(0, 8)),
    st.tuples(st.just("sum"), index, index),
    st.tuples(st.just("half"), index),
    st.tuples(st.just("pick"), index, index, index),
)
failures = st.tuples(st.just("fail"), st.sampled_from("xy"))
steps = st.one_of(
    st.tuples(st.just("write"), index, formulas),
    st.tuples(st.just("read"), index, st.none()),
    st.tuples(st.just("sweep"), st.none(), st.none()),
    st.tuples(st.just("watch"), index, st.none()),
    st.tuples(st.just("settle"), st.none(), st.none()),
)
Step = tuple[str, Any, Any]


def attempt(graph: Cells, i: int) -> Any:
    """The value of a cell, None where it has none."""
    try:
        return graph.cell(i)
    except ValueError:
        return None


def anew(graph: Cells) -> Cells:
    """A new graph with the same inputs."""
    fresh = Cells()
    for key, value in graph.formula.items():
        fresh.formula[key] = value
    return fresh


class Session:
    """A graph that is used in any way there is; `reported` has what its watch has said."""

    def __init__(self) -> None:
        self.graph, self.watch = Cells(), flow.Watch()
        self.reported: dict[flow.Node, Any] = {}

    def take(self, todo: Iterable[Step]) -> None:
        for what, i, formula in todo:
            match what:
                case "write":
                    self.graph.formula[i] = formula
                case "read":
                    attempt(self.graph, i)
                case "sweep":
                    self.graph.sweep()
                case "watch":
                    node = self.graph.cell.node(i)
                    if node in self.reported:
                        self.watch.discard(node)
                        del self.reported[node]
                    else:
                        self.reported[node] = self.watch.add(node)
                case "settle":
                    self.settle()

    def settle(self) -> None:
        for node, old, new in self.watch.changes():
            assert self.reported[node] == old != new
            self.reported[node] = new


class TestLaw:
    @given(st.lists(steps, max_size=40))
    @settings(max_examples=300, deadline=None)
    def test_incremental_equals_from_scratch(self, todo: list[Step]) -> None:
        session = Session()
        session.take(todo)
        session.settle()
        fresh = anew(session.graph)
        assert {n.args[0]: v for n, v in session.reported.items()} == {n.args[0]: fresh.cell(*n.args) for n in session.reported}
        assert [session.graph.cell(i) for i in range(Cells.COUNT)] == [fresh.cell(i) for i in range(Cells.COUNT)]

    @given(st.lists(st.one_of(steps, st.tuples(st.just("write"), index, failures)), max_size=40))
    @settings(max_examples=300, deadline=None)
    def test_failures_never_touch_what_does_not_need_them(self, todo: list[Step]) -> None:
        session = Session()
        session.take(todo)
        session.settle()
        fresh = anew(session.graph)
        now = {i: attempt(session.graph, i) for i in range(Cells.COUNT)}
        good = {i: v for i in now if (v := attempt(fresh, i)) is not None}
        assert {i: now[i] for i in good} == good
        assert not {node.args[0] for node, _ in session.graph.errors()} & good.keys()
        assert all(session.reported[n] == good[n.args[0]] for n in session.reported if n.args[0] in good)

    @given(st.lists(steps, max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_a_sweep_leaves_what_is_watched_and_its_inputs(self, todo: list[Step]) -> None:
        session = Session()
        session.take(todo)
        session.settle()
        session.graph.sweep()
        needed = set()
        queue = list(session.reported)
        while queue:
            node = queue.pop()
            needed.add(node)
            queue += node.sources
        kept = set(session.graph.cell.nodes.values())
        assert kept == {node for node in needed if node.owner is session.graph.cell}
        absent = {node for node in session.graph.formula.nodes.values() if node.value is None}
        assert absent <= needed
