"""A plot of what `compare.py` measured: for each kind of change, how long until the last proxy had it, turn by turn."""

import math
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

WIDTH, ROW, LEFT, RIGHT, TOP = 900, 46, 110, 40, 50
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")


def plot(results: list[dict[str, Any]]) -> str:
    """An SVG: a row for each kind of change, a dot for each turn, on a logarithmic axis of milliseconds."""
    kinds = [kind for kind, figures in results[0].items() if isinstance(figures, dict) and figures.get("lasts_ms")]
    times = [t for r in results for kind in kinds for t in r[kind]["lasts_ms"]]
    if not times:
        return '<svg xmlns="http://www.w3.org/2000/svg"/>'
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    return "\n".join(_lines(results, kinds, low, max(high, low + 1)))


def _lines(results: list[dict[str, Any]], kinds: list[str], low: int, high: int) -> Iterator[str]:
    height = TOP + ROW * len(kinds) + 40

    def x(ms: float) -> float:
        return LEFT + (math.log10(ms) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">'
    yield f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    yield f'<text x="{LEFT}" y="20">from a change to the last proxy, ms</text>'
    for power in range(low, high + 1):
        at = x(10.0**power)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 12}" y2="{height - 34}" stroke="#ddd"/>'
        yield f'<text x="{at:.1f}" y="{height - 16}" text-anchor="middle">{10.0**power:g}</text>'
    for number, result in enumerate(results):
        colour = COLOURS[number % len(COLOURS)]
        yield f'<text x="{LEFT + 300 + 160 * number}" y="20" fill="{colour}">● {escape(result["name"])}</text>'
        for row, kind in enumerate(kinds):
            y = TOP + ROW * row + 12 * number
            if number == 0:
                yield f'<text x="10" y="{y + 10}">{escape(kind)}</text>'
            for ms in result.get(kind, {}).get("lasts_ms", ()):
                yield f'<circle cx="{x(ms):.1f}" cy="{y + 4}" r="3" fill="{colour}" fill-opacity="0.5"/>'
    yield "</svg>"
