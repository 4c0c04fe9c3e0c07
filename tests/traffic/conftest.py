"""`mesh`: a test's own part of one running mesh."""

from collections.abc import Iterator

import pytest
from support.traffic import Mesh, World, available


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not available():
        pytest.skip("needs root, and the commands ip, nft and setpriv")
    with World(tmp_path_factory.mktemp("traffic")) as world:
        yield world


@pytest.fixture
def mesh(world: World) -> Iterator[Mesh]:
    mesh = Mesh(world)
    try:
        yield mesh
    finally:
        mesh.close()
