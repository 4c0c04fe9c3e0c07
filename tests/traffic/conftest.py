"""`mesh`: a test's own part of one running mesh. `shared`: one part for all tests of a module. `own_world`: a mesh of a module's own."""

from collections.abc import Iterator

import pytest
from support.traffic import Mesh, World, running


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with running() as world:
        yield world


@pytest.fixture
def mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def shared(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def own_world() -> Iterator[World]:
    """For tests that restart the control plane, or change settings that are everyone's."""
    with running() as world:
        yield world
