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
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from scene import KINDS, Change, Scene, changes  # noqa: E402
from support.kube import Kube, running  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Subject:
    """A control plane to measure: how to start it, and where it listens."""

    name: str
    command: list[str]
    address: str
    ready: str
    env: dict[str, str] = field(default_factory=dict)


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

    def cpu(self) -> float:
        """CPU seconds so far, children included."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS

    def rss(self) -> float:
        """Resident megabytes."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * PAGE / 1e6

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Swarm:
    """The load client."""

    def __init__(self, binary: Path, address: str, proxies: int, namespaces: int) -> None:
        command = [str(binary), "-address", address, "-proxies", str(proxies), "-namespaces", str(namespaces)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def build_swarm(folder: Path) -> Path:
    """The swarm's binary, built from the checkout."""
    binary = folder / "swarm"
    subprocess.run(["go", "build", "-o", str(binary), "."], cwd=HERE / "swarm", check=True)
    return binary


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def measure(
    subject: Subject, kube: Kube, scene: Scene, binary: Path, options: argparse.Namespace, logs: Path, base: int
) -> dict[str, Any]:
    """All figures of one subject. `base` keeps the turns of two subjects apart, since they share the API server."""
    figures: dict[str, Any] = {"name": subject.name}
    process = Process(subject, logs / f"{subject.name}.log")
    with ExitStack() as stack:
        stack.callback(process.stop)
        figures["ready_s"] = process.wait_ready()
        figures["ready_rss_mb"] = process.rss()
        swarm = Swarm(binary, subject.address, options.proxies, scene.namespaces)
        stack.callback(swarm.stop)
        figures["connect"] = _timed(process, lambda: swarm.ask("connect", seconds=300))
        for kind in options.changes:
            figures[kind] = play(process, swarm, kube, scene, kind, options, base)
        figures["idle_cpu_s_per_s"] = _idle(process)
        figures["reconnect"] = _timed(process, lambda: swarm.ask("drop", seconds=300))
        figures["final_rss_mb"] = process.rss()
    return figures


def _timed(process: Process, act: Any) -> dict[str, Any]:
    cpu, started = process.cpu(), time.monotonic_ns()
    answer = act()
    last = (answer["times"][-1] - started) / 1e9 if answer.get("times") else None
    return {
        "last_s": last, "done": answer["done"], "of": answer["proxies"], "cpu_s": process.cpu() - cpu, "rss_mb": process.rss(),
        "bytes": answer["bytes"], "resources": answer["resources"], "refused": answer["refused"],
    }  # fmt: skip


def _idle(process: Process, seconds: float = 3) -> float:
    cpu = process.cpu()
    time.sleep(seconds)
    return (process.cpu() - cpu) / seconds


def play(
    process: Process, swarm: Swarm, kube: Kube, scene: Scene, kind: str, options: argparse.Namespace, base: int
) -> dict[str, Any]:
    """One kind of change, several times, each awaited by every proxy that is to see it."""
    delays: list[float] = []
    lasts: list[float] = []
    received = resources = missing = 0
    expected = options.proxies // scene.namespaces if scene.scoped else options.proxies
    cpu = process.cpu()
    for turn in range(base, base + options.turns):
        *before, change = changes(scene, kind, turn)
        for write in before:
            _write(kube, write)
        swarm.ask("await", type=change.type, name=change.name, text=change.text)
        started = time.monotonic_ns()
        _write(kube, change)
        answer = swarm.ask("result", seconds=30, count=expected)
        took = [(t - started) / 1e6 for t in answer.get("times", [])]
        missing += expected - answer["done"]
        delays += took
        lasts += took[-1:]
        time.sleep(options.pause)
        counts = swarm.ask("counts")
        received += counts["bytes"]
        resources += counts["resources"]
    return {
        "p50_ms": statistics.median(delays), "p99_ms": percentile(delays, 0.99), "last_ms": max(lasts),
        "cpu_s_per_100": 100 * (process.cpu() - cpu) / options.turns, "bytes_per_proxy": received / options.turns / expected,
        "resources_per_proxy": resources / options.turns / expected, "missing": missing,
    }  # fmt: skip


def _write(kube: Kube, change: Change) -> None:
    path, body = change.path, change.body
    if change.method == "PATCH":  # a server-side apply by the owner of the fields: what the body leaves out of a list goes
        path += "?fieldManager=scene&force=true"
    kube.request(change.method, path, body)


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures as lines of a table."""
    yield "start to ready, s", figures["ready_s"]
    yield "RSS when ready, MB", figures["ready_rss_mb"]
    for act in ("connect", "reconnect"):
        yield f"{act}: all hold everything, s", figures[act]["last_s"] or float("nan")
        yield f"{act}: CPU, s", figures[act]["cpu_s"]
        yield f"{act}: RSS, MB", figures[act]["rss_mb"]
        yield f"{act}: sent, MB", figures[act]["bytes"] / 1e6
        yield f"{act}: resources", figures[act]["resources"]
    for kind in KINDS:
        if kind in figures:
            for name in ("p50_ms", "p99_ms", "last_ms", "cpu_s_per_100", "resources_per_proxy", "bytes_per_proxy", "missing"):
                yield f"{kind}: {name}", figures[kind][name]
    yield "idle, CPU s/s", figures["idle_cpu_s_per_s"]
    yield "RSS at the end, MB", figures["final_rss_mb"]


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
    return Subject(name, command, f"127.0.0.1:{grpc}", f"http://127.0.0.1:{http}/readyz", env or {})


def istiod(binary: str, kube: Kube) -> Subject:
    """istiod, with its defaults, on the same API server."""
    command = [
        binary, "discovery", "--kubeconfig", str(kube.kubeconfig), "--grpcAddr", "127.0.0.1:26010", "--httpAddr", "127.0.0.1:26080",
        "--httpsAddr", "", "--secureGRPCAddr", "", "--monitoringAddr", "127.0.0.1:26014",
    ]  # fmt: skip
    env = {"POD_NAMESPACE": "istio-system", "INJECTION_WEBHOOK_CONFIG_NAME": "", "VALIDATION_WEBHOOK_CONFIG_NAME": ""}
    return Subject("istiod", command, "127.0.0.1:26010", "http://127.0.0.1:26080/ready", env)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--namespaces", type=int, default=50)
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--scoped", action="store_true", help="a Sidecar in every namespace that shows its own services only")
    parser.add_argument("--proxies", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=20, help="how often each change is made")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between a change that has arrived and the next one")
    parser.add_argument("--changes", nargs="*", default=list(KINDS), choices=KINDS)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--against", metavar="PILOT_DISCOVERY", help="istiod's binary")
    other.add_argument("--against-commit", metavar="COMMIT", help="our own code at an older commit")
    parser.add_argument("--out", type=Path, help="where the raw data goes")
    options = parser.parse_args()
    scene = Scene(options.services, options.endpoints, options.namespaces, options.rules, options.scoped)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xds-compare-")))
        binary = build_swarm(folder)
        kube = stack.enter_context(running(folder))
        print(f"writing {sum(1 for _ in scene.objects())} objects", flush=True)
        kube.create_all(scene.objects(), writers=16)
        subjects = [ours(sys.executable, kube)]
        if options.against:
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


if __name__ == "__main__":
    main()
