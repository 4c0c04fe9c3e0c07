"""The rules in docs/protocol.md name the tests that hold them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_rules_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "protocol.md").read_text()))
    texts = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"def (test_\w+)\(", texts)) == set()
