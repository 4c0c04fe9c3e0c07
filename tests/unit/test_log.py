"""Logging: events with facts, for people and for machines."""

import json
import subprocess
import sys

PROGRAM = """
import structlog
from xds import log
log.configure(json={json}, level="info")
structlog.get_logger().info("push.sent", proxy="a", bytes=5)
structlog.get_logger().debug("not.shown")
try:
    raise ValueError("no")
except ValueError:
    structlog.get_logger().exception("stream.failed")
"""


def logged(**settings: bool) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(**settings)], capture_output=True, text=True, check=True)
    assert done.stdout == "", "logs go to stderr"
    return done.stderr


def test_json_is_one_object_a_line() -> None:
    first, second = map(json.loads, logged(json=True).splitlines())
    assert (first["event"], first["level"], first["proxy"], first["bytes"]) == ("push.sent", "info", "a", 5)
    assert "ValueError: no" in second["exception"]


def test_lines_are_for_people() -> None:
    text = logged(json=False)
    assert "push.sent" in text
    assert "proxy=a" in text
    assert "ValueError: no" in text
    assert "not.shown" not in text
