"""What a look at followed directories finds."""

import asyncio
import os
from pathlib import Path

import pytest

from xds.sources import directories
from xds.sources.directories import Followed


def test_a_directory_that_is_moved_away_while_it_is_looked_at_takes_no_file_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "mesh"
    root.mkdir()
    (root / "a.yaml").touch()
    followed = Followed([root], (".yaml",), rescan_seconds=1.0)
    assert asyncio.run(followed.look()) == ([f"{root}/a.yaml"], [])

    def moved(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
        root.rename(tmp_path / "away")
        return entry.name.endswith(suffixes)

    with monkeypatch.context() as patch:
        patch.setattr(directories, "_is_wanted", moved)
        assert asyncio.run(followed.look()) == ([], [])
    root.mkdir()
    assert asyncio.run(followed.look()) == ([], [f"{root}/a.yaml"])
