"""`mesh`: a test's own part of one running mesh. `shared`: one part for all tests of a module."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.traffic import Mesh, World, available


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    if not available():
        pytest.skip("needs root, and the commands ip, nft and setpriv")
    # Not pytest's own directory, which is closed to the proxies' user whenever another session of pytest begins.
    with tempfile.TemporaryDirectory(prefix="traffic") as directory, World(Path(directory)) as world:
        yield world


@pytest.fixture
def mesh(world: World) -> Iterator[Mesh]:
    mesh = Mesh(world)
    try:
        yield mesh
    finally:
        mesh.close()


@pytest.fixture(scope="module")
def shared(world: World) -> Iterator[Mesh]:
    mesh = Mesh(world)
    try:
        yield mesh
    finally:
        mesh.close()
