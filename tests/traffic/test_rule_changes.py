"""Rules change while clients keep calling, and no call fails."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.traffic import Mesh, Pod, Service, World, eventually, exchange


class Calling:
    """Calls that go on all the time. `seen` counts who answered, or what went wrong."""

    def __init__(self, call: Callable[[], str]) -> None:
        self.seen: Counter[str] = Counter()
        self.done = threading.Event()
        self._call = call
        self._threads = [threading.Thread(target=self._go) for _ in range(3)]

    def _go(self) -> None:
        while not self.done.is_set():
            try:
                answer = self._call()
            except OSError as e:
                answer = repr(e)
            self.seen[answer] += 1

    def __enter__(self) -> "Calling":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join()

    def some(self, count: int = 30) -> None:
        """Returns after so many more calls."""
        goal = self.seen.total() + count
        eventually(lambda: self.seen.total() >= goal)

    def only(self, *servers: str) -> None:
        """Returns when new calls are answered by these alone."""

        def now() -> bool:
            before = self.seen.copy()
            self.some(20)
            return set(self.seen - before) == set(servers)

        eventually(now, f"answers by {servers} alone")


@contextlib.contextmanager
def calling(client: Pod, url: str) -> Iterator[Calling]:
    """Requests to `url` all the time; afterwards, none of them has failed."""

    def call() -> str:
        reply = client.get(url)
        return reply.server or f"{reply.status} {reply.body}"

    with Calling(call) as calls:
        calls.some()
        yield calls
        calls.some()
    assert not [answer for answer in calls.seen if not answer.startswith("reviews-")], calls.seen


@pytest.fixture(scope="module")
def world_mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def reviews(world_mesh: Mesh) -> Service:
    return world_mesh.service("reviews", {"v1": 2, "v2": 2})


@pytest.fixture(scope="module")
def client(world_mesh: Mesh, reviews: Service) -> Pod:
    assert reviews.applications
    return world_mesh.pod("client")


@pytest.fixture
def mesh(world_mesh: Mesh, client: Pod) -> Iterator[Mesh]:
    yield world_mesh
    for kind, namespace, name in list(world_mesh.objects):
        if kind in ("DestinationRule", "VirtualService") and name == "reviews":
            del world_mesh.objects[kind, namespace, name]
    world_mesh.write()
    client.settle()


def rule(*subsets: str, **policy: Any) -> dict[str, Any]:
    """The DestinationRule of `reviews` with these versions as subsets."""
    named = [s.partition("=") for s in subsets]
    parts = [{"name": name, "labels": {"version": version or name}} for name, _, version in named]
    spec = {"host": "reviews", "trafficPolicy": policy, "subsets": parts}
    return {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "reviews"}, "spec": spec}


def route(**weights: int) -> dict[str, Any]:
    """The VirtualService of `reviews` to these subsets, by weight."""
    routes = [{"destination": {"host": "reviews", "subset": name}, "weight": weight} for name, weight in weights.items()]
    spec = {"hosts": ["reviews"], "http": [{"route": routes}]}
    return {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews"}, "spec": spec}


V1, V2 = ("reviews-v1-0", "reviews-v1-1"), ("reviews-v2-0", "reviews-v2-1")


def test_subsets_come_before_the_routes_to_them_and_go_after(mesh: Mesh, client: Pod) -> None:
    with calling(client, "http://reviews/") as calls:
        mesh.put(rule("v1", "v2"))
        mesh.put(route(v1=100))
        calls.only(*V1)
        mesh.put(route(v1=50, v2=50))
        calls.only(*V1, *V2)
        mesh.put(route(v2=100))
        calls.only(*V2)
        mesh.put(rule("v2"))
        calls.some()
        mesh.delete("VirtualService", "reviews")
        calls.only(*V1, *V2)
        mesh.delete("DestinationRule", "reviews")


def test_subsets_and_routes_may_come_and_go_in_one_step(mesh: Mesh, client: Pod) -> None:
    with calling(client, "http://reviews/") as calls:
        for _ in range(3):
            mesh.put(route(v1=100), quiet=True)
            mesh.put(rule("v1"))
            calls.only(*V1)
            del mesh.objects["DestinationRule", mesh.namespace, "reviews"]
            mesh.delete("VirtualService", "reviews")
            calls.only(*V1, *V2)
            mesh.put(route(v2=100), quiet=True)
            mesh.put(rule("v2"))
            calls.only(*V2)
            mesh.put(rule("v1"), quiet=True)  # without v2, which the rule that goes led to
            mesh.delete("VirtualService", "reviews")
            calls.only(*V1, *V2)


def test_a_subset_is_renamed_in_one_step(mesh: Mesh, client: Pod) -> None:
    mesh.put(rule("v1"), quiet=True)
    mesh.put(route(v1=100))
    client.settle()
    with calling(client, "http://reviews/") as calls:
        for name in ("stable", "v1", "stable"):
            mesh.put(rule(f"{name}=v1"), quiet=True)
            mesh.put(route(**{name: 100}))
            calls.only(*V1)
    assert not set(calls.seen) - set(V1)


def test_a_subset_s_labels_change(mesh: Mesh, client: Pod) -> None:
    mesh.put(rule("v1"), quiet=True)
    mesh.put(route(v1=100))
    client.settle()
    with calling(client, "http://reviews/") as calls:
        mesh.put(rule("v1=v2"))
        calls.only(*V2)
        mesh.put(rule("v1"))
        calls.only(*V1)


def test_policies_change(mesh: Mesh, client: Pod) -> None:
    policies: list[dict[str, Any]] = [
        {"loadBalancer": {"simple": "RANDOM"}},
        {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}},
        {"outlierDetection": {"consecutive5xxErrors": 5}},
        {"connectionPool": {"http": {"maxRequestsPerConnection": 10}, "tcp": {"connectTimeout": "3s"}}},
        {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}},
        {"proxyProtocol": {"version": "V2"}},
        {"tls": {"mode": "SIMPLE", "insecureSkipVerify": True}},
        {},
    ]
    with calling(client, "http://reviews/") as calls:
        for policy in policies:
            mesh.put(rule("v1", **policy))
            calls.some(40)


def test_a_held_request_is_answered_though_its_rule_changes(mesh: Mesh, client: Pod, reviews: Service) -> None:
    mesh.put(rule("v1"), quiet=True)
    mesh.put(route(v1=100))
    client.settle()
    applications = reviews.applications.values()
    for application in applications:
        application.release.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.get, "http://reviews/", {"x-hold": "1"})
        try:
            eventually(lambda: sum(a.held for a in applications) == 1)
            mesh.put(rule("v1", loadBalancer={"simple": "RANDOM"}))
            client.settle()
            mesh.delete("VirtualService", "reviews")
            mesh.delete("DestinationRule", "reviews")
            client.settle()
            client.settle()
        finally:
            for application in applications:
                application.release.set()
    assert asked.result().server in V1


def test_new_connections_follow_the_rules_and_none_is_refused(mesh: Mesh, client: Pod) -> None:
    mesh.service("raw", {"v1": 1, "v2": 1}, [{"name": "tcp", "port": 9000}])
    host = {"host": "raw", "trafficPolicy": {"connectionPool": {"tcp": {"idleTimeout": "30s"}}}}
    parts = {**host, "subsets": [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]}

    def tcp(*versions: str) -> dict[str, Any]:
        routes = [{"destination": {"host": "raw", "subset": v}, "weight": 50 if len(versions) > 1 else 100} for v in versions]
        return {**route(), "metadata": {"name": "raw"}, "spec": {"hosts": ["raw"], "tcp": [{"route": routes}]}}

    def call() -> str:
        answer = client.tcp("raw", 9000)
        return "closed" if answer is None else answer.server

    client.settle()
    with Calling(call) as calls:
        calls.only("raw-v1", "raw-v2")
        mesh.put({**rule(), "metadata": {"name": "raw"}, "spec": parts}, quiet=True)
        for versions in (("v1",), ("v1", "v2"), ("v2",)):
            mesh.put(tcp(*versions))
            calls.only(*(f"raw-{v}" for v in versions))
        mesh.put({**rule(), "metadata": {"name": "raw"}, "spec": host}, quiet=True)
        mesh.delete("VirtualService", "raw")
        calls.only("raw-v1", "raw-v2")
    assert set(calls.seen) == {"raw-v1", "raw-v2"}


def test_an_open_tcp_connection_outlives_changes_of_its_rule(mesh: Mesh, client: Pod) -> None:
    service = mesh.service("bytes", {"v1": 1}, [{"name": "tcp", "port": 9000}])
    client.settle()
    with client.connect("bytes", 9000) as connection:
        first = exchange(connection, b"one")
        mesh.put({**rule(), "spec": {"host": "bytes", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}})
        client.settle()
        second = exchange(connection, b"two")
    assert first is not None
    assert second is not None
    assert first.connection == second.connection
    assert service["v1"].connections == 1
