"""Minutes of churn, restarts, rejections and slow readers; then everybody has to agree, and nothing may have leaked.

    python benchmarks/soak.py --minutes 20

Two servers follow one directory of resources. One lives through it all, and its memory is watched; the other is restarted again and
again, in turns gracefully and by SIGKILL. Real Envoys in all four modes, and many clients of both variants, follow them: they lose their
connections, come back with what they hold, do not read for a while, reject what is poisoned. In the end no file changes any more, and then:
every client and every Envoy holds what a new client gets, the first server's memory in the last fifth of the time is what it was in
the second, within 5 %, and no server has logged an error. The exit code is 1 where that is not so.

Memory is looked at twice a minute, and medians are compared: at any moment, what is under way makes 2 to 4 MB of it.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.discovery import Envoy, backends, cluster, endpoints, listener, routes
from support.product import ADS, Product

from xds import pb
from xds.discovery.protocol import types as t

CLUSTERS = 200
POISON = b"poison"
KINDS = (t.CLUSTER, t.ENDPOINTS, t.ROUTE)
FLAT = 0.05
SETTLE_SECONDS = 60.0
EXPECTED = {"resource.invalid", "push.rejected", "stream.stuck", "resource.duplicate"}  # what the injected faults are told by


def document(message: Any) -> dict[str, Any]:
    return {"@type": pb.type_url(message), **json_format.MessageToDict(message, descriptor_pool=pb.POOL)}


class Files:
    """The directory: one file a cluster, with its endpoints, and one of routes."""

    def __init__(self, product: Product, ports: dict[str, int], rng: random.Random) -> None:
        self.product, self.ports, self.rng = product, list(ports.values()), rng
        self.present: set[int] = set()
        self.steps = 0

    def start(self) -> None:
        for index in range(CLUSTERS):
            self.write(index)
        self.route()

    def write(self, index: int, *, poisoned: bool = False, invalid: bool = False) -> None:
        name = f"c{index}"
        self.steps += 1
        made = cluster(name, alt_stat_name=f"{POISON.decode() if poisoned else 's'}{self.steps}")
        documents = [document(made), document(endpoints(name, *self.rng.sample(self.ports, 2)))]
        if invalid:
            documents[0]["connect_timeout"] = "-1s"
        self.product.write(f"{name}.yaml", *documents)
        self.present.add(index)

    def remove(self, index: int) -> None:
        self.product.remove(f"c{index}.yaml")
        self.present.discard(index)

    def route(self) -> None:
        names = [f"c{index}" for index in self.rng.sample(sorted(self.present), 5)]
        self.product.write("web.yaml", document(listener("web", "r")), document(routes("r", default=names[0], **{n: n for n in names})))

    def step(self) -> None:
        """One change: mostly endpoints, now and then all else."""
        index = self.rng.randrange(CLUSTERS)
        match self.rng.choices(("change", "remove", "route", "poison", "invalid"), (70, 15, 10, 3, 2))[0]:
            case "remove" if index in self.present and len(self.present) > CLUSTERS // 2:
                self.remove(index)
            case "route":
                self.route()
            case "poison":
                self.write(index, poisoned=True)
            case "invalid":
                self.write(index, invalid=True)
            case _:
                self.write(index)

    def rest(self) -> None:
        """No faults any more."""
        for index in range(CLUSTERS):
            self.write(index)
        self.route()


class Client:
    """One client: asks for all clusters, and all of the rest by `*`; rejects what is poisoned."""

    def __init__(self, name: str, ports: tuple[int, int], rng: random.Random, *, delta: bool, faults: bool = True) -> None:
        self.name, self.ports, self.rng, self.delta, self.faults = name, ports, rng, delta, faults
        self.held: dict[str, dict[str, bytes]] = {kind: {} for kind in KINDS}
        self.versions: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        self.streams = self.responses = self.rejections = 0

    async def run(self) -> None:
        while True:
            # The stream may have ended in the middle of a write.
            with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                async with grpc.aio.insecure_channel(
                    f"127.0.0.1:{self.rng.choice(self.ports)}",
                    options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)],
                ) as channel:
                    self.streams += 1
                    await (self._delta(channel) if self.delta else self._sotw(channel))
            await asyncio.sleep(self.rng.uniform(0.2, 1.5))

    def _lives(self) -> float:
        return self.rng.expovariate(1 / 60) if self.faults else 1e9

    async def _delta(self, channel: Any) -> None:
        call = channel.stream_stream(
            f"/{ADS}/DeltaAggregatedResources",
            request_serializer=lambda m: m.SerializeToString(), response_deserializer=pb.DeltaDiscoveryResponse.FromString,
        )()  # fmt: skip
        for kind in KINDS:
            await call.write(
                pb.DeltaDiscoveryRequest(
                    node={"id": self.name}, type_url=kind, resource_names_subscribe=() if kind == t.CLUSTER else ("*",),
                    initial_resource_versions=self.versions[kind],
                )
            )  # fmt: skip
        ends = time.monotonic() + self._lives()
        while time.monotonic() < ends and (response := await call.read()) is not grpc.aio.EOF:
            await self._dawdle()
            self.responses += 1
            kind, bad = response.type_url, [r.name for r in response.resources if POISON in r.resource.value]
            self.rejections += bool(bad)
            for resource in response.resources:
                if resource.name not in bad:
                    self.held[kind][resource.name], self.versions[kind][resource.name] = resource.resource.value, resource.version
            for name in response.removed_resources:
                self.held[kind].pop(name, None)
                self.versions[kind].pop(name, None)
            await call.write(pb.DeltaDiscoveryRequest(type_url=kind, response_nonce=response.nonce, error_detail=_error(bad)))
        call.cancel()

    async def _sotw(self, channel: Any) -> None:
        call = channel.stream_stream(
            f"/{ADS}/StreamAggregatedResources",
            request_serializer=lambda m: m.SerializeToString(), response_deserializer=pb.DiscoveryResponse.FromString,
        )()  # fmt: skip
        for kind in KINDS:
            await call.write(pb.DiscoveryRequest(node={"id": self.name}, type_url=kind, resource_names=["*"], version_info="earlier"))
        ends = time.monotonic() + self._lives()
        while time.monotonic() < ends and (response := await call.read()) is not grpc.aio.EOF:
            await self._dawdle()
            self.responses += 1
            kind = response.type_url
            came = {_name(each): each.value for each in response.resources}
            bad = [name for name, body in came.items() if POISON in body]
            self.rejections += bool(bad)
            self.held[kind].update((name, body) for name, body in came.items() if name not in bad)
            if kind == t.CLUSTER:
                for name in self.held[kind].keys() - came.keys():
                    del self.held[kind][name]
            await call.write(
                pb.DiscoveryRequest(
                    type_url=kind, resource_names=["*"], response_nonce=response.nonce, version_info=response.version_info,
                    error_detail=_error(bad),
                )
            )  # fmt: skip
        call.cancel()

    async def _dawdle(self) -> None:
        if self.faults and self.rng.random() < 0.01:
            await asyncio.sleep(self.rng.uniform(1, 5))


def _name(packed: Any) -> str:
    message: Any = pb.message_class(packed.type_url.rpartition("/")[2]).FromString(packed.value)
    return getattr(message, "name", "") or message.cluster_name


def _error(bad: list[str]) -> dict[str, Any] | None:
    causes = ", ".join(f"{name}: poisoned" for name in bad)
    return {"code": 13, "message": f"Error adding/updating cluster(s) {causes}"} if bad else None


def rss(process: "subprocess.Popen[bytes]") -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Soak:
    """The run."""

    def __init__(self, minutes: float, clients: int, seed: int) -> None:
        self.seconds, self.count, self.rng = minutes * 60, clients, random.Random(seed)
        self.memory: list[tuple[float, int]] = []
        self.restarts = self.freezes = 0

    async def run(self) -> list[str]:
        """What is wrong in the end."""
        with ExitStack() as stack:
            steady = stack.enter_context(Product())
            ports = stack.enter_context(backends("one", "two", "three"))
            files = Files(steady, ports, self.rng)
            files.start()
            shaky = stack.enter_context(Product(directory=steady.directory))
            modes = ("delta", "sotw")
            envoys = [stack.enter_context(Envoy(steady.port, shaky.port, mode=m, node=f"envoy-{m}-{n}")) for m in modes for n in range(2)]
            clients = [
                Client(f"client-{n}", (steady.port, shaky.port), random.Random(self.rng.random()), delta=n % 2 == 0)
                for n in range(self.count)
            ]
            running = [asyncio.ensure_future(client.run()) for client in clients]
            try:
                await self._churn(files, steady, shaky, envoys)
                for client in clients:
                    client.faults = False
                files.rest()
                wrong = await self._agreement(steady, clients, envoys)
                wrong += [f"a client of the soak itself has failed: {task.exception()!r}" for task in running if task.done()]
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
            await asyncio.sleep(2)  # for streams that have just been cancelled
            wrong += self._logs(steady, shaky)
            wrong += self._leaks()
            print(
                f"{files.steps} changes, {sum(c.streams for c in clients)} streams, {sum(c.responses for c in clients)} responses, "
                f"{sum(c.rejections for c in clients)} rejections, {self.restarts} restarts, {self.freezes} frozen Envoys"
            )
        return wrong

    async def _churn(self, files: Files, steady: Product, shaky: Product, envoys: list[Envoy]) -> None:
        begun = time.monotonic()
        restart_at, freeze_at, told_at = begun + 20, begun + 10, begun
        while (now := time.monotonic()) < begun + self.seconds:
            files.step()
            if now > restart_at:
                self.restarts += 1
                await asyncio.to_thread(shaky.kill if self.restarts % 2 else shaky.stop)
                await asyncio.to_thread(shaky.start)
                restart_at = time.monotonic() + self.rng.uniform(20, 40)
            if now > freeze_at:
                self.freezes += 1
                process = self.rng.choice(envoys).process
                os.kill(process.pid, signal.SIGSTOP)
                asyncio.get_running_loop().call_later(self.rng.uniform(1, 8), os.kill, process.pid, signal.SIGCONT)
                freeze_at = now + self.rng.uniform(10, 30)
            if now > told_at:
                self.memory.append((now - begun, rss(steady.process)))
                print(f"{(now - begun) / 60:5.1f} min  {self.memory[-1][1] / 1e6:6.1f} MB  {files.steps} changes", flush=True)
                told_at = now + 30
            await asyncio.sleep(self.rng.expovariate(1 / 0.3))

    async def _agreement(self, steady: Product, clients: list[Client], envoys: list[Envoy]) -> list[str]:
        """Whether all come to hold what a new client is given."""
        fresh = Client("fresh", (steady.port, steady.port), random.Random(0), delta=True, faults=False)
        task = asyncio.ensure_future(fresh.run())
        ends = time.monotonic() + SETTLE_SECONDS
        wrong: list[str] = ["nobody was asked"]
        while wrong and time.monotonic() < ends:
            await asyncio.sleep(1)
            found = [(client, _differs(client, fresh)) for client in clients]
            wrong = [f"{c.name} ({'delta' if c.delta else 'sotw'}) does not hold what it should: {what}" for c, what in found if what]
            names = fresh.held[t.CLUSTER].keys()
            for envoy in envoys:
                if await asyncio.to_thread(envoy.clusters) != set(names):
                    wrong.append(f"{envoy.node} has other clusters")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return wrong if len(fresh.held[t.CLUSTER]) == CLUSTERS else ["a new client is not given everything"]

    def _logs(self, *products: Product) -> list[str]:
        wrong = []
        for product in products:
            for line in product.log.splitlines():
                if not line.startswith("{"):
                    wrong.append(f"not a log line: {line[:300]}")
                    continue
                event = json.loads(line)
                if event["level"] == "error" or (event["level"] == "warning" and event["event"] not in EXPECTED):
                    wrong.append(f"logged: {line[:500]}")
        return wrong[:20]

    def _leaks(self) -> list[str]:
        base, last = self._median(1), self._median(4)
        print(f"memory: {base / 1e6:.1f} MB in the second fifth of the time, {last / 1e6:.1f} MB in the last: {last / base - 1:+.1%}")
        return [f"memory grew by {last / base - 1:.1%}"] if last > base * (1 + FLAT) else []

    def _median(self, fifth: int) -> float:
        """Of the sizes seen in one fifth of the time, from 0; of all where it was too short for that."""
        begin, end = (self.seconds / 5 * bound for bound in (fifth, fifth + 1))
        return statistics.median([size for at, size in self.memory if begin <= at < end] or [size for _, size in self.memory])


def _differs(client: Client, fresh: Client) -> list[str]:
    found = []
    for kind in KINDS:
        mine, theirs = client.held[kind], fresh.held[kind]
        names = theirs.keys() if not client.delta and kind != t.CLUSTER else mine.keys() | theirs.keys()
        found += [f"{t.rules_of(kind).short} {name}" for name in names if mine.get(name) != theirs.get(name)]
    return found[:5]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wrong = asyncio.run(Soak(options.minutes, options.clients, options.seed).run())
    print("\n".join(wrong) or "all agree, and nothing has leaked")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
