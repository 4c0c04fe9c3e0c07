"""Two control planes on one machine, in one run, on one scene: `python benchmarks/compare.py --help`.

    python benchmarks/compare.py                                 ours alone
    python benchmarks/compare.py --against /path/to/pilot-discovery
    python benchmarks/compare.py --against-commit HEAD~10

Each is started against the same kube-apiserver, which holds the same objects, and asked by the same swarm. The figures of one machine
mean little elsewhere; the ratios mean more. Raw data goes to `--out` as JSON.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from plot import plot  # noqa: E402
from scene import KINDS, Change, Scene, changes  # noqa: E402
from support.kube import Kube, running  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
QUIET_SECONDS = 0.15  # nothing has come to any proxy for so long: the change is over


@dataclass
class Subject:
    """A control plane to measure: how to start it, and where it listens."""

    name: str
    command: list[str]
    address: str
    ready: str
    debug: str = ""  # where it says what it holds
    env: dict[str, str] = field(default_factory=dict)

    def memory(self) -> Any:
        """What it says that it holds, if it does."""
        if not self.debug:
            return None
        with urllib.request.urlopen(self.debug) as answer:
            return json.load(answer)


def cpu_seconds(pid: int) -> float:
    """The CPU seconds of a process so far, user and system, ended children included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


class Process:
    """A started subject."""

    def __init__(self, subject: Subject, log: Path) -> None:
        with log.open("wb") as out:
            self._process = subprocess.Popen(subject.command, env=os.environ | subject.env, stdout=out, stderr=out)
        self.started = time.monotonic()
        self.subject = subject

    def wait_ready(self, seconds: float = 120) -> float:
        """Seconds from start to ready."""
        while time.monotonic() < self.started + seconds:
            if self._process.poll() is not None:
                raise SystemExit(f"{self.subject.name} ended with {self._process.returncode}")
            try:
                with urllib.request.urlopen(self.subject.ready, timeout=1) as answer:
                    if answer.status == 200:
                        return time.monotonic() - self.started
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"{self.subject.name} was not ready after {seconds:.0f} s")

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self.pid)

    def rss(self) -> float:
        """Resident megabytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE / 1e6

    def peak(self) -> float:
        """The most megabytes that were ever resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Swarm:
    """The load client."""

    def __init__(self, binary: Path, address: str, options: argparse.Namespace, scene: Scene) -> None:
        command = [str(binary), "-address", address, "-proxies", str(options.proxies), "-namespaces", str(scene.namespaces)]
        command += [f"-{flag}" for flag in ("sotw", "pieces") if getattr(options, flag)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self._process.pid)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def build_swarm(folder: Path) -> Path:
    """The swarm's binary, built from the checkout."""
    binary = folder / "swarm"
    subprocess.run(["go", "build", "-o", str(binary), "."], cwd=HERE / "swarm", check=True)
    return binary


def machine_ms() -> float:
    """Milliseconds that a fixed piece of work takes now, of Python and of system calls: virtual machines are not always equally fast."""
    near, far = socket.socketpair()
    with near, far:
        started = time.perf_counter()
        for number in range(10_000):
            near.send(str(number).encode())
            far.recv(16)
        return (time.perf_counter() - started) * 1000


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def measure(
    subject: Subject, kube: Kube, scene: Scene, binary: Path, options: argparse.Namespace, folder: Path, base: int
) -> dict[str, Any]:
    """All figures of one subject. `base` keeps the turns of two subjects apart, since they share the API server."""
    figures: dict[str, Any] = {"name": subject.name, "load_average": os.getloadavg()[0]}
    profiles = None if options.profile is None else options.profile / subject.name
    process = Process(subject, folder / f"{subject.name}.log")
    with ExitStack() as stack:
        stack.callback(lambda: process.stop())
        figures["ready_s"] = process.wait_ready()
        figures["ready_rss_mb"] = process.rss()
        swarm = Swarm(binary, subject.address, options, scene)
        stack.callback(swarm.stop)
        with profiled(process, profiles, "connect"):
            figures["connect"] = _timed(process, swarm, lambda: swarm.ask("connect", seconds=300))
        for kind in options.changes:
            with profiled(process, profiles, kind):
                figures[kind] = play(process, swarm, kube, scene, kind, options, base)
            print(f"  {kind}: p99 {figures[kind].get('p99_ms', float('nan')):.1f} ms", flush=True)
        figures["idle_cpu_s_per_s"] = _idle(process)
        figures["memory"] = subject.memory()
        with profiled(process, profiles, "reconnect"):
            figures["reconnect"] = _timed(process, swarm, lambda: swarm.ask("drop", seconds=300))
        figures["final_rss_mb"] = process.rss()
        figures["swarm_cpu_s"] = swarm.cpu()
        if options.restart:
            swarm.ask("await")
            process.stop()
            process = Process(subject, folder / f"{subject.name}-restarted.log")
            figures["restart_ready_s"] = process.wait_ready()
            figures["restart"] = _timed(process, swarm, lambda: swarm.ask("back", seconds=300))
    return figures


@contextmanager
def profiled(process: Process, folder: Path | None, name: str) -> Iterator[None]:
    """Record where the process spends its CPU time while the block runs, as flame graph data: `NAME.txt` in `folder`."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    recorder = subprocess.Popen(
        ["py-spy", "record", "--pid", str(process.pid), "--native", "--gil", "--rate", "200", "--format", "raw", "--duration", "3600",
         "--output", str(folder / f"{name}.txt")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(2)
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait()


def _timed(process: Process, swarm: Swarm, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it takes until every proxy holds everything."""
    cpu, started = process.cpu(), time.monotonic_ns()
    answer = act()
    times = [(t - started) / 1e9 for t in answer.get("times", [])]
    rss = process.rss()
    swarm.ask("quiet", seconds=QUIET_SECONDS)
    return {
        "p50_s": percentile(times, 0.5), "last_s": max(times, default=float("nan")), "done": answer["done"], "of": answer["proxies"],
        "cpu_s": process.cpu() - cpu, "rss_mb": rss, "peak_rss_mb": process.peak(), "bytes": answer["bytes"],
        "resources": answer["resources"], "refused": answer["refused"], "rejected": answer["rejected"],
    }  # fmt: skip


def _idle(process: Process, seconds: float = 3) -> float:
    cpu = process.cpu()
    time.sleep(seconds)
    return (process.cpu() - cpu) / seconds


def play(process: Process, swarm: Swarm, kube: Kube, scene: Scene, kind: str, options: argparse.Namespace, base: int) -> dict[str, Any]:
    """One kind of change, several times, each awaited by every proxy that is to see it.

    Times count from before the API server is asked to make the change; `write_ms` is when it says that it has. It is asked on one
    connection, as controllers do.
    """
    with kube.connected() as request:
        request("GET", "/readyz")
        return _play(process, swarm, request, scene, kind, options, base)


def _play(
    process: Process, swarm: Swarm, request: Callable[..., Any], scene: Scene, kind: str, options: argparse.Namespace, base: int
) -> dict[str, Any]:
    writes: list[float] = []
    firsts: list[float] = []
    delays: list[float] = []
    lasts: list[float] = []
    received = resources = missing = rejected = 0
    expected = options.proxies // scene.namespaces if scene.scoped else options.proxies
    cpu = 0.0
    speed: list[float] = []
    for turn in range(base, base + options.turns):
        *before, change = changes(scene, kind, turn)
        if change.removal:
            for write in before:
                _write(request, write)
            swarm.ask("quiet", seconds=QUIET_SECONDS)
            before = []
        speed.append(machine_ms())
        swarm.ask("await", type=change.type, name=change.name, text=change.text, removal=change.removal)
        cpu -= process.cpu()
        for write in before:
            _write(request, write)
        started = time.monotonic_ns()
        _write(request, change)
        writes.append((time.monotonic_ns() - started) / 1e6)
        if change.type:
            answer = swarm.ask("result", seconds=30, count=expected)
            took = [(t - started) / 1e6 for t in answer.get("times", [])]
            missing += expected - answer["done"]
            firsts += took[:1]
            delays += took
            lasts += took[-1:]
        counts = swarm.ask("quiet", seconds=QUIET_SECONDS)
        cpu += process.cpu()
        received += counts["bytes"]
        resources += counts["resources"]
        rejected += counts["rejected"]
    times = {
        "write_ms": statistics.median(writes),
        "first_ms": statistics.median(firsts), "p50_ms": statistics.median(delays), "p99_ms": percentile(delays, 0.99),
        "last_ms": max(lasts), "missing": missing, "lasts_ms": lasts,
    } if delays else {}  # fmt: skip
    return times | {
        "cpu_s_per_100": 100 * cpu / options.turns, "bytes_per_proxy": received / options.turns / expected,
        "resources_per_proxy": resources / options.turns / expected, "rejected": rejected, "rss_mb": process.rss(),
        "machine_ms": statistics.median(speed),
    }  # fmt: skip


def _write(request: Callable[..., Any], change: Change) -> None:
    path = change.path
    if change.method == "PATCH":  # a server-side apply by the owner of the fields: what the body leaves out of a list goes
        path += f"?fieldManager={change.manager}&force=true"
    request(change.method, path, change.body)


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures as lines of a table."""
    yield "start to ready, s", figures["ready_s"]
    yield "RSS when ready, MB", figures["ready_rss_mb"]
    for act in ("connect", "reconnect", "restart"):
        if act in figures:
            yield f"{act}: all hold everything, s", figures[act]["last_s"]
            yield f"{act}: CPU, s", figures[act]["cpu_s"]
            yield f"{act}: RSS, MB", figures[act]["rss_mb"]
            yield f"{act}: sent, MB", figures[act]["bytes"] / 1e6
            yield f"{act}: resources", figures[act]["resources"]
            yield f"{act}: refused attempts", figures[act]["refused"]
    for kind in KINDS:
        for name in COLUMNS:
            if name in figures.get(kind, ()):
                yield f"{kind}: {name}", figures[kind][name]
    for what in ("services", "endpoints", "classes", "proxies"):
        if figures["memory"]:
            yield f"memory: bytes each of {figures['memory'][what]['count']} {what}", figures["memory"][what]["bytes_each"]
    yield "idle, CPU s/s", figures["idle_cpu_s_per_s"]
    yield "RSS at the end, MB", figures["final_rss_mb"]
    yield "highest RSS, MB", figures["reconnect"]["peak_rss_mb"]


COLUMNS = (
    "write_ms",
    "first_ms", "p50_ms", "p99_ms", "last_ms", "cpu_s_per_100", "resources_per_proxy", "bytes_per_proxy", "rss_mb", "missing", "rejected",
    "machine_ms",
)  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """Side by side, with the ratio of the second to the first where there are two."""
    lines = [f"{'':38}" + "".join(f"{r['name']:>14}" for r in results) + (f"{'ratio':>10}" if len(results) == 2 else "")]
    columns = [dict(rows(r)) for r in results]
    for name in columns[0]:
        values = [c.get(name, float("nan")) for c in columns]
        ratio = f"{values[1] / values[0]:10.1f}" if len(values) == 2 and values[0] else ""
        lines.append(f"{name:38}" + "".join(f"{v:14.2f}" for v in values) + ratio)
    return "\n".join(lines)


def ours(python: str, kube: Kube, name: str = "xds", env: dict[str, str] | None = None) -> Subject:
    """Our control plane, run by this interpreter."""
    grpc, http = 25010, 25014
    command = [
        python, "-m", "xds", "serve", "--kubeconfig", str(kube.kubeconfig), "--grpc-address", f"127.0.0.1:{grpc}",
        "--http-address", f"127.0.0.1:{http}", "--log-level", "warning",
    ]  # fmt: skip
    own = f"http://127.0.0.1:{http}"
    return Subject(name, command, f"127.0.0.1:{grpc}", f"{own}/readyz", f"{own}/debug/memory", env or {})


def istiod(binary: str, kube: Kube) -> Subject:
    """istiod, with its defaults, on the same API server."""
    command = [
        binary, "discovery", "--kubeconfig", str(kube.kubeconfig), "--grpcAddr", "127.0.0.1:26010", "--httpAddr", "127.0.0.1:26080",
        "--httpsAddr", "", "--secureGRPCAddr", "", "--monitoringAddr", "127.0.0.1:26014",
    ]  # fmt: skip
    env = {"POD_NAMESPACE": "istio-system", "INJECTION_WEBHOOK_CONFIG_NAME": "", "VALIDATION_WEBHOOK_CONFIG_NAME": ""}
    return Subject("istiod", command, "127.0.0.1:26010", "http://127.0.0.1:26080/ready", env=env)


@contextmanager
def older(commit: str, folder: Path) -> Iterator[str]:
    """An interpreter that has our package as it was at `commit`."""
    tree = folder / "older"
    subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=HERE.parent, check=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(tree / ".venv")], check=True)
        subprocess.run([str(tree / ".venv/bin/pip"), "install", "-q", str(tree)], check=True)
        yield str(tree / ".venv/bin/python")
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=HERE.parent, check=True)


def create(kube: Kube, scene: Scene) -> None:
    """Write the scene's objects: the namespaces, then what is in them."""
    objects = list(scene.objects())
    print(f"writing {len(objects)} objects", flush=True)
    kube.create_all(objects[: scene.namespaces], writers=4)
    kube.create_all(objects[scene.namespaces :], writers=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--namespaces", type=int, default=50)
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--scoped", action="store_true", help="a Sidecar in every namespace that shows its own services only")
    parser.add_argument("--proxies", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=20, help="how often each change is made")
    parser.add_argument("--sotw", action="store_true", help="proxies ask for the state of the world instead of differences")
    parser.add_argument("--pieces", action="store_true", help="proxies ask for their route tables' virtual hosts one by one")
    parser.add_argument("--restart", action="store_true", help="at the end, restart the control plane under its proxies")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="record each part with py-spy, as data for flame graphs")
    parser.add_argument("--changes", nargs="*", default=list(KINDS), choices=KINDS)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--against", metavar="PILOT_DISCOVERY", help="istiod's binary")
    other.add_argument("--against-commit", metavar="COMMIT", help="our own code at an older commit")
    parser.add_argument("--out", type=Path, help="where the raw data goes, and beside it, as .svg, a plot")
    options = parser.parse_args()
    scene = Scene(options.services, options.endpoints, options.namespaces, options.rules, options.scoped, options.pieces)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xds-compare-")))
        binary = build_swarm(folder)
        kube = stack.enter_context(running(folder))
        create(kube, scene)
        subjects = [ours(sys.executable, kube)]
        if options.against:
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}
            kube.request("POST", "/api/v1/namespaces", namespace)  # it keeps its leases and its CA there, and is not ready without
            subjects.append(istiod(options.against, kube))
        if options.against_commit:
            subjects.append(ours(stack.enter_context(older(options.against_commit, folder)), kube, options.against_commit))
        results = []
        for number, subject in enumerate(subjects):
            print(f"measuring {subject.name}", flush=True)
            results.append(measure(subject, kube, scene, binary, options, folder, number * options.turns))
        print(table(results))
        if options.out:
            options.out.write_text(json.dumps({"scene": asdict(scene), "proxies": options.proxies, "results": results}, indent=2))
            options.out.with_suffix(".svg").write_text(plot(results))


if __name__ == "__main__":
    main()
