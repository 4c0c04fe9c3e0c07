"""The `kube` fixture: one real API server a session, with Istio's CRDs."""

from collections.abc import Iterator

import pytest
from support import kube as support


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Kube]:
    with support.running(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(autouse=True)
def _api_server_is_back(kube: support.Kube) -> Iterator[None]:
    """A test that ended before it had started the API server again costs no other one its own."""
    yield
    if not kube.is_running:
        kube.start_api_server()
