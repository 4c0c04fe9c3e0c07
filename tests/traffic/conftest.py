"""`mesh`: a test's own part of one running mesh. `shared`: one part for all tests of a module."""

from collections.abc import Iterator

import pytest
from support.traffic import Mesh, World, running


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with running() as world:
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
