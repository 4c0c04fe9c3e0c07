"""Route tables sent whole, and in pieces: the same traffic either way.

A proxy whose node metadata says so is sent the virtual hosts of its route tables one by one (Envoy: "Virtual Host Discovery Service").
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from support.traffic import UNKNOWN, Mesh, Pod, World, eventually

PORTS = ({"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-other", "port": 8080, "targetPort": 8080})


@pytest.fixture
def mesh(own_world: World) -> Iterator[Mesh]:
    with Mesh(own_world) as mesh:
        yield mesh


@pytest.fixture(params=["whole", "pieces"])
def client(request: pytest.FixtureRequest, mesh: Mesh) -> Callable[[], Pod]:
    """Makes a pod whose proxy has its route tables whole, or in pieces."""
    return lambda: mesh.pod("client", metadata={"ROUTE_TABLES": request.param})


def rule(weight: int, *, timeout: str = "5s") -> str:
    return f"""
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {{name: app}}
    spec:
      hosts: [app]
      http:
      - match: [{{headers: {{x-version: {{exact: v2}}}}}}]
        route: [{{destination: {{host: app, subset: v2}}}}]
      - timeout: {timeout}
        route:
        - {{destination: {{host: app, subset: v1}}, weight: {100 - weight}}}
        - {{destination: {{host: app, subset: v2}}, weight: {weight}}}
    ---
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {{name: app}}
    spec:
      host: app
      subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
    """


def test_requests_are_routed_by_host_port_and_match(mesh: Mesh, client: Callable[[], Pod]) -> None:
    mesh.apply(rule(0), quiet=True)
    mesh.service("app", ("v1", "v2"))
    mesh.service("plain", ports=PORTS)
    pod = client()
    assert pod.many("http://app/", 5) == {"app-v1": 5}
    assert pod.many(f"http://app.{mesh.namespace}.svc.cluster.local/", 5) == {"app-v1": 5}
    assert pod.many("http://app/", 5, {"x-version": "v2"}) == {"app-v2": 5}
    assert pod.get("http://plain/").server == "plain-v1"
    assert pod.get("http://plain:8080/").server == "plain-v1"


def test_an_edited_route_is_followed(mesh: Mesh, client: Callable[[], Pod]) -> None:
    mesh.apply(rule(0), quiet=True)
    mesh.service("app", ("v1", "v2"))
    pod = client()
    assert pod.many("http://app/", 5) == {"app-v1": 5}
    for weight in (100, 0, 100):
        mesh.apply(rule(weight))
        version = "app-v2" if weight else "app-v1"
        eventually(lambda version=version: pod.many("http://app/", 4) == {version: 4}, f"all requests to go to {version}")


def test_services_and_ports_come_and_go(mesh: Mesh, client: Callable[[], Pod]) -> None:
    mesh.service("app")
    pod = client()
    assert pod.get("http://app/").server == "app-v1"
    mesh.service("late", ports=({"name": "http", "port": 9090, "targetPort": 8080},))  # a listener and a table that were not there
    eventually(lambda: pod.get("http://late:9090/").server == "late-v1", "a service on a new port to be called")
    mesh.service("later", ports=({"name": "http", "port": 9090, "targetPort": 8080},))
    eventually(lambda: pod.get("http://later:9090/").server == "later-v1", "another service on that port to be called")
    address = mesh.services["later"].address
    mesh.delete("Service", "later")
    eventually(lambda: pod.get("http://later:9090/", at=address).server != "later-v1", "a deleted service to be gone")
    assert pod.get("http://late:9090/").server == "late-v1"
    mesh.delete("Service", "late")
    eventually(lambda: not any(name.endswith("_9090") for name in listeners(pod)), "the listener to be gone")
    mesh.service("late", ports=({"name": "http", "port": 9090, "targetPort": 8080},))
    eventually(lambda: pod.get("http://late:9090/").server == "late-v1", "a service to be called that is back")


def test_hosts_that_only_a_rule_knows_are_routed(mesh: Mesh, client: Callable[[], Pod]) -> None:
    mesh.service("app")
    mesh.apply("""
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {name: made-up}
    spec:
      hosts: [made-up.example]
      http: [{route: [{destination: {host: app}}]}]
    """)
    pod = client()
    eventually(lambda: pod.get("http://made-up.example/", at=UNKNOWN).server == "app-v1", "the rule to be followed")


def test_a_control_plane_that_restarts_goes_on(own_world: World, mesh: Mesh, client: Callable[[], Pod]) -> None:
    mesh.apply(rule(0), quiet=True)
    mesh.service("app", ("v1", "v2"))
    mesh.service("gone")
    pod = client()
    assert pod.many("http://app/", 5) == {"app-v1": 5}
    with own_world.abandoned():
        assert pod.many("http://app/", 5) == {"app-v1": 5}
        for name in ("Service", "EndpointSlice"):
            mesh.delete(name, "gone" if name == "Service" else "gone-1", quiet=True)
        mesh.apply(rule(100), quiet=True)  # while nobody looks
        (own_world.files / f"{mesh.namespace}.yaml").write_text(yaml.safe_dump_all(mesh.objects.values()))
    eventually(lambda: pod.many("http://app/", 4) == {"app-v2": 4}, "the edit to be followed")
    eventually(lambda: not any("gone" in host["name"] for host in virtual_hosts(pod, "80")), "the deleted service to be gone")


class TestPieces:
    @pytest.fixture
    def pod(self, mesh: Mesh) -> Pod:
        mesh.apply(rule(0), quiet=True)
        mesh.service("app", ("v1", "v2"))
        mesh.service("plain")
        return mesh.pod("client", metadata={"ROUTE_TABLES": "pieces"})

    def test_virtual_hosts_come_by_themselves(self, pod: Pod) -> None:
        eventually(lambda: len(virtual_hosts(pod, "80")) > 2, "virtual hosts to come")
        (table,) = (c for c in route_tables(pod) if c["name"] == "80")
        assert "vhds" in table

    def test_an_edit_sends_one_virtual_host(self, mesh: Mesh, pod: Pod) -> None:
        eventually(lambda: pod.many("http://app/", 4) == {"app-v1": 4}, "the first routes")
        before, routes = pod.stat("cluster_manager.cds.update_success"), pod.stat("http.outbound_0.0.0.0_80.rds.80.update_success")
        mesh.apply(rule(100))
        eventually(lambda: pod.many("http://app/", 4) == {"app-v2": 4}, "the edit to be followed")
        assert pod.stat("cluster_manager.cds.update_success") == before
        assert pod.stat("http.outbound_0.0.0.0_80.rds.80.update_success") == routes

    def test_the_mesh_s_setting_is_for_all_proxies_that_do_not_say(self, mesh: Mesh) -> None:
        config = {"defaultConfig": {"proxyMetadata": {"ISTIO_META_ROUTE_TABLES": "pieces"}}}
        meta = {"name": "istio", "namespace": "istio-system"}
        mesh.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"mesh": yaml.safe_dump(config)}})
        mesh.service("app")
        pod = mesh.pod("client")
        eventually(lambda: pod.get("http://app/").server == "app-v1", "requests to be answered")
        assert "vhds" in next(table for table in route_tables(pod) if table["name"] == "80")


def route_tables(pod: Pod) -> list[dict[str, Any]]:
    return [item["route_config"] for item in pod.config("dynamic_route_configs")]


def virtual_hosts(pod: Pod, table: str) -> list[dict[str, Any]]:
    return [host for found in route_tables(pod) if found["name"] == table for host in found.get("virtual_hosts", ())]


def listeners(pod: Pod) -> list[str]:
    return [item["name"] for item in pod.config("dynamic_listeners")]
