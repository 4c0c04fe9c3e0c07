"""When the garbage collector runs.

Python counts allocations to decide when to look for cycles, and then stops everything. A control plane's objects live for hours, and
pushing to a thousand proxies makes thousands of short-lived ones that their counts free at once. So young generations are made
large, the oldest is never looked at because of a count, and `collect` does that in a quiet moment once enough streams have ended:
what gRPC leaves of each (a few small objects that refer to each other) is the only garbage with cycles that there is much of.
"""

import gc
import time
from typing import Any

YOUNG = (50_000, 50, 1_000_000)  # net allocations, collections of the youngest, of the middle generation
ENDED_STREAMS = 200  # are worth a collection


class Collector:
    """The garbage collector's keeper. Times of its pauses are for `/debug/memory`."""

    def __init__(self) -> None:
        self._started = 0.0
        self._pauses: dict[int, tuple[int, float, float]] = {}  # by generation: how many, seconds in all, the longest
        self._ended = 0
        gc.set_threshold(*YOUNG)
        gc.callbacks.append(self._observe)

    def settle_down(self) -> None:
        """Everything that is there now stays: collections need not look at it."""
        gc.collect()
        gc.freeze()

    def ended(self) -> None:
        """A stream has ended."""
        self._ended += 1

    def collect(self, *, quiet: bool) -> None:
        """Collect everything if it is worth it: a lot more before it is done though it is not `quiet`."""
        if self._ended >= (ENDED_STREAMS if quiet else 10 * ENDED_STREAMS):
            self._ended = 0
            gc.collect()

    def pauses(self) -> dict[str, dict[str, float]]:
        """By generation: how many, milliseconds in all, and the longest."""
        return {
            f"generation {generation}": {"count": count, "ms": round(total * 1000, 1), "longest_ms": round(longest * 1000, 1)}
            for generation, (count, total, longest) in sorted(self._pauses.items())
        }

    def _observe(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
            return
        took = time.perf_counter() - self._started
        count, total, longest = self._pauses.get(info["generation"], (0, 0.0, 0.0))
        self._pauses[info["generation"]] = (count + 1, total + took, max(longest, took))
