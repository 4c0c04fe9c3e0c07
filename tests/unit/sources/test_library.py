"""The Kubernetes client library is used in part, and left as it was."""

import subprocess
import sys

CHECK = """
import sys
{before}
from xds.sources.kube_client import _library
config, client, transport = _library()
assert callable(config.load_kube_config) and callable(config.load_incluster_config)
assert client.Configuration() is not None and transport.RESTClientObject is not None
assert not {models}, "the models were imported"
import kubernetes_asyncio.client
assert kubernetes_asyncio.client.V1Pod is not None
assert kubernetes_asyncio.config.load_kube_config
"""
MODELS = '[name for name in sys.modules if name.startswith("kubernetes_asyncio.client.models")]'


def run(**parts: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHECK.format(**parts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_its_models_are_not_imported_and_can_be_afterwards() -> None:
    run(before="", models=MODELS)


def test_who_has_imported_it_before_keeps_it() -> None:
    run(before="import kubernetes_asyncio.client as own", models="own is not sys.modules['kubernetes_asyncio.client']")
