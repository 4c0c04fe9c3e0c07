"""What is known of workloads: proxies that no object describes, objects without times, Pods without EndpointSlices."""

from typing import Any

import yaml
from support.sidecars import sidecar
from support.traffic import Mesh, Pod, eventually


def answer(pod: Pod, url: str, at: str | None = None) -> str:
    reply = pod.get(url, at=at)
    return reply.server or str(reply.status)


def write(mesh: Mesh, *objects: dict[str, Any], namespace: str | None = None) -> None:
    """Write objects as a user of files would: nothing in them that an API server adds."""
    for item in objects:
        metadata = {"namespace": namespace or mesh.namespace, **item["metadata"]}
        mesh.objects[item["kind"], metadata["namespace"], metadata["name"]] = {**item, "metadata": metadata}
    mesh.write()


def pod(name: str, labels: dict[str, str], address: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "status": {"podIP": address}, **more}


def test_a_proxy_without_a_pod_is_who_it_says_it_is(mesh: Mesh) -> None:
    """Its namespace, labels and addresses are those of its node metadata."""
    own, other = mesh.service("own"), mesh.service("other", namespace=f"{mesh.namespace}-a")
    sidecar(mesh, "workloadSelector: {labels: {mood: shy}}\negress: [{hosts: [./*]}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    shy, bold = mesh.pod("shy", {"mood": "shy"}, known=False), mesh.pod("bold", known=False)
    assert [answer(shy, f"http://{s.host}/") for s in (own, other)] == ["own-v1", "502"]
    assert [answer(bold, f"http://{s.host}/") for s in (own, other)] == ["own-v1", "other-v1"]
    assert answer(shy, "http://own/") == "own-v1"


def test_a_proxy_of_little_metadata_is_served(mesh: Mesh) -> None:
    """Its namespace and address are in its id then."""
    own = mesh.service("own")
    client = mesh.pod("client", known=False, metadata={"NAMESPACE": None, "INSTANCE_IPS": None, "LABELS": None})
    assert answer(client, "http://own/") == "own-v1"
    assert answer(client, f"http://{own.host}/") == "own-v1"


def test_a_server_without_a_pod_is_found_by_its_address(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080], known=False)
    mesh.service("server", {}, [{"name": "grpc", "port": 80, "targetPort": 8080}], pods=[server])
    client = mesh.pod("client", known=False)
    eventually(lambda: server.has_cluster("inbound|8080||"))
    reply = client.http2("http://server/")
    assert reply.call is not None
    assert reply.call.protocol == "HTTP/2"


def test_a_server_without_a_pod_is_found_by_a_service_entry(mesh: Mesh) -> None:
    """By an endpoint's address, or by the labels that it says it has."""
    server = mesh.pod("server", {"role": "vm"}, ports=[8080, 8081], known=False)
    base = {"location": "MESH_INTERNAL", "resolution": "STATIC"}
    by_address = {
        "hosts": ["address.example.com"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
        "endpoints": [{"address": server.address}],
    }
    by_label = {
        "hosts": ["label.example.com"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8081}],
        "workloadSelector": {"labels": {"role": "vm"}},
    }
    kind = {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry"}
    write(
        mesh,
        {**kind, "metadata": {"name": "address"}, "spec": {**base, **by_address}},
        {**kind, "metadata": {"name": "label"}, "spec": {**base, **by_label}},
    )
    eventually(lambda: server.has_cluster("inbound|8080||") and server.has_cluster("inbound|8081||"))
    assert answer(mesh.pod("client"), "http://address.example.com/") == "server"


def test_pods_are_a_services_endpoints_where_nobody_keeps_slices(mesh: Mesh) -> None:
    first, second, slow = (mesh.application(name, ports=[8080, 9090]) for name in ("first", "second", "slow"))
    labels = {"app": "web"}
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-admin", "port": 81, "targetPort": "admin"}]
    containers = {"containers": [{"name": "main", "ports": [{"name": "admin", "containerPort": 9090}]}]}
    unready = {"podIP": slow.address, "conditions": [{"type": "Ready", "status": "False"}]}
    write(
        mesh,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.96.200.1", "selector": labels, "ports": ports},
        },
        pod("first", {**labels, "version": "v1"}, first.address, spec=containers),
        pod("slow", labels, slow.address, status=unready),
        pod("stranger", {"app": "other"}, slow.address),
    )
    host = f"web.{mesh.namespace}.svc.cluster.local"
    client = mesh.pod("client")
    assert client.many(f"http://{host}/", 10, at="10.96.200.1") == {"first": 10}
    write(mesh, pod("second", labels, second.address))
    eventually(lambda: set(client.many(f"http://{host}/", 20, at="10.96.200.1")) == {"first", "second"})
    assert client.many(f"http://{host}:81/", 10, at="10.96.200.1") == {"first": 10}  # the second has no such port
    assert {call.port for call in first.calls} == {8080, 9090}
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: web}}
        spec: {{host: {host}, subsets: [{{name: one, labels: {{version: v1}}}}]}}
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: web}}
        spec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}, subset: one}}}}]}}]}}
    """)
    eventually(lambda: client.many(f"http://{host}/", 10, at="10.96.200.1") == {"first": 10})
    write(mesh, _slice("web", second.address))
    eventually(lambda: client.many(f"http://{host}:81/", 10, at="10.96.200.1") == {"503": 10})


def _slice(service: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [address]}],
    }


def test_a_pods_own_proxy_knows_its_services_where_nobody_keeps_slices(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080])
    ports = [{"name": "http2", "port": 80, "targetPort": 8080}]
    service = {"clusterIP": "10.96.200.2", "selector": {"app": "server"}, "ports": ports}
    write(mesh, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": service})
    eventually(lambda: server.has_cluster("inbound|8080||"))
    client = mesh.pod("client")
    reply = client.http2(f"http://server.{mesh.namespace}/", at="10.96.200.2")
    assert reply.server == "server"


def test_without_times_rivals_stand_in_the_order_of_their_names(mesh: Mesh) -> None:
    one, two = (mesh.application(name, ports=[9100]) for name in ("one", "two"))
    kind = {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry"}

    def entry(name: str, address: str) -> dict[str, Any]:
        text = f"hosts: [{name}.example.com]\nports: [{{number: 9100, name: tcp, protocol: TCP}}]\nresolution: STATIC"
        return {**kind, "metadata": {"name": name}, "spec": {**yaml.safe_load(text), "endpoints": [{"address": address}]}}

    write(mesh, entry("b", two.address), entry("a", one.address))
    call = mesh.pod("client").tcp("198.51.100.60", 9100)
    assert call is not None
    assert call.server == "one"
