"""A real Kubernetes API server for tests: etcd and kube-apiserver on loopback, started in about two seconds.

There is no kubelet and no controller manager: tests write Pods with their status and EndpointSlices themselves. The binaries are
found as envtest finds them (`KUBEBUILDER_ASSETS`, then `PATH`), then in the cache that `kubernetes-binaries.sh` fills; what is
missing is built by it, once.
"""

import base64
import functools
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import yaml

VERSION = "1.34.4"
BUILD = Path(__file__).with_name("kubernetes-binaries.sh")


def binary(name: str) -> Path:
    """Where `name` is: etcd, kube-apiserver, kubectl, or istio-crds.yaml. Built when it is nowhere, which takes minutes."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        candidate = Path(assets) / name
        if candidate.exists():
            return candidate
    if found := shutil.which(name):
        return Path(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xds" / f"kubernetes-{VERSION}"
    if not (cache / name).exists():
        subprocess.run([BUILD, cache, name], check=True)
    return cache / name


class Kube:
    """One API server and its etcd. `kubeconfig` is the administrator's; that of `reader` is of a user who may do nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reserved: list[socket.socket] = []
        self._context: ssl.SSLContext | None = None

    def start(self) -> None:
        """Start both and wait until the API server is ready."""
        self.port, self._etcd_port, self._peer_port = (self._reserve_port() for _ in range(3))
        (self.directory / "tokens.csv").write_text('admin,admin,admin,"system:masters"\nreader,reader,reader\n')
        (self.directory / "service-accounts.key").write_text(_ec_private_key())
        for user in ("admin", "reader"):
            self.write_kubeconfig(self.kubeconfig_of(user), user)
        etcd = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._run(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--socket-reuse-port",
            "--log-level=warn",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self.start_api_server()

    def start_api_server(self) -> None:
        """Start the API server on the same port and the data that etcd holds, and wait until it is ready."""
        keys = self.directory / "service-accounts.key"
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--etcd-compaction-interval=0",  # `compact` does it
            f"--secure-port={self.port}",
            "--permit-port-sharing",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={self.directory / 'certs'}",  # where it puts the certificate that it makes for itself
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the accounts that pods would wait for
            "--allow-privileged",
        )
        poll(self._is_ready, "kube-apiserver to be ready", seconds=120)

    @property
    def is_running(self) -> bool:
        """Whether there is an API server now."""
        return "kube-apiserver" in self._processes

    def kill_api_server(self) -> None:
        """End the API server at once, as a crash would; etcd stays."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End both. The API server waits for open watches for up to a minute, so it is killed."""
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()
        self._processes.clear()
        for reserved in self._reserved:
            reserved.close()

    def kubeconfig_of(self, user: str) -> Path:
        """The kubeconfig of `admin` or `reader`."""
        return self.directory / f"{user}.kubeconfig"

    def write_kubeconfig(self, path: Path, user: str = "admin", *, port: int | None = None, token: str | None = None) -> Path:
        """Write another kubeconfig for `user`: by way of a `port` that forwards to the API server, or with another token."""
        certificates = self.directory / "certs" / "apiserver.crt"  # its issuer is in the same file
        cluster = {"server": f"https://127.0.0.1:{port or self.port}", "certificate-authority": str(certificates)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token or user}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def kubectl(self, *args: str, stdin: str = "") -> str:
        """What `kubectl` prints, run as the administrator. Its own message is in the error when it fails."""
        return self._kubectl(args, stdin).stdout

    def kubectl_warnings(self, *args: str, stdin: str = "") -> str:
        """What `kubectl` says beside what it prints."""
        return self._kubectl(args, stdin).stderr

    def _kubectl(self, args: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubectl")}
        done = subprocess.run(
            [binary("kubectl"), *args], input=stdin, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done

    def apply(self, manifest: str) -> None:
        """`kubectl apply` of YAML documents."""
        self.kubectl("apply", "-f", "-", stdin=manifest)

    def namespace(self) -> str:
        """A new namespace for one test."""
        created = self.request("POST", "/api/v1/namespaces", {"metadata": {"generateName": "test-"}})
        return str(created["metadata"]["name"])

    def apply_crds(self, *plurals: str) -> None:
        """Install Istio's CRDs, or those of `plurals` only, and wait until their resources are served."""
        crds = [crd for crd in yaml.load_all(binary("istio-crds.yaml").read_bytes(), yaml.CSafeLoader) if crd]
        wanted = [crd for crd in crds if not plurals or crd["spec"]["names"]["plural"] in plurals]
        for crd in wanted:
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            self.request("PATCH", f"{path}/{crd['metadata']['name']}?fieldManager=tests&force=true", crd)
        for crd in wanted:
            spec = crd["spec"]
            served = [version["name"] for version in spec["versions"] if version["served"]]
            paths = [f"/apis/{spec['group']}/{version}/{spec['names']['plural']}" for version in served]
            poll(functools.partial(self._are_served, paths), f"{spec['names']['plural']} to be served")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to one API request, decoded. A PATCH is a server-side apply."""
        with self.connected() as request:
            return request(method, path, body)

    @contextmanager
    def connected(self) -> Iterator[Callable[..., Any]]:
        """`request`, on one connection for as long as the block runs."""
        with closing(self._connection()) as connection:
            yield functools.partial(self._send, connection)

    def create_all(self, objects: Iterable[tuple[str, Any]], writers: int = 8) -> None:
        """POST many objects, each to its path, over a few connections at once."""
        todo = list(objects)

        def write(part: list[tuple[str, Any]]) -> None:
            with self.connected() as request:
                for path, body in part:
                    request("POST", path, body)

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, [todo[i::writers] for i in range(writers)]))

    def compact(self) -> None:
        """Drop etcd's history, so that a watch can no longer resume from before."""
        revision = self._etcd("/v3/kv/range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
        self._etcd("/v3/kv/compaction", {"revision": revision, "physical": True})

    def _reserve_port(self) -> int:
        """A port that stays ours while we live: others share it only with SO_REUSEPORT, which our servers are told to use."""
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        self._reserved.append(reserved)
        port: int = reserved.getsockname()[1]
        return port

    def _run(self, name: str, *flags: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen([binary(name), *flags], stdout=log, stderr=log, cwd=self.directory)

    def _is_ready(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.directory / f"{name}.log").read_text()[-2000:]
                raise AssertionError(f"{name} ended with {process.returncode}:\n{log}")
        try:
            return bool(self.request("GET", "/readyz") == "ok")
        except (OSError, AssertionError):
            return False

    def _are_served(self, paths: Iterable[str]) -> bool:
        try:
            for path in paths:
                self.request("GET", f"{path}?limit=1")
        except AssertionError:
            return False
        return True

    def _connection(self) -> HTTPSConnection:
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self.directory / "certs" / "apiserver.crt")
            self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the API server's own certificate lacks key identifiers
        return HTTPSConnection("127.0.0.1", self.port, context=self._context, timeout=60)

    @staticmethod
    def _send(connection: HTTPSConnection, method: str, path: str, body: Any = None) -> Any:
        content_type = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        headers = {"Authorization": "Bearer admin", "Content-Type": content_type}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
        if response.status >= 300:
            raise AssertionError(f"{method} {path}: {response.status} {data.decode(errors='replace')[:500]}")
        return json.loads(data) if response.headers.get_content_type() == "application/json" else data.decode()

    def _etcd(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._etcd_port}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


def poll(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """What `condition` returns once that is true; fails when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.02)
    return value


@contextmanager
def running(directory: Path) -> Iterator[Kube]:
    """An API server of its own, with Istio's CRDs, until the block ends."""
    kube = Kube(directory)
    try:
        kube.start()
        kube.apply_crds()
        yield kube
    finally:
        kube.stop()


def _ec_private_key() -> str:
    """A P-256 key in PEM (RFC 5915), for the API server to sign service account tokens with."""
    der = bytes.fromhex("30310201010420") + b"\x01" + os.urandom(31) + bytes.fromhex("a00a06082a8648ce3d030107")
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.b64encode(der).decode()}\n-----END EC PRIVATE KEY-----\n"
