"""JSON paths, as problems name fields by them: `$.spec.http[0].match[0].headers["x-user"].exact`."""

import re
from collections.abc import Iterator

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_STEP = re.compile(r'\.([^.\[]+)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]')


def below(path: str, step: str | int) -> str:
    """The path of `path`'s field, key or element `step`."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    if _PLAIN.fullmatch(step):
        return f"{path}.{step}"
    escaped = step.replace("\\", "\\\\").replace('"', '\\"')
    return f'{path}["{escaped}"]'


def steps(path: str) -> Iterator[str | int]:
    """What `below` was called with, from the outermost step on."""
    for match in _STEP.finditer(path):
        name, index, key = match.groups()
        if index is not None:
            yield int(index)
        else:
            yield name if name is not None else re.sub(r"\\(.)", r"\1", key)
