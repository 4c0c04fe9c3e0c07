"""DestinationRule `tls`, `proxyProtocol` and `tunnel`: how connections to a destination are wrapped."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.traffic import SECONDS, Mesh, Pod, World, eventually

PLAIN = ({"name": "http", "port": 80, "targetPort": 8443},)
TCP = ({"name": "tcp", "port": 9000, "targetPort": 9443},)
HTTP2 = ({"name": "http2", "port": 80, "targetPort": 8443},)

POSTS = 3129  # where a proxy that takes POST listens

SIMPLE = "mode: SIMPLE, caCertificates: {ca}"


class Files:
    """What rules name: authorities, a client's certificate, a list of revoked certificates."""

    def __init__(self, world: World, directory: Path) -> None:
        self.ca = world.authority.path
        self.stranger = Authority(directory, "stranger").path
        self.certificate, self.key = world.authority.sign("client", "client.test")
        self.crl = world.authority.revoke("some", world.certificate[0])
        self.empty_crl = world.authority.revoke("none")
        for path in (self.stranger, self.key, self.crl, self.empty_crl):
            path.chmod(0o644)


RULES = {
    "simple": SIMPLE,
    "off": "mode: DISABLE, sni: ignored.test",
    "sni": SIMPLE + ", sni: other.test",
    "names": SIMPLE + ", subjectAltNames: [server.test, absent.org]",
    "wrong-names": SIMPLE + ", subjectAltNames: [absent.org]",
    "uri": SIMPLE + ", subjectAltNames: ['spiffe://cluster.local/ns/test/sa/server']",
    "untrusted": "mode: SIMPLE, caCertificates: {stranger}",
    "system": "mode: SIMPLE",
    "unchecked": "mode: SIMPLE, insecureSkipVerify: true",
    "unchecked-names": "mode: SIMPLE, insecureSkipVerify: true, sni: any.test",
    "revoked": SIMPLE + ", caCrl: {crl}",
    "not-revoked": SIMPLE + ", caCrl: {empty_crl}",
    "mutual": "mode: MUTUAL, clientCertificate: {certificate}, privateKey: {key}, caCertificates: {ca}",
    "http2": SIMPLE,
    "tcp": SIMPLE,
    "tcp-sni": SIMPLE + ", sni: bytes.test",
    "tcp-names": SIMPLE + ", subjectAltNames: [absent.org]",
}


@pytest.fixture(scope="module")
def mesh(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        files = Files(world, world.directory)
        for name, tls in RULES.items():
            ports = HTTP2 if name == "http2" else TCP if name.startswith("tcp") else PLAIN
            server = mesh.application(name, ports=[8443, 9443])
            entry = f"""
                apiVersion: networking.istio.io/v1
                kind: ServiceEntry
                metadata: {{name: {name}}}
                spec:
                  hosts: [{name}.example.com]
                  addresses: [{_address(name)}]
                  ports: [{{name: {ports[0]["name"]}, number: {ports[0]["port"]}, protocol: {str(ports[0]["name"]).upper()}}}]
                  resolution: STATIC
                  endpoints: [{{address: {server.address}, ports: {{{ports[0]["name"]}: {ports[0]["targetPort"]}}}}}]
            """
            mesh.name(f"{name}.example.com", _address(name))
            mesh.apply(entry, quiet=True)
            mesh.apply(
                f"""
                apiVersion: networking.istio.io/v1
                kind: DestinationRule
                metadata: {{name: {name}}}
                spec: {{host: {name}.example.com, trafficPolicy: {{tls: {{{tls.format_map(vars(files))}}}}}}}
            """,
                quiet=True,
            )
        mesh.write()
        yield mesh


def _address(name: str) -> str:
    return f"203.0.113.{100 + list(RULES).index(name)}"


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Pod:
    return mesh.pod("client")


class TestTLS:
    @pytest.mark.parametrize(
        ("host", "sni"),
        [
            ("simple", "simple.example.com"),
            ("sni", "other.test"),
            ("names", "names.example.com"),
            ("uri", "uri.example.com"),
            ("unchecked", "unchecked.example.com"),
            ("unchecked-names", "any.test"),
            ("not-revoked", "not-revoked.example.com"),
            ("mutual", "mutual.example.com"),
        ],
    )
    def test_a_plain_request_is_sent_by_tls(self, client: Pod, host: str, sni: str) -> None:
        call = client.get(f"http://{host}.example.com/").call
        assert call is not None
        assert (call.tls, call.sni, call.authority) == (True, sni, f"{host}.example.com")
        assert call.protocol == "HTTP/1.1"

    @pytest.mark.parametrize("host", ["wrong-names", "untrusted", "system", "revoked"])
    def test_a_server_that_is_not_who_it_should_be_is_not_called(self, client: Pod, host: str) -> None:
        reply = client.get(f"http://{host}.example.com/")
        assert (reply.status, reply.call) == (503, None)

    def test_a_request_s_own_host_is_the_name_that_is_asked_for_and_checked(self, client: Pod) -> None:
        call = client.get("http://simple.example.com/").call
        assert call is not None
        assert call.sni == "simple.example.com"

    def test_the_client_s_certificate_is_shown_in_mode_mutual_only(self, client: Pod) -> None:
        shown = [client.get(f"http://{host}.example.com/").call for host in ("mutual", "simple")]
        assert [call.identity for call in shown if call is not None] == [("client.test",), ()]

    def test_disabled_is_plain(self, client: Pod) -> None:
        call = client.get("http://off.example.com/").call
        assert call is not None
        assert not call.tls

    def test_http2_is_negotiated(self, client: Pod) -> None:
        call = client.get("http://http2.example.com/").call
        assert call is not None
        assert (call.tls, call.alpn, call.protocol) == (True, "h2", "HTTP/2")

    @pytest.mark.parametrize(("host", "sni"), [("tcp", ""), ("tcp-sni", "bytes.test")])
    def test_bytes_are_sent_by_tls(self, client: Pod, host: str, sni: str) -> None:
        call = client.tcp(f"{host}.example.com", 9000)
        assert call is not None
        assert (call.tls, call.sni, call.protocol) == (True, sni, "TCP")

    def test_bytes_are_not_sent_to_a_server_of_another_name(self, client: Pod) -> None:
        with contextlib.suppress(ConnectionError):
            assert client.tcp("tcp-names.example.com", 9000) is None


class TestProxyProtocol:
    @pytest.mark.parametrize(("version", "expected"), [("V1", "1"), ("V2", "2"), (None, "1")])
    def test_the_caller_is_named_before_requests_and_bytes(self, mesh: Mesh, version: str | None, expected: str) -> None:
        name = f"named-{version or 'default'}".lower()
        mesh.service(name, ports=[{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 9000}])
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: {name}}}
            spec: {{host: {name}, trafficPolicy: {{proxyProtocol: {{{f"version: {version}" if version else ""}}}}}}}
        """)
        client = mesh.pod(name)
        for call in (client.get(f"http://{name}/").call, client.tcp(name, 9000)):
            assert call is not None
            assert call.proxied == f"{expected} {client.address}"


class TestTunnel:
    """A TCP service's connections are sent through a proxy, by HTTP."""

    def stage(self, mesh: Mesh, name: str, tunnel: str, port: int = 3128) -> Pod:
        proxy = mesh.application(f"{name}-proxy", ports=[3128])
        address = next(mesh.world.virtual_addresses)
        mesh.name(f"{name}.test", address)
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: {name}-target}}
            spec:
              hosts: [{name}.test]
              addresses: [{address}]
              exportTo: ['.']
              ports: [{{name: tcp, number: 9000, protocol: TCP}}]
              resolution: NONE
            ---
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: {name}-proxy}}
            spec:
              hosts: [{name}-proxy.test]
              ports: [{{name: http, number: {port}, protocol: HTTP}}]
              resolution: STATIC
              endpoints: [{{address: {proxy.address}}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: {name}-proxy}}
            spec:
              host: {name}-proxy.test
              subsets: [{{name: tunnel, trafficPolicy: {{tunnel: {tunnel}}}}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: {name}}}
            spec:
              hosts: [{name}.test]
              tcp:
              - match: [{{port: 9000}}]
                route: [{{destination: {{host: {name}-proxy.test, port: {{number: {port}}}, subset: tunnel}}}}]
        """)
        return mesh.pod(name)

    @pytest.mark.parametrize(
        ("name", "tunnel", "authority"),
        [
            ("connect", "{protocol: CONNECT, targetHost: far.example.com, targetPort: 443}", "far.example.com:443"),
            ("unsaid", "{targetHost: 198.51.100.7, targetPort: 9000}", "198.51.100.7:9000"),
        ],
    )
    def test_by_connect(self, mesh: Mesh, name: str, tunnel: str, authority: str) -> None:
        call = self.stage(mesh, name, tunnel).tcp(f"{name}.test", 9000, b"hello")
        assert call is not None
        assert (call.server, call.method, call.authority, call.body) == (f"{name}-proxy", "CONNECT", authority, "hello")

    def test_by_post(self, mesh: Mesh) -> None:
        client = self.stage(mesh, "post", "{protocol: POST, targetHost: far.example.com, targetPort: 443}", POSTS)
        with mesh.world.namespace.listen("0.0.0.0", POSTS) as listening, client.connect("post.test", 9000) as connection:
            connection.sendall(b"hello")
            listening.settimeout(SECONDS)
            made, _ = listening.accept()
            with made, made.makefile("rb") as stream:
                made.settimeout(SECONDS)
                head = [line.decode().strip().lower() for line in iter(stream.readline, b"\r\n")]
                made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
                body = [stream.readline().strip(), stream.readline().strip()]
            assert head[0].startswith("post ")
            assert "host: far.example.com:443" in head
            assert body == [b"5", b"hello"]
            assert connection.recv(2) == b"hi"


class TestCertificatesOfTheMesh:
    """A control plane without an authority of its own has none for its proxies: what asks for them says so, and fails closed."""

    @pytest.fixture
    def client(self, mesh: Mesh) -> Pod:
        return mesh.pod(f"asking-{len(mesh.pods)}", {"app": "asking"})

    @pytest.mark.parametrize(
        ("name", "tls", "selector", "field"),
        [
            ("mesh-tls", "mode: ISTIO_MUTUAL", "", "tls"),
            ("credential", "mode: SIMPLE, credentialName: web", "workloadSelector: {matchLabels: {app: asking}},", "tls.credentialName"),
        ],
    )
    def test_a_rule_that_needs_them_is_told_so_and_nothing_is_sent_in_plain_text(
        self, mesh: Mesh, client: Pod, name: str, tls: str, selector: str, field: str
    ) -> None:
        service = mesh.service(name)
        mesh.service(f"{name}-beside")
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: {name}}}
            spec: {{{selector} host: {name}, trafficPolicy: {{tls: {{{tls}}}}}}}
        """)
        client.settle()
        assert client.get(f"http://{name}/").status == 503
        assert service["v1"].calls == []
        assert client.get(f"http://{name}-beside/").status == 200
        assert [p for p in mesh.problems() if f"DestinationRule {name}." in p and f"$.spec.trafficPolicy.{field}: " in p]

    def test_a_credential_without_workload_selector_is_not_for_sidecars(self, mesh: Mesh, client: Pod) -> None:
        mesh.service("files", ports=PLAIN)
        mesh.apply("""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: files}
            spec: {host: files, trafficPolicy: {tls: {mode: SIMPLE, credentialName: web, insecureSkipVerify: true}}}
        """)
        client.settle()
        call = client.get("http://files/").call
        assert call is not None
        assert call.tls
        assert [p for p in mesh.problems() if "DestinationRule files." in p and "tls.credentialName: " in p]


class TestFilesThatAreNotThere:
    RULES = """
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {{name: absent}}
        spec:
          hosts: [absent.test]
          ports: [{{number: 80, name: http, protocol: HTTP}}]
          resolution: STATIC
          endpoints: [{{address: {address}, ports: {{http: 8443}}}}]
        ---
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: absent}}
        spec: {{host: absent.test, trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {path}}}}}}}
    """

    def test_what_a_proxy_rejects_is_said_of_the_rule_and_harms_no_other(self, mesh: Mesh, world: World) -> None:
        address = mesh.application("absent", ports=[8443]).address
        mesh.service("absent-beside")
        mesh.apply(self.RULES.format(address=address, path="/not/there.pem"))
        client = mesh.pod("absent")

        def said() -> list[str]:
            return [p for p in mesh.problems() if p.startswith(f"DestinationRule absent.{mesh.namespace}: ")]

        (problem,) = eventually(said)
        assert "outbound|80||absent.test is rejected by" in problem
        assert mesh.namespace in problem
        assert "/not/there.pem" in problem
        assert client.get("http://absent.test/").status == 503
        assert client.get("http://absent-beside/").status == 200
        mesh.apply(self.RULES.format(address=address, path=world.authority.path))
        eventually(lambda: client.get("http://absent.test/").status == 200 and not said())
        call = client.get("http://absent.test/").call
        assert call is not None
        assert call.tls
