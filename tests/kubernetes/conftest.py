"""The `kube` fixture: one real API server a session, with Istio's CRDs."""

from collections.abc import Iterator

import pytest
from support import kube as support


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Kube]:
    with support.running(tmp_path_factory.mktemp("kube")) as running:
        yield running
