"""One Envoy whose listener has the virtual hosts of many VirtualServices inline, and the servers they lead to.

Tests register rules when their module is imported and call them when Envoy runs: `rule` gives each its own host name, `Rig.call`
sends a request to it. The servers answer with what they got, as JSON, and do what the request's headers ask for.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import msgspec
import yaml
from support.cluster_rig import Envoy
from support.seen import Seen

from xds import pb
from xds.envoy import routes
from xds.envoy.filters import Chain
from xds.envoy.filters.connection_manager import connection_manager
from xds.mesh.model import Client, Protocol, Routing, Service
from xds.objects import VirtualService
from xds.objects.meta import decode_hook

CLIENT = Client("default", labels=(("app", "caller"), ("version", "v1")))
PORT = 80


def virtual_service(http: str, host: str, namespace: str = "default") -> VirtualService:
    """A VirtualService named `rule` whose `http` is this YAML list."""
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "rule", "namespace": namespace},
        "spec": {"hosts": [host], "http": yaml.load(http, yaml.CSafeLoader)},
    }
    return msgspec.convert(document, VirtualService, dec_hook=decode_hook)


class Reply(msgspec.Struct):
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def seen(self) -> dict[str, Any]:
        """What the server saw: its name, the method, the path, the host and the headers (lower case, lists)."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def server(self) -> str:
        """Which server answered; the status where none did."""
        return str(self.seen["server"]) if self.headers.get("x-server") else str(self.status)


class Server(ThreadingHTTPServer):
    """Answers with what it got. A request may ask with headers:

    `x-wait`: seconds to wait before the answer. `x-answers`: statuses for the first try, the second and so on, the last for all
    later ones; `reset` drops the connection. `x-respond`: JSON of headers to add to the answer.
    """

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.requests: list[dict[str, Any]] = []
        self.came = threading.Condition()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def got(self, key: str, count: int = 1, seconds: float = 60) -> list[dict[str, Any]]:
        """The requests with `x-key: key`, once `count` of them have come; AssertionError when they don't."""

        def found() -> list[dict[str, Any]]:
            return [r for r in self.requests if r["headers"].get("x-key") == [key]]

        with self.came:
            if not self.came.wait_for(lambda: len(found()) >= count, seconds):
                raise AssertionError(f"{self.name} got {len(found())} requests of {key}, not {count}")
            return found()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, of which the second would wait 40 ms for the first's ACK
    server: Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True  # the proxy hung up: its timeouts and retries do

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        headers: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        attempt = int(self.headers.get("x-envoy-attempt-count", 1))
        seen = {
            "server": self.server.name,
            "method": self.command,
            "path": self.path,
            "host": self.headers.get("host"),
            "headers": headers,
            "body": body.decode(),
            "attempt": attempt,
        }
        with self.server.came:
            self.server.requests.append(seen)
            self.server.came.notify_all()
        if wait := self.headers.get("x-wait"):
            time.sleep(float(wait))
        answers = self.headers.get("x-answers", "200").split(",")
        status = answers[min(attempt, len(answers)) - 1]
        if status == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        content = json.dumps(seen).encode()
        self.send_response_only(int(status))
        self.send_header("x-server", self.server.name)
        self.send_header("content-length", str(len(content)))
        for name, value in json.loads(self.headers.get("x-respond", "{}")).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class Rules:
    """The rules of a test module. `view` is the mesh they are in; `clusters` says which server is behind which cluster."""

    def __init__(self, view: Seen, clusters: dict[str, tuple[str, ...]]) -> None:
        self.view = view
        self.clusters = clusters
        self.virtual_hosts: list[pb.VirtualHost] = []

    def rule(self, http: str, *, client: Client = CLIENT, namespace: str = "default") -> str:
        """Register a VirtualService with these `http` rules; the host to call."""
        host = f"rule-{len(self.virtual_hosts)}.test"
        service = virtual_service(http, host, namespace)
        made = routes.rule_virtual_host(self.view, client, host, Routing(service, (service.ref,)), PORT)
        if made is None:
            raise AssertionError("no route of this rule applies")
        self.virtual_hosts.append(made)
        return host

    def service(self, service: Service, *, client: Client = CLIENT) -> None:
        """Register a service of the view, where it has the port of the table."""
        port = service.port(PORT)
        made = None if port is None else routes.service_virtual_host(self.view, client, service, port)
        if made is not None:
            self.virtual_hosts.append(made)


class Rig:
    """The running Envoy and servers."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        names = dict.fromkeys(name for group in rules.clusters.values() for name in group)
        self.servers = {name: Server(name) for name in names}
        self.port = 0

    def __enter__(self) -> Self:
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.envoy = Envoy(self._bootstrap())
        self.envoy.__enter__()
        self.envoy.eventually(lambda: "outbound" in self.envoy.ports())
        self.port = self.envoy.ports()["outbound"]
        return self

    def __exit__(self, *_: object) -> None:
        self.envoy.__exit__()
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def call(
        self, host: str, path: str = "/", method: str = "GET", body: str | None = None, **headers: str | list[str]
    ) -> Reply:
        """The answer to one request. Header names have underscores for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        started = time.monotonic()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("host", host)
            for name, value in headers.items():
                for one in [value] if isinstance(value, str) else value:
                    connection.putheader(name.replace("_", "-"), one)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body.encode() if body is not None else None)
            response = connection.getresponse()
            content = response.read()
            return Reply(response.status, response.headers, content, time.monotonic() - started)
        finally:
            connection.close()

    def _bootstrap(self) -> pb.Bootstrap:
        header = routes.route_configuration_header("80").SerializeToString()
        table = pb.RouteConfiguration.FromString(
            routes.join(header, [host.SerializeToString() for host in self.rules.virtual_hosts])
        )
        chain = Chain(inbound=False, config=self.rules.view.config, client=CLIENT, protocol=Protocol.HTTP, port=PORT)
        hashed = {name for host in self.rules.virtual_hosts for route in host.routes for name in _hashed(route)}
        clusters = [
            pb.Cluster(
                name=name,
                type="STATIC",
                lb_policy="RING_HASH" if name in hashed else "ROUND_ROBIN",
                connect_timeout={"seconds": 2},
                load_assignment={
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [_endpoint(self.servers[server].port) for server in servers]}],
                },
            )
            for name, servers in self.rules.clusters.items()
        ]
        return pb.Bootstrap(
            static_resources={
                "clusters": clusters,
                "listeners": [
                    {
                        "name": "outbound",
                        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                        "filter_chains": [{"filters": [connection_manager(chain, "outbound", table)]}],
                    }
                ],
            },
        )


def _hashed(route: pb.Route) -> Iterator[str]:
    """The cluster that a route sends requests to by their hash, if it does."""
    if route.route.hash_policy:
        yield route.route.cluster


def _endpoint(port: int) -> Any:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
