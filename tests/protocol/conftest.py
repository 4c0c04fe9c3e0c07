"""A running product for the tests of this directory: one process for all, its directory empty before each test."""

from collections.abc import Iterator

import pytest
from support.product import Product


@pytest.fixture(scope="session")
def process() -> Iterator[Product]:
    with Product() as product:
        yield product


@pytest.fixture
def product(process: Product) -> Product:
    process.clear()
    return process
