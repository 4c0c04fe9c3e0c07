"""What a change costs before any byte is sent: model, translation and protocol in this process, without sockets or an API server.

    python benchmarks/settle.py --services 100 1000 5000

Prints, for each size of the scene, milliseconds of CPU time: to load it, for every proxy to be answered in full, and for each kind of
change, to settle it (`settle`) and for all proxies' sessions to be due, sent and acknowledged what it means (`send`). Unlike wall
time, these hardly depend on what else the machine does; the number of function calls, which says how much is done, not at all.
"""

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scene import Change as Write
from scene import Manifest, Scene, changes

from xds import pb
from xds.discovery.protocol import DeltaRequest, DeltaSession, Responses
from xds.discovery.protocol.types import CLUSTER, ENDPOINTS, LISTENER, ROUTE, VIRTUAL_HOST
from xds.discovery.resources import Assignment
from xds.envoy.classes import Classes
from xds.mesh.store import Mesh
from xds.objects import KINDS
from xds.objects.decoding import from_json
from xds.sources.changes import Change

KINDS_PLAYED = ("endpoint", "route", "rule", "service", "deletion", "status")


class Proxy:
    """One session, and a proxy that takes everything."""

    def __init__(self, classes: Classes, responses: Responses, index: int, namespaces: int, pieces: bool = False) -> None:
        namespace, name, address = f"ns{index % namespaces}", f"client-{index}", f"10.200.{index // 250}.{index % 250 + 1}"
        self.node = pb.Node(id=f"sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local")
        self.node_metadata = {
            "NAMESPACE": namespace, "WORKLOAD_NAME": "client", "INSTANCE_IPS": address, "LABELS": {"app": "client"},
            "SERVICE_ACCOUNT": "default", "ROUTE_TABLES": "pieces" if pieces else "",
        }  # fmt: skip
        self.peer_identity = ""
        self.pieces = True
        self.session = DeltaSession(responses, lambda: None)
        self.assign(classes.open(self))

    def assign(self, assignment: Assignment) -> None:
        self.session.assign(assignment)

    def connect(self) -> int:
        """Everything, as Envoy asks for it; how many resources came."""
        count = 0
        for type_url, below in ((CLUSTER, ENDPOINTS), (LISTENER, ROUTE)):
            self.send(pb.DeltaDiscoveryRequest(type_url=type_url))
            count += self.drain()
            names = sorted(assignments(self.session) if type_url == CLUSTER else tables(self.session))
            self.send(pb.DeltaDiscoveryRequest(type_url=below, resource_names_subscribe=names))
            count += self.drain()
        if self.session.assignment is not None and self.session.assignment.groups.get(VIRTUAL_HOST):
            self.send(pb.DeltaDiscoveryRequest(type_url=VIRTUAL_HOST))
            count += self.drain()
        return count

    def reconnect(self, opening: list[bytes]) -> int:
        """As `connect`, of a proxy that comes back with what it held: its first requests are `opening`."""
        for request in opening:
            self.session.receive(DeltaRequest.FromString(request))
        return self.drain()

    def send(self, request: Any) -> None:
        self.session.receive(DeltaRequest.FromString(request.SerializeToString()))

    def drain(self) -> int:
        """Take all that is due; how many resources it was."""
        count = 0
        while (response := self.session.due(0.0)) is not None:
            self.session.sent(response, 0.0)
            self.send(pb.DeltaDiscoveryRequest(type_url=response.rules.type_url, response_nonce=response.nonce))
            count += response.count
        return count


def assignments(session: DeltaSession) -> list[str]:
    found = (r.assignment_name for g in session.watches[CLUSTER].known.groups for r in g.offered())
    return [name for name in found if name]


def tables(session: DeltaSession) -> list[str]:
    return [r.name for g in session.assignment.groups[ROUTE] for r in g.offered()] if session.assignment else []


class Store:
    """Stands in for the API server: applies writes, and gives what a watch would say of them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}

    def take(self, manifest: Manifest) -> Change:
        meta = manifest["metadata"]
        key = (manifest["kind"], meta.get("namespace", ""), meta["name"])
        before = self.objects.get(key, {})
        merged = before | manifest
        merged["metadata"] = before.get("metadata", {"creationTimestamp": "2026-01-01T00:00:00Z"}) | meta
        self.objects[key] = merged
        decoded = from_json(json.dumps(merged).encode(), KINDS[manifest["kind"]])
        assert decoded.ref is not None, manifest
        assert decoded.object is not None, decoded.problems
        return Change(decoded.ref, decoded.object, decoded.problems)

    def write(self, write: Write) -> Change:
        if write.body is not None:
            return self.take(write.body)
        namespace, name = write.path.split("/")[-3], write.path.split("/")[-1]
        return Change(Change(self.take(self.objects["Service", namespace, name]).ref).ref)


def cpu(of: Any) -> tuple[float, Any]:
    """Milliseconds of CPU time that a call takes, and what it returns."""
    started = time.process_time()
    result = of()
    return (time.process_time() - started) * 1000, result


def function_calls(act: Callable[[], None]) -> int:
    """How many function calls a call is: what it does, whatever the machine and its caches."""
    profile = cProfile.Profile()
    profile.runcall(act)
    stats = pstats.Stats(profile)
    total: int = stats.total_calls  # type: ignore[attr-defined]
    return total


def run(scene: Scene, proxies: int, turns: int, profile: str, kinds: list[str]) -> dict[str, float]:
    """The figures of one size."""
    gc.collect()
    mesh, store = Mesh(), Store()
    classes, responses = Classes(mesh), Responses("xds", "bench")
    loaded = [store.take(manifest) for _, manifest in scene.objects()]
    figures: dict[str, float] = {}
    figures["load"] = cpu(lambda: mesh.apply(loaded))[0]
    first, _ = cpu(lambda: Proxy(classes, responses, 0, scene.namespaces, scene.pieces).connect())
    figures["first proxy"] = first
    clients: list[Proxy] = []

    def connect() -> int:
        clients.extend(Proxy(classes, responses, i, scene.namespaces, scene.pieces) for i in range(proxies))
        return sum(client.connect() for client in clients)

    if profile == "connect":
        cProfile.runctx("connect()", globals(), {"connect": connect}, sort="tottime")
    else:
        figures["connect"] = cpu(connect)[0]
    figures["connect encoded"] = responses.encoded
    gc.collect()
    gc.freeze()

    def settle() -> None:
        for _ in classes.settle():
            pass
        classes.flush()
        mesh.sweep()

    for kind in kinds:
        settles, sends, counts, calls = [], [], [], 0
        for turn in range(turns + 2):
            *before, change = changes(scene, kind, turn)
            mesh.apply([store.write(w) for w in before])
            if change.removal:
                settle()
                for client in clients:
                    client.drain()
            taken = [store.write(change)]

            def act(taken: list[Change] = taken) -> None:
                mesh.apply(taken)
                settle()

            if profile == kind and turn:
                cProfile.runctx("act()", globals(), {"act": act}, sort="tottime")
                continue
            if turn > turns:  # the last one is counted
                calls = function_calls(act)
                sum(client.drain() for client in clients)
                continue
            took, _ = cpu(act)
            sent, count = cpu(lambda: sum(client.drain() for client in clients))
            if turn:  # the first one warms caches up
                settles.append(took)
                sends.append(sent)
                counts.append(count / proxies)
        if settles:
            figures[f"{kind}: settle"] = statistics.median(settles)
            figures[f"{kind}: function calls to settle"] = calls
            figures[f"{kind}: send"] = statistics.median(sends)
            figures[f"{kind}: resources a proxy"] = statistics.median(counts)
    opening = []
    for url in (CLUSTER, ENDPOINTS, LISTENER, ROUTE):
        held = {r.name: r.version for g in clients[0].session.watches[url].known.groups for r in g.offered()}
        names = sorted(held) if url in (ENDPOINTS, ROUTE) else ()
        request = pb.DeltaDiscoveryRequest(type_url=url, resource_names_subscribe=names, initial_resource_versions=held)
        opening.append(request.SerializeToString())
    back = [Proxy(classes, responses, 0, scene.namespaces, scene.pieces) for _ in range(min(proxies, 100))]

    def reconnect() -> int:
        return sum(client.reconnect(opening) for client in back)

    if profile == "reconnect":
        cProfile.runctx("reconnect()", globals(), {"reconnect": reconnect}, sort="tottime")
    else:
        took, count = cpu(reconnect)
        figures["one reconnect"], figures["reconnect: resources"] = took / len(back), count
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--proxies", type=int, default=200)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--scoped", action="store_true")
    parser.add_argument("--pieces", action="store_true", help="route tables in pieces")
    parser.add_argument("--changes", nargs="*", default=list(KINDS_PLAYED), choices=KINDS_PLAYED)
    parser.add_argument("--profile", default="", metavar="KIND", help="connect, reconnect or a kind of change: where its time goes")
    options = parser.parse_args()
    columns = {
        n: run(
            Scene(n, scoped=options.scoped, rules=n // 10, pieces=options.pieces),
            options.proxies,
            options.turns,
            options.profile,
            options.changes,
        )
        for n in options.services
    }
    print(f"{'services':32}" + "".join(f"{n:>12}" for n in columns))
    for name in next(iter(columns.values())):
        print(f"{name:32}" + "".join(f"{figures[name]:12.2f}" for figures in columns.values()))


if __name__ == "__main__":
    main()
