"""The ports on which a workload is called."""

from support.meshes import endpoints, istio, k8s, mesh

from xds.mesh.model import Client, Inbound, Mode, Protocol
from xds.mesh.store import Mesh

OLD = "2024-01-01T00:00:00Z"


def client(mode: Mode = Mode.REDIRECT, **labels: str) -> Client:
    return Client("default", tuple(sorted(labels.items())), addresses=("10.0.0.1",), mode=mode)


def ports(made: Mesh, of: Client | None = None) -> list[tuple[int, Protocol, str, str]]:
    return [(i.port, i.protocol, i.bind, i.forward_to) for i in made.inbound(of or client())]


def behind(name: str, port: str = "http", number: int = 8080, **meta: str) -> str:
    spec = f"ports: [{{name: {port}, port: 80, targetPort: {number}}}]"
    return k8s(name, spec=spec, **meta) + endpoints(name, "{addresses: [10.0.0.1]}", ports=f"{{name: {port}, port: {number}}}")


class TestServices:
    def test_each_port_that_a_service_leads_to(self) -> None:
        made = mesh(behind("x"), behind("y", "tcp", 9090), k8s("z"))
        assert ports(made) == [(8080, Protocol.HTTP, "", ""), (9090, Protocol.TCP, "", "")]

    def test_of_two_services_behind_one_port_the_older_decides(self) -> None:
        made = mesh(behind("b", "tcp", creationTimestamp=OLD), behind("a", "http", creationTimestamp="2025-01-01T00:00:00Z"))
        (found,) = made.inbound(client())
        assert (found.protocol, found.service and found.service.name) == (Protocol.TCP, "b")

    def test_without_capture_the_proxy_listens_at_its_own_address(self) -> None:
        assert ports(mesh(behind("x")), client(Mode.NONE)) == [(8080, Protocol.HTTP, "10.0.0.1", "127.0.0.1:8080")]


def sidecar(ingress: str) -> str:
    return istio("Sidecar", "default", f"ingress: [{ingress}]")


class TestSidecar:
    def one(self, ingress: str, of: Client | None = None) -> Inbound:
        (found,) = mesh(behind("x"), behind("y", "tcp", 9090), sidecar(ingress)).inbound(of or client())
        return found

    def test_its_ingress_replaces_what_services_say(self) -> None:
        found = self.one("{port: {number: 8080, protocol: GRPC, name: g}, defaultEndpoint: '127.0.0.1:7070'}")
        assert (found.port, found.protocol, found.forward_to, found.bind) == (8080, Protocol.GRPC, "127.0.0.1:7070", "")
        assert (found.service and found.service.name, found.service_port) == ("x", 80)

    def test_a_port_that_no_service_has(self) -> None:
        found = self.one("{port: {number: 7000, protocol: TCP, name: t}}")
        assert (found.port, found.service, found.service_port) == (7000, None, 0)

    def test_one_that_is_not_captured_has_an_address(self) -> None:
        found = self.one("{port: {number: 7000, protocol: HTTP, name: h}, captureMode: NONE, bind: 10.0.0.7}")
        assert (found.bind, found.forward_to) == ("10.0.0.7", "127.0.0.1:7000")

    def test_without_ingress_services_count(self) -> None:
        made = mesh(behind("x"), istio("Sidecar", "default", "egress: [{hosts: ['./*']}]"))
        assert ports(made) == [(8080, Protocol.HTTP, "", "")]
