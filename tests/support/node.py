"""A whole Kubernetes node for tests: real pods, on one machine, without a registry, without systemd, and without a trace.

Everything runs in namespaces of its own: of processes, mounts and the network. Ending the first of its processes ends all, containers
and their shims too, and takes every mount, link and rule away. Needs root and Debian's containerd, runc,
containernetworking-plugins, iptables, nftables, conntrack and busybox-static; gcc for one of our images.

Learned by trying: Kubernetes 1.34 is the newest whose kubelet runs on cgroup v1; a machine without CAP_SYS_RESOURCE needs
`restrict_oom_score_adj`; images are looked up by their full names, and only those with a tag are not pulled first.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.certificates import Authority
from support.kube import binary, poll

IMAGES = Path(__file__).parents[2] / "deploy" / "image" / "build.py"
ADDRESS, PODS, SERVICES, DNS = "10.88.0.1", "10.88.0.0/16", "10.96.0.0/16", "10.96.0.10"
COMMANDS = ("containerd", "runc", "ctr", "iptables", "nft", "conntrack", "busybox", "unshare", "nsenter", "gcc")
PACKAGES = "containerd runc containernetworking-plugins iptables nftables conntrack busybox-static util-linux gcc libc6-dev"
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns", "helm")
CTR = ("ctr", "-a", "/run/xds/containerd.sock", "-n", "k8s.io")
PLUGINS = Path("/usr/lib/cni")
CGROUPS = Path("/sys/fs/cgroup")


def available() -> bool:
    """Whether this machine lets the test make a node."""
    return os.geteuid() == 0 and all(map(shutil.which, COMMANDS)) and (PLUGINS / "bridge").exists()


class Node:
    """The node and its control plane. `directory` holds all its state; `logs` are there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self.logs = directory / "logs"
        self._init: subprocess.Popen[bytes] | None = None
        self._pid = 0  # of the first process, as this machine numbers it
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._group = directory.name  # the cgroup of its containers, in every hierarchy

    # Its life

    def start(self) -> None:
        """Start everything; returns when the node is Ready and names resolve."""
        for hierarchy in _hierarchies():
            (hierarchy / self._group).mkdir()
        for folder in ("logs", "cni", "cni-programs", "kubelet", "lib-cni", "pod-logs", "images"):
            (self.directory / folder).mkdir()
        for plugin in PLUGINS.iterdir():
            (self.directory / "cni-programs" / plugin.name).symlink_to(plugin)
        self._certificates()
        self._configurations()
        self._unshare()
        etcd = "http://127.0.0.1:2379"
        peers = (
            "--listen-peer-urls=http://127.0.0.1:2380",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )
        self._run("etcd", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}", *peers)
        self._run("kube-apiserver", f"--etcd-servers={etcd}", *self._api_server_flags())
        self._run_path("containerd", "--config", str(self.directory / "containerd.toml"))
        poll(self._api_server_ready, "the API server", seconds=120)
        own = ("--kubeconfig", str(self.kubeconfig), "--leader-elect=false")
        keys = self.directory / "certificates"
        self._run(
            "kube-controller-manager", *own, "--use-service-account-credentials", f"--root-ca-file={keys / 'ca.pem'}",
            f"--service-account-private-key-file={keys / 'accounts.key'}",
        )  # fmt: skip
        self._run("kube-scheduler", *own)
        poll(lambda: self.inside(*CTR, "version", check=False).returncode == 0, "containerd", seconds=120)
        self._own_images()
        self._kubelet()
        self._run("kube-proxy", f"--config={self.directory / 'kube-proxy.yaml'}")
        poll(self._ready, "the node to be Ready", seconds=120)
        self.apply(DNS_SERVER)
        self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")

    def stop(self) -> None:
        """End every process in it, and remove what outlives processes: files and cgroups."""
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid or self._init.pid, signal.SIGKILL)
            self._init.wait(120)
        for process in self._processes.values():
            process.kill()
            process.wait(120)
        poll(self._without_cgroups, "the cgroups of its containers to go", seconds=120)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _without_cgroups(self) -> bool:
        """Remove the cgroups of its containers. Those with a process that has not gone yet cannot be removed yet."""
        roots = [hierarchy / self._group for hierarchy in _hierarchies()]
        for root in roots:
            for group in sorted((root, *root.rglob("*")), reverse=True):
                with contextlib.suppress(OSError):
                    group.rmdir()
        return not any(root.exists() for root in roots)

    # What tests do with it

    def inside(self, *command: str | Path, stdin: str = "", check: bool = True, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespaces. AssertionError with what it says where it fails, unless `check` is false."""
        done = subprocess.run(self._entering(*command), input=stdin, capture_output=True, text=True, check=False, timeout=seconds)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, command))}: {done.stderr.strip()}\n{done.stdout.strip()}")
        return done

    def start_inside(self, *command: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command in the node's namespaces; it ends with the node at the latest."""
        return subprocess.Popen(self._entering(*command), **options)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What `kubectl` prints, run as the administrator."""
        return self.inside(binary("kubectl"), "--kubeconfig", self.kubeconfig, *arguments, stdin=stdin).stdout

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` finds, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, manifest: str) -> None:
        """`kubectl apply` of YAML documents."""
        self.kubectl("apply", "-f", "-", stdin=manifest)

    def load(self, archive: Path) -> None:
        """Make an image known to the node."""
        self.inside(*CTR, "images", "import", "--all-platforms", archive)

    def tag(self, image: str, tag: str) -> None:
        """Make an image known by another tag as well."""
        self.inside(*CTR, "images", "tag", "--force", image, f"{image.rpartition(':')[0]}:{tag}")

    def crash(self, namespace: str, pod: str, *containers: str) -> None:
        """Kill what runs in these containers of a pod, without a word."""
        for container in containers:
            labels = {"pod.namespace": namespace, "pod.name": pod, "container.name": container}
            wanted = ",".join(f'labels."io.kubernetes.{name}"=={value}' for name, value in labels.items())
            running = {line.split()[0] for line in self.inside(*CTR, "tasks", "ls").stdout.splitlines() if "RUNNING" in line}
            (found,) = running & set(self.inside(*CTR, "containers", "ls", "-q", wanted).stdout.split())
            self.inside(*CTR, "tasks", "kill", "--signal", "SIGKILL", found)

    def restart_kubelet(self) -> None:
        """End the kubelet, and start another; returns when that has said that the node is alive, and knows its pods."""

        def alive() -> str:
            renewed: str = self.get("lease", "-n", "kube-node-lease", "node-1")["spec"]["renewTime"]
            return renewed

        def known() -> bool:
            pods = json.loads(self.kubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/pods"))["items"] or ()
            return len(pods) >= len(self.get("pods", "-A")["items"])

        entered = self._processes.pop("kubelet")
        (kubelet,) = _children(entered.pid)
        os.kill(kubelet, signal.SIGTERM)
        entered.wait(60)
        last = alive()
        self._kubelet()
        self.until(lambda: alive() != last and known(), "the new kubelet")

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """What `condition` returns once that is true. With the state of all pods in the error when it is not in time."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s for {what}\n{self.state()}")
            time.sleep(0.2)
        return value

    def state(self) -> str:
        """All pods, and what has happened to them lately."""
        return self.inside(binary("kubectl"), "--kubeconfig", self.kubeconfig, "get", "pods,events", "-A", check=False).stdout[-8000:]

    # Its parts

    def _unshare(self) -> None:
        mounts = [
            ("/run", None), ("/var/lib/cni", "lib-cni"), ("/var/log/pods", "pod-logs"), ("/etc/cni/net.d", "cni"),
            ("/opt/cni/bin", "cni-programs"),
        ]  # fmt: skip
        program = ["set -e"]
        for path, folder in mounts:
            program.append(f"mkdir -p {path}")
            program.append(f"mount --bind {self.directory / folder} {path}" if folder else f"mount -t tmpfs none {path}")
        program += [
            "mkdir -p /run/xds /run/lock",
            "ip link set lo up",
            "ip link add xds0 type bridge",
            f"ip address add {ADDRESS}/16 dev xds0",
            "ip link set xds0 up",
            f"ip route add default via {ADDRESS}",  # kube-proxy and kubelet look for one; it leads nowhere
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            f"touch {self.directory / 'begun'}",
            # The first process takes in what others leave behind.
            "while :; do sleep 3600 & wait $!; done",
        ]
        with (self.logs / "init").open("wb") as log:
            self._init = subprocess.Popen(
                ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", "\n".join(program)],
                stdout=log, stderr=log,
            )  # fmt: skip
        poll(self._begun, "namespaces")
        self._pid = _children(self._init.pid)[0]

    def _begun(self) -> bool:
        assert self._init is not None
        assert self._init.poll() is None, (self.logs / "init").read_text()
        return (self.directory / "begun").exists()

    def _entering(self, *command: str | Path) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--mount", "--net", "--pid", *map(str, command)]

    def _kubelet(self) -> None:
        root = self.directory / "kubelet"
        self._run(
            "kubelet", f"--kubeconfig={self.directory / 'node.kubeconfig'}", f"--config={self.directory / 'kubelet.yaml'}",
            "--hostname-override=node-1", f"--node-ip={ADDRESS}", f"--root-dir={root}", f"--cert-dir={root / 'pki'}",
        )  # fmt: skip

    def _run(self, name: str, *flags: str) -> None:
        self._run_path(name, *flags, path=binary(name))

    def _run_path(self, name: str, *flags: str, path: str | Path = "") -> None:
        with (self.logs / name).open("wb") as log:
            self._processes[name] = self.start_inside(path or name, *flags, stdout=log, stderr=log, cwd=self.directory)

    def _alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}:\n{(self.logs / name).read_text()[-3000:]}")

    def _api_server_ready(self) -> bool:
        self._alive()
        return self.inside(binary("kubectl"), "--kubeconfig", self.kubeconfig, "get", "--raw", "/readyz", check=False).returncode == 0

    def _ready(self) -> bool:
        self._alive()
        done = self.inside(binary("kubectl"), "--kubeconfig", self.kubeconfig, "get", "node", "node-1", "-o", "json", check=False)
        if done.returncode:
            return False
        conditions = json.loads(done.stdout)["status"].get("conditions", ())
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _certificates(self) -> None:
        keys = self.directory / "certificates"
        keys.mkdir()
        authority = Authority(keys, "ca")
        services = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        authority.sign("api", "127.0.0.1", ADDRESS, "10.96.0.1", *services)
        authority.sign("kubelet-client", "client", organization="system:masters")
        authority.sign("accounts", "accounts")
        for user, subject, group in (("admin", "admin", "system:masters"), ("node", "system:node:node-1", "system:nodes")):
            certificate, key = authority.sign(subject, "node-1", "127.0.0.1", ADDRESS, organization=group)
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {"name": "test", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority": str(authority.path)}}
                ],
                "users": [{"name": user, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
                "current-context": "test",
            }
            (self.directory / f"{user}.kubeconfig").write_text(yaml.safe_dump(config))

    def _api_server_flags(self) -> list[str]:
        keys = self.directory / "certificates"
        return [
            "--secure-port=6443", f"--advertise-address={ADDRESS}", f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            f"--tls-cert-file={keys / 'api.pem'}", f"--tls-private-key-file={keys / 'api.key'}", f"--client-ca-file={keys / 'ca.pem'}",
            f"--service-account-key-file={keys / 'accounts.pem'}", f"--service-account-signing-key-file={keys / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc", "--allow-privileged",
            f"--kubelet-client-certificate={keys / 'kubelet-client.pem'}", f"--kubelet-client-key={keys / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
        ]  # fmt: skip

    def _configurations(self) -> None:
        keys, here = self.directory / "certificates", self.directory
        bridge = {
            "type": "bridge", "bridge": "xds0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": PODS, "rangeStart": "10.88.0.10"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }  # fmt: skip
        (here / "cni" / "10-pods.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}))
        (here / "containerd.toml").write_text(
            f"""version = 2
root = "{here}/containerd"
state = "/run/xds/state"
[grpc]
  address = "/run/xds/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
        )
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(keys / "ca.pem")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(keys / "system-node-node-1.pem"), "tlsPrivateKeyFile": str(keys / "system-node-node-1.key"),
            "containerRuntimeEndpoint": "unix:///run/xds/containerd.sock", "cgroupDriver": "cgroupfs", "cgroupsPerQOS": False,
            "cgroupRoot": f"/{self._group}",
            "enforceNodeAllocatable": [], "failCgroupV1": False, "failSwapOn": False, "localStorageCapacityIsolation": False,
            "clusterDNS": [DNS], "clusterDomain": "cluster.local", "maxPods": 250, "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
            "volumePluginDir": str(here / "kubelet" / "plugins"), "syncFrequency": "10s",
        }  # fmt: skip
        (here / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "clientConnection": {"kubeconfig": str(self.kubeconfig)}, "clusterCIDR": PODS, "hostnameOverride": "node-1",
            "conntrack": {"maxPerCore": 0},
        }  # fmt: skip
        (here / "kube-proxy.yaml").write_text(yaml.safe_dump(proxy))

    def _own_images(self) -> None:
        """The images of Kubernetes itself: what holds a pod's namespaces, and cluster DNS."""
        write = _image_writer()
        for name, program, entry in (
            ("localhost/pause:1", Path(shutil.which("busybox") or ""), ["/busybox", "sleep", "1000000000"]),
            ("localhost/coredns:1", binary("coredns"), ["/coredns"]),
        ):
            with tempfile.TemporaryDirectory() as root:
                shutil.copy(program, Path(root, program.name))
                archive = self.directory / "images" / "image.tar"
                write(archive, Path(root), name, {"Entrypoint": entry})
            self.load(archive)
            archive.unlink()


def _children(pid: int) -> list[int]:
    """The processes that a process has started, in order, as this machine numbers them."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _image_writer() -> Callable[..., None]:
    """`write` of `deploy/image/build.py`."""
    import importlib.util

    specification = importlib.util.spec_from_file_location("image_build", IMAGES)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    write: Callable[..., None] = module.write
    return write


def _hierarchies() -> list[Path]:
    """Where cgroups are made: one folder for each controller (cgroup v1), or one for all."""
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]


@contextmanager
def running() -> Iterator[Node]:
    """A node of its own until the block ends."""
    node = Node(Path(tempfile.mkdtemp(prefix="xds-node-")))
    try:
        node.start()
        yield node
    finally:
        node.stop()


DNS_SERVER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [services, namespaces, pods, endpoints], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        health
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa
        cache 5
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      dnsPolicy: Default
      containers:
      - name: coredns
        image: localhost/coredns:1
        args: [-conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {k8s-app: kube-dns}
  clusterIP: 10.96.0.10
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
"""
