"""The `xds` command, as a shell runs it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple


class Ran(NamedTuple):
    """What a command left: exit code, what it printed, what it complained of."""

    code: int
    out: str
    err: str


def xds(*arguments: object, env: Mapping[str, str] | None = None, seconds: float = 180) -> Ran:
    """Run `xds` with these arguments until it ends."""
    command = [sys.executable, "-I", "-m", "xds", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment)
    return Ran(done.returncode, done.stdout, done.stderr)
