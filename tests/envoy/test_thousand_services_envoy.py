"""A thousand services from files: a proxy gets all of them, and then nothing but what changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.pod import available
from support.serving import Node, eventually, serving

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs root, and the commands ip, nft and setpriv"),
]

COUNT = 1000


def host(number: int) -> str:
    return f"service-{number}.default.svc.cluster.local"


def write(directory: Path, number: int, address: str) -> None:
    """A Service and its EndpointSlice, in a file of their own."""
    name = f"service-{number}"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": f"10.96.{number // 250}.{number % 250 + 1}", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }
    draft = directory / f".{name}"
    draft.write_text(yaml.dump_all([service, slice_], Dumper=yaml.CSafeDumper))
    draft.replace(directory / f"{name}.yaml")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("thousand")
    for number in range(COUNT):
        write(directory, number, f"10.97.{number // 250}.{number % 250 + 1}")
    return directory


@pytest.fixture(scope="module")
def node(directory: Path) -> Iterator[Node]:
    with serving("--files", directory) as node:
        yield node


def test_all_come_and_then_only_what_changes(directory: Path, node: Node) -> None:
    proxy = node.proxy("client.default", "--address", "10.98.0.9")
    eventually(proxy.ready, "Envoy to have its first configuration", seconds=60)
    clusters = {f"outbound|80||{host(number)}" for number in range(COUNT)}
    assert clusters <= proxy.names()
    (table,) = (each["route_config"] for each in proxy.config("dynamic_route_configs") if each["route_config"]["name"] == "80")
    assert {f"{host(number)}:80" for number in range(COUNT)} <= {each["name"] for each in table["virtual_hosts"]}
    sent = node.serve.sent()
    assert sent["eds"] == COUNT

    write(directory, 7, "10.98.0.7")
    eventually(lambda: "10.98.0.7:8080::health_flags" in proxy.admin("/clusters")[1], "the changed endpoint to reach the proxy")
    now = node.serve.sent()
    assert {kind: now[kind] - sent[kind] for kind in now} == {kind: int(kind == "eds") for kind in now}
