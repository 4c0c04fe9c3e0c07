"""`xds demo`."""

import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from xds.demo.stage import Stage, stage

POINTS = 3.0  # how far the measured split may be from the weights
VISIBLE_SECONDS = 1.0  # how soon a saved file must change an answer
CALLERS = 8


@dataclass
class Step:
    """One setting of the canary, and what came of it."""

    v1: int
    v2: int
    seen: Counter[str]
    visible_seconds: float | None = None  # from file save to the first changed answer; None for the setting at the start

    @property
    def requests(self) -> int:
        return sum(self.seen.values())

    def percent(self, version: str) -> float:
        return 100 * self.seen[version] / self.requests

    @property
    def followed(self) -> bool:
        right = all(abs(self.percent(v) - weight) <= POINTS for v, weight in (("v1", self.v1), ("v2", self.v2)))
        failed = self.requests - self.seen["v1"] - self.seen["v2"]
        return right and not failed and (self.visible_seconds is None or self.visible_seconds < VISIBLE_SECONDS)


@click.command()
@click.option("--once", is_flag=True, help="Check the result, print a summary, and leave; exit code 1 if traffic did not follow.")
@click.option("--requests", default=1000, show_default=True, type=click.IntRange(min=100), help="Requests for each setting.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(once: bool, requests: int, output: str) -> None:
    """A mesh on this machine: control plane, five stock Envoys as sidecars, four small services. No cluster, no root.

    It calls the product page, shows how calls split between two versions of `reviews`, then edits the weights in a VirtualService
    file and measures how long it takes until the first answer changes.

    \b
    Examples:
      xds demo             look at it; Ctrl-C ends it
      xds demo --once      for scripts: checks the splits, and leaves
    """
    console = Console(stderr=output == "json")
    with contextlib.suppress(KeyboardInterrupt):
        steps = asyncio.run(_demo(console, requests, once))
        if output == "json":
            click.echo(json.dumps([_record(step) for step in steps], indent=2))
        if not all(step.followed for step in steps):
            console.print("[red]traffic did not follow the configuration")
            sys.exit(1)


def _record(step: Step) -> dict[str, object]:
    return {
        "weights": {"v1": step.v1, "v2": step.v2},
        "requests": step.requests,
        "answers": dict(step.seen),
        "visible_seconds": step.visible_seconds,
        "followed": step.followed,
    }


async def _demo(console: Console, requests: int, once: bool) -> list[Step]:
    started = time.monotonic()
    with console.status("starting the control plane and five Envoys"):
        mesh = stage()
        here = await mesh.__aenter__()
    try:
        console.print(f"mesh up after {time.monotonic() - started:.1f} s; its configuration is in {here.folder}")
        settings = [(90, 10), (0, 100)] if once else [(90, 10), (50, 50), (0, 100)]
        steps = [await _step(console, here, requests, *setting, first=not i) for i, setting in enumerate(settings)]
        console.print(_summary(steps))
        if not once:
            console.print(f"still running: edit {here.folder / 'reviews.yaml'}, and call {here.page}. Ctrl-C ends it.")
            await asyncio.Event().wait()
        return steps
    finally:
        await mesh.__aexit__(None, None, None)


async def _step(console: Console, here: Stage, requests: int, v1: int, v2: int, *, first: bool) -> Step:
    step = Step(v1, v2, Counter())
    async with aiohttp.ClientSession() as session:
        if first:
            _set_weights(here.folder / "reviews.yaml", v1, v2)
            await _until_marked(session, here, f"{v1}-{v2}")
        else:
            step.visible_seconds = await _shift(session, here, v1, v2)
        with Live(console=console, transient=True) as live:
            await _call(session, here, requests, step.seen, lambda: live.update(_summary([step])))
    console.print(_line(step))
    return step


async def _shift(session: aiohttp.ClientSession, here: Stage, v1: int, v2: int) -> float:
    """Save new weights while calling; seconds from the save to the first answer that shows them."""
    waiting = asyncio.create_task(_until_marked(session, here, f"{v1}-{v2}"))
    await asyncio.sleep(0)
    saved = time.monotonic()
    _set_weights(here.folder / "reviews.yaml", v1, v2)
    return await waiting - saved


async def _until_marked(session: aiohttp.ClientSession, here: Stage, mark: str) -> float:
    async with asyncio.timeout(30):
        while True:
            async with session.get(here.page) as response:
                await response.read()
                if response.headers.get("x-canary") == mark:
                    return time.monotonic()


async def _call(
    session: aiohttp.ClientSession, here: Stage, requests: int, seen: Counter[str], shown: Callable[[], None]
) -> None:
    left = requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            seen[await _version(session, here)] += 1
            if left % 50 == 0:
                shown()

    callers: list[Awaitable[None]] = [caller() for _ in range(CALLERS)]
    await asyncio.gather(*callers)


async def _version(session: aiohttp.ClientSession, here: Stage) -> str:
    async with session.get(here.page) as response:
        if response.status != 200:
            return f"HTTP {response.status}"
        page = await response.json()
        return str(page["reviews"].get("version") or f"reviews: HTTP {page['reviews'].get('error')}")


def _set_weights(path: Path, v1: int, v2: int) -> None:
    """Save the file with these weights, and with a response header that tells which weights an answer was routed by."""
    text = path.read_text()
    weights = iter((v1, v2))
    text = re.sub(r"weight: \d+", lambda _: f"weight: {next(weights)}", text)
    text = re.sub(r"x-canary: \d+-\d+", f"x-canary: {v1}-{v2}", text)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _line(step: Step) -> str:
    visible = (
        ""
        if step.visible_seconds is None
        else f"  first changed answer {1000 * step.visible_seconds:.0f} ms after the file was saved"
    )
    mark = "[green]✓[/]" if step.followed else "[red]✗[/]"
    return f"{mark} weights {step.v1}/{step.v2}: v1 {step.percent('v1'):.1f} %, v2 {step.percent('v2'):.1f} % of {step.requests}{visible}"


def _summary(steps: list[Step]) -> Table:
    table = Table("weights v1/v2", "requests", "v1", "v2", "failed", "file saved to first changed answer")
    for step in steps:
        failed = step.requests - step.seen["v1"] - step.seen["v2"]
        visible = "" if step.visible_seconds is None else f"{1000 * step.visible_seconds:.0f} ms"
        share = [f"{step.percent(v):.1f} %" if step.requests else "" for v in ("v1", "v2")]
        table.add_row(f"{step.v1}/{step.v2}", str(step.requests), *share, str(failed), visible)
    return table
