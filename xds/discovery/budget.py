"""A share of bytes that takers wait for in line."""

import asyncio
from collections import deque


class Budget:
    """At most `limit` bytes are taken at a time; one who wants more than that gets it when nobody has any."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, size: int) -> bool:
        """Take `size` bytes if they can be had now."""
        if self._line or not self._fits(size):
            return False
        self.taken += size
        return True

    async def take(self, size: int) -> None:
        """Take `size` bytes, after all who came before. Cancelled, it has taken nothing."""
        if self.try_take(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """Give `size` bytes back."""
        self.taken -= size
        while self._line and (self._line[0][1].done() or self._fits(self._line[0][0])):
            wanted, turn = self._line.popleft()
            if not turn.done():
                self.taken += wanted
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.taken == 0 or self.taken + size <= self.limit
