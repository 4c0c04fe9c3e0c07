"""Callers that go on calling while something changes."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from support.traffic import Pod, eventually


class Calls:
    """What callers got so far."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []


@contextmanager
def calling(client: Pod, url: str, callers: int = 3) -> Iterator[Calls]:
    """Call without a pause, on connections that are kept and on new ones, until the block ends; entered after the first answer."""
    calls, done = Calls(), threading.Event()

    def call() -> None:
        while not done.is_set():
            with client.session(url) as session:
                for _ in range(5):
                    try:
                        reply = session.get(url)
                    except OSError as e:
                        calls.failures.append(repr(e))
                        break
                    if reply.status == 200:
                        calls.answers[reply.server] += 1
                    else:
                        calls.failures.append(f"{reply.status} {reply.body}")

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: calls.answers or calls.failures, f"{url} to be called")
        yield calls
    finally:
        done.set()
        for thread in threads:
            thread.join()
