"""IPv6, and both families at once.

https://istio.io/latest/docs/setup/additional-setup/dual-stack/
"""

import yaml
from support.applications import Call
from support.traffic import Mesh, Pod, Service, eventually

PORTS = ({"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 9000})
OUTSIDE = "2001:db8::99"


def called(call: Call | None) -> Call:
    assert call is not None
    return call


def also(mesh: Mesh, service: Service, virtual: str, endpoints: dict[str, str], *, first: bool = False) -> None:
    """Give a Service another address, of IPv6, and an EndpointSlice of that family; `first` is the family the Service prefers."""
    found = mesh.objects["Service", mesh.namespace, service.name]
    addresses = [virtual, service.address] if first else [service.address, virtual]
    sliced = mesh.objects["EndpointSlice", mesh.namespace, f"{service.name}-1"]
    mesh.put({**found, "spec": {**found["spec"], "clusterIP": addresses[0], "clusterIPs": addresses}}, quiet=True)
    for name, address in endpoints.items():
        if name in service.applications:
            mesh.world.applications.put(service.applications[name], address)
    mesh.put(
        {
            **sliced,
            "metadata": {**sliced["metadata"], "name": f"{service.name}-2"},
            "addressType": "IPv6",
            "endpoints": [
                {"addresses": [address], "targetRef": {"kind": "Pod", "name": name, "namespace": mesh.namespace}}
                for name, address in endpoints.items()
            ],
        }
    )


def test_a_dual_stack_client_calls_both_addresses_of_a_service(mesh: Mesh) -> None:
    web = mesh.service("web", ports=PORTS)
    also(mesh, web, "fd96::1", {"web-v1": "fd98::1"})
    client = mesh.pod("client", families="46")
    for address in (web.address, "fd96::1"):
        assert client.get("http://web/", at=address).server == "web-v1"
        assert called(client.tcp(address, 9000)).server == "web-v1"
    assert client.get("http://[fd96::1]/", at="fd96::1").server == "web-v1"


def test_an_ipv6_client_is_served(mesh: Mesh) -> None:
    web = mesh.service("web", ports=PORTS)
    also(mesh, web, "fd96::2", {"web-v1": "fd98::2"}, first=True)
    client = mesh.pod("client", families="6")
    call = called(client.get("http://web/", at="fd96::2").call)
    assert (call.server, call.address) == ("web-v1", "fd98::2")
    assert called(client.tcp("fd96::2", 9000)).address == "fd98::2"
    assert client.get("http://elsewhere.example.com/", at=OUTSIDE).server == OUTSIDE
    assert called(client.tcp(OUTSIDE, 9090, b"hello\n")).server == OUTSIDE


def entry(mesh: Mesh, spec: str) -> None:
    mesh.put({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "entry"}, "spec": yaml.safe_load(spec)})


def test_service_entries_have_addresses_and_endpoints_of_ipv6(mesh: Mesh) -> None:
    mesh.application("one", "fd98::3", ports=[80, 9000])
    entry(
        mesh,
        """
hosts: [one.example.com]
addresses: ["fd96::3", "2001:db8::100/120"]
ports: [{number: 80, name: http, protocol: HTTP}, {number: 9000, name: tcp, protocol: TCP}]
resolution: STATIC
endpoints: [{address: "fd98::3"}]
""",
    )
    client = mesh.pod("client", families="46")
    assert client.get("http://one.example.com/", at=OUTSIDE).server == "one"
    assert client.get("http://[fd96::3]/", at="fd96::3").server == "one"
    assert called(client.tcp("fd96::3", 9000)).server == "one"
    assert called(client.tcp("2001:db8::142", 9000)).server == "one"
    assert called(client.tcp(OUTSIDE, 9000)).server == OUTSIDE


def both(client: Pod, server: Pod) -> None:
    for address in (server.address, server.address6):
        call = called(client.get(f"http://server:{8080}/", at=address).call)
        assert (call.server, call.address) == ("server", address)
        assert called(client.tcp(address, 9000)).address == address
        assert called(client.tcp(address, 9099, b"hello\n")).address == address


def test_a_dual_stack_server_is_called_at_both_addresses(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080, 9000, 9099], families="46")
    service = mesh.service("server", {}, PORTS, pods=[server])
    also(mesh, service, "fd96::4", {"server": server.address6})
    client = mesh.pod("client", families="46")
    eventually(lambda: server.has_cluster("inbound|8080||"))
    both(client, server)
    assert client.get("http://server/", at="fd96::4").server == "server"


def test_an_ipv6_server_is_called(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080, 9000, 9099], families="6")
    service = mesh.service("server", {}, PORTS, pods=[])
    also(mesh, service, "fd96::5", {"server": server.address6}, first=True)
    client = mesh.pod("client", families="6")
    eventually(lambda: server.has_cluster("inbound|8080||"))
    assert called(client.get("http://server/", at="fd96::5").call).address == server.address6
    assert called(client.tcp("fd96::5", 9000)).address == server.address6
    assert called(client.tcp(server.address6, 9099, b"hello\n")).address == server.address6
    assert called(server.get("http://server/", at="fd96::5").call).server == "server"
