"""When the garbage collector runs."""

import gc
from collections.abc import Iterator

import pytest

from xds.collector import ENDED_STREAMS, Collector


@pytest.fixture
def collector() -> Iterator[Collector]:
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    yield Collector()
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = callbacks


def full(collector: Collector) -> float:
    return collector.pauses().get("generation 2", {"count": 0})["count"]


def test_it_runs_in_a_quiet_moment_once_many_streams_have_ended(collector: Collector) -> None:
    for _ in range(ENDED_STREAMS - 1):
        collector.ended()
    collector.collect(quiet=True)
    assert full(collector) == 0
    collector.ended()
    collector.collect(quiet=False)
    assert full(collector) == 0
    collector.collect(quiet=True)
    assert full(collector) == 1


def test_very_many_streams_are_reason_enough_without_quiet(collector: Collector) -> None:
    for _ in range(10 * ENDED_STREAMS):
        collector.ended()
    collector.collect(quiet=False)
    assert full(collector) == 1
