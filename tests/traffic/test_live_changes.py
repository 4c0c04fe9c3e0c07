"""Services, ServiceEntries, Sidecars and pods that change while callers go on calling: no request fails for it."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from support.calling import Calls, calling
from support.sidecars import sidecar
from support.traffic import Mesh, eventually

HTTP = ({"name": "http", "port": 80, "targetPort": 8080},)


def until(calls: Calls, condition: Callable[[], object], what: str) -> None:
    """Wait for `condition` under calls, then for some more calls."""
    eventually(condition, what)
    before = sum(calls.answers.values())
    eventually(lambda: sum(calls.answers.values()) > before + 20)
    assert calls.failures == [], what


def entry(mesh: Mesh, name: str, spec: str) -> None:
    head: dict[str, Any] = {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name}}
    mesh.put({**head, "spec": yaml.safe_load(spec)})


def test_target_ports_and_protocols(mesh: Mesh) -> None:
    web = mesh.service("web", ports=HTTP)
    mesh.world.applications.open(8081)
    client = mesh.pod("client")
    with calling(client, "http://web/") as calls:
        for port in (
            {"name": "http", "port": 80, "targetPort": 8081},
            {"name": "http2", "port": 80, "targetPort": 8081},
            {"name": "", "port": 80, "targetPort": 8080},
            {"name": "http", "port": 80, "targetPort": 8080},
        ):
            mesh.service("web", ports=[port], same_address=True, same_applications=web)

            def seen(port: dict[str, Any] = port) -> bool:
                call = web["v1"].calls[-1]
                return call.port == port["targetPort"] and (call.protocol == "HTTP/2") == (port["name"] == "http2")

            until(calls, seen, str(port))


def test_a_new_service_and_the_route_to_it_come_at_once(mesh: Mesh) -> None:
    mesh.service("web")
    client = mesh.pod("client")
    with calling(client, "http://web/") as calls:
        for number in range(3):
            mesh.service(f"new{number}", quiet=True)
            mesh.apply(f"""
                apiVersion: networking.istio.io/v1
                kind: DestinationRule
                metadata: {{name: new{number}}}
                spec: {{host: new{number}, subsets: [{{name: one, labels: {{version: v1}}}}]}}
                ---
                apiVersion: networking.istio.io/v1
                kind: VirtualService
                metadata: {{name: web}}
                spec: {{hosts: [web], http: [{{route: [{{destination: {{host: new{number}, subset: one}}}}]}}]}}
            """)
            until(calls, lambda number=number: calls.answers[f"new{number}-v1"], f"new{number}")  # type: ignore[misc]
            if number:
                for kind in ("Service", "DestinationRule", "EndpointSlice"):
                    name = f"new{number - 1}" + ("-1" if kind == "EndpointSlice" else "")
                    mesh.objects.pop((kind, mesh.namespace, name))
        # The route and where it led go at once too.
        for key in (("VirtualService", mesh.namespace, "web"), ("Service", mesh.namespace, "new2")):
            mesh.objects.pop(key)
        calls.answers.clear()
        mesh.write()
        until(calls, lambda: calls.answers["web-v1"], "the rule to go")


def test_sidecars_that_still_show_the_service(mesh: Mesh) -> None:
    mesh.service("web")
    mesh.service("other", namespace=f"{mesh.namespace}-a")
    client = mesh.pod("client")
    with calling(client, "http://web/") as calls:
        for number, hosts in enumerate(("[./*]", "['*/*']", f"[./web.{mesh.namespace}.svc.cluster.local]")):
            mesh.service(f"marker{number}")
            sidecar(mesh, f"egress: [{{hosts: {hosts}}}]\noutboundTrafficPolicy: {{mode: REGISTRY_ONLY}}")
            until(calls, lambda: client.get("http://unknown.example.com/").status == 502, hosts)
            mesh.delete("Sidecar", "default")
            until(calls, lambda: client.get("http://unknown.example.com/").status == 200, "no Sidecar")


def test_a_relabelled_pod_moves_to_another_subset(mesh: Mesh) -> None:
    web = mesh.service("web", {"v1": 2})
    mesh.apply("""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: web}
        spec: {host: web, subsets: [{name: blue, labels: {color: blue}}, {name: all}]}
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {name: web}
        spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: blue}}]}]}
    """, quiet=True)  # fmt: skip
    first, second = web.applications
    mesh.relabel(first, {"app": "web", "color": "blue"})
    client = mesh.pod("client")
    with calling(client, "http://web/") as calls:
        mesh.relabel(second, {"app": "web", "color": "blue"})
        until(calls, lambda: calls.answers[second], "the second pod to be blue")
        mesh.relabel(first, {"app": "web", "color": "red"})
        until(calls, lambda: client.many("http://web/", 10) == {second: 10}, "the first pod not to be blue")


def test_a_client_that_comes_under_another_sidecar_and_other_rules(mesh: Mesh) -> None:
    mesh.service("web")
    sidecar(mesh, "workloadSelector: {labels: {mood: shy}}\negress: [{hosts: [./*]}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    client = mesh.pod("client")
    with calling(client, "http://web/") as calls:
        for mood, status in (("shy", 502), ("bold", 200), ("shy", 502)):
            mesh.relabel("client", {"app": "client", "mood": mood})
            until(calls, lambda status=status: client.get("http://unknown.example.com/").status == status, mood)  # type: ignore[misc]


def test_resolutions_of_a_service_entry(mesh: Mesh) -> None:
    one, two = (mesh.application(name, ports=[80]) for name in ("one", "two"))
    mesh.name("live.example.com", two.address)
    port = "ports: [{number: 80, name: http, protocol: HTTP}]"
    specs = {
        "one": f"{{hosts: [live.example.com], {port}, resolution: STATIC, endpoints: [{{address: {one.address}}}]}}",
        "two": f"{{hosts: [live.example.com], {port}, resolution: DNS}}",
    }
    entry(mesh, "live", specs["one"])
    client = mesh.pod("client")
    with calling(client, "http://live.example.com/") as calls:
        for name in ("two", "one", "two"):
            entry(mesh, "live", specs[name])
            until(calls, lambda name=name: client.many("http://live.example.com/", 5) == {name: 5}, name)  # type: ignore[misc]
        entry(mesh, "live", f"{{hosts: [live.example.com, more.example.com], {port}, resolution: NONE}}")
        until(calls, lambda: client.has_cluster("outbound|80||more.example.com"), "NONE")


def test_other_services_that_come_and_go_on_the_same_port(mesh: Mesh) -> None:
    """The listener they share is another one every time."""
    mesh.service("web", ports=[{"name": "http", "port": 9000}])
    client = mesh.pod("client")
    with calling(client, "http://web:9000/") as calls:
        for name in ("tcp", "grpc-web", "tls", ""):
            mesh.service("other", ports=[{"name": name, "port": 9000}])
            until(calls, lambda: client.has_cluster(f"outbound|9000||other.{mesh.namespace}.svc.cluster.local"), name)
            entry(mesh, "any", "{hosts: [any.example.com], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: NONE}")
            until(calls, lambda: client.has_cluster("outbound|9000||any.example.com"), f"{name} and TCP of any address")
            mesh.objects.pop(("ServiceEntry", mesh.namespace, "any"))
            mesh.delete("Service", "other")
            until(calls, lambda: not client.has_cluster("outbound|9000||any.example.com"), "without")


def test_inbound_ports_of_the_server(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080, 8081, 9999])
    mesh.service("server", {}, HTTP, pods=[server])
    client = mesh.pod("client")
    eventually(lambda: client.get("http://server/").status == 200)
    with calling(client, "http://server/") as calls:
        mesh.service("other", {}, [{"name": "tcp", "port": 9999}], pods=[server])
        until(calls, lambda: server.has_cluster("inbound|9999||"), "another port")
        mesh.service("second", {}, [{"name": "", "port": 81, "targetPort": 8080}], pods=[server])
        until(calls, lambda: client.get("http://second:81/").server == "server", "another service for the port")
        ingress = "ingress: [{port: {number: 8080, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:8081'}]"
        sidecar(mesh, f"workloadSelector: {{labels: {{app: server}}}}\n{ingress}")
        until(calls, lambda: server.application.calls[-1].port == 8081, "an ingress")
        mesh.delete("Sidecar", "default")
        until(calls, lambda: server.application.calls[-1].port == 8080, "no ingress")


def test_the_control_plane_is_started_again(mesh: Mesh) -> None:
    """Proxies go on without it, and find nothing changed when it is back."""
    mesh.service("web")
    client = mesh.pod("client")
    changes = [f"{kind}_{what}" for kind in ("cluster_manager.cluster", "listener_manager.listener") for what in ("added", "modified")]
    with calling(client, "http://web/") as calls:
        with mesh.world.abandoned():
            until(calls, lambda: client.stat("control_plane.connected_state") == 0, "the control plane to be gone")
            before = [client.stat(name) for name in changes]
        until(calls, lambda: client.stat("control_plane.connected_state") == 1, "the control plane to be back")
        assert [client.stat(name) for name in changes] == before
        mesh.service("late")
        until(calls, lambda: client.get("http://late/").server == "late-v1", "changes to come again")


@pytest.mark.parametrize("known", [True, False])
def test_a_pod_that_calls_while_its_service_account_and_place_change(mesh: Mesh, known: bool) -> None:
    mesh.service("web")
    client = mesh.pod("client", known=known)
    with calling(client, "http://web/") as calls:
        mesh.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "client", "labels": {"app": "client", "other": "label"}},
                "spec": {"serviceAccountName": "another", "nodeName": "node-x"},
                "status": {"podIP": client.address, "podIPs": [{"ip": client.address}]},
            }
        )
        until(calls, lambda: True, "the pod to change")
