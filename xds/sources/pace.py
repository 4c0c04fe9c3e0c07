"""Long work on the event loop, in slices."""

import asyncio
import time

SLICE_SECONDS = 0.004  # every kind of object may be at work at once, and the loop waits for the sum of their slices


class Pace:
    """Keeps work that is done in one go short enough for the event loop's other work: `if pace.is_due: await pace.breathe()`."""

    def __init__(self) -> None:
        self._pause_at = time.monotonic() + SLICE_SECONDS

    @property
    def is_due(self) -> bool:
        return time.monotonic() > self._pause_at

    async def breathe(self) -> None:
        """Let the loop do its other work."""
        await asyncio.sleep(0)
        self._pause_at = time.monotonic() + SLICE_SECONDS
