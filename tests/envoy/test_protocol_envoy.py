"""A real Envoy, in each variant of the protocol, against a running product: start, add, change, remove, reject, restart, silence."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf import json_format
from support.discovery import Envoy, backends, cluster, endpoints, eventually, listener, routes, source_of
from support.product import Product, until
from support.relay import relaying

from xds import pb

MODES = ("delta", "sotw", "delta-each", "sotw-each")


def document(message: Any) -> dict[str, Any]:
    """A message as people write it."""
    return {"@type": pb.type_url(message), **json_format.MessageToDict(message, descriptor_pool=pb.POOL)}


class World:
    """A product that serves what the test says, an Envoy that follows it, and two servers behind."""

    def __init__(self, product: Product, mode: str, ports: dict[str, int]) -> None:
        self.product = product
        self.source = source_of(mode)
        self.one, self.two = ports["one"], ports["two"]

    def put(self, name: str, *messages: Any) -> None:
        self.product.write(f"{name}.yaml", *map(document, messages))

    def start(self) -> None:
        """One listener, one route, one cluster with one endpoint."""
        self.put("c1", cluster("c1", self.source), endpoints("c1", self.one))
        self.put("web", listener("web", "r", self.source), routes("r", default="c1"))


@pytest.fixture(params=MODES)
def world(request: pytest.FixtureRequest) -> Iterator[tuple[World, Envoy]]:
    with Product() as product, backends("one", "two") as ports:
        world = World(product, request.param, ports)
        world.start()
        product.settle()
        with Envoy(product.port, mode=request.param) as envoy:
            eventually(lambda: envoy.ready() and envoy.call("web") == (200, "one"))
            yield world, envoy


def test_envoy_follows_what_is_added_changed_and_removed(world: tuple[World, Envoy]) -> None:
    mesh, envoy = world
    # Endpoints change.
    mesh.put("c1", cluster("c1", mesh.source), endpoints("c1", mesh.two))
    eventually(lambda: envoy.call("web") == (200, "two"))
    # A cluster and its endpoints come, then a route to it.
    mesh.put("c2", cluster("c2", mesh.source), endpoints("c2", mesh.one))
    mesh.put("web", listener("web", "r", mesh.source), routes("r", default="c1", a="c2"))
    eventually(lambda: envoy.call("web", "/a") == (200, "one"))
    # A cluster changes, and warms again with endpoints that did not change.
    mesh.put("c1", cluster("c1", mesh.source, alt_stat_name="other"), endpoints("c1", mesh.two))
    eventually(lambda: envoy.stat("cluster_manager.cluster_modified") >= 1 and envoy.stat("cluster_manager.warming_clusters") == 0)
    assert envoy.call("web") == (200, "two")
    # The route lets go of the cluster, and the cluster goes.
    mesh.put("web", listener("web", "r", mesh.source), routes("r", default="c1"))
    mesh.product.remove("c2.yaml")
    eventually(lambda: envoy.clusters() == {"c1"})
    assert envoy.call("web", "/a") == (200, "two")
    # A listener comes and goes.
    mesh.put("more", listener("more", "r", mesh.source))
    eventually(lambda: envoy.call("more") == (200, "two"))
    mesh.product.remove("more.yaml")
    eventually(lambda: "more" not in envoy.ports())
    assert envoy.stat("cluster_manager.cds.update_rejected") == 0
    assert envoy.stat("listener_manager.lds.update_rejected") == 0


def test_envoy_rejects_one_cluster_and_takes_the_others(world: tuple[World, Envoy]) -> None:
    mesh, envoy = world
    bad = cluster("bad", mesh.source, transport_socket={"name": "no-such-socket"})
    mesh.put("more", bad, cluster("good", mesh.source), endpoints("good", mesh.two), endpoints("bad", mesh.two))
    mesh.put("web", listener("web", "r", mesh.source), routes("r", default="c1", good="good"))
    eventually(lambda: envoy.call("web", "/good") == (200, "two"))
    eventually(lambda: mesh.product.events("push.rejected"))
    rejected = envoy.stat("cluster_manager.cds.update_rejected")
    assert "bad" not in envoy.clusters()
    mended = cluster("bad", mesh.source)
    mesh.put("more", mended, cluster("good", mesh.source), endpoints("good", mesh.two), endpoints("bad", mesh.two))
    eventually(lambda: "bad" in envoy.clusters())
    assert envoy.stat("cluster_manager.cds.update_rejected") == rejected
    assert envoy.call("web") == (200, "one")


def test_envoy_keeps_its_traffic_and_its_resources_over_a_restart(world: tuple[World, Envoy]) -> None:
    mesh, envoy = world
    mesh.put("c2", cluster("c2", mesh.source), endpoints("c2", mesh.two))
    eventually(lambda: "c2" in envoy.clusters())
    modified = envoy.stat("cluster_manager.cluster_modified")
    mesh.product.kill()
    assert envoy.call("web") == (200, "one")
    # Meanwhile one cluster goes, and another changes together with its endpoints.
    mesh.product.remove("c2.yaml")
    mesh.put("c1", cluster("c1", mesh.source, alt_stat_name="other"), endpoints("c1", mesh.two))
    mesh.product.start()
    eventually(lambda: envoy.call("web") == (200, "two") and envoy.clusters() == {"c1"})
    eventually(lambda: envoy.stat("cluster_manager.warming_clusters") == 0)
    assert envoy.stat("cluster_manager.cluster_modified") == modified + 1


def test_nothing_is_changed_by_a_restart_with_the_same_files(world: tuple[World, Envoy]) -> None:
    mesh, envoy = world
    before = (envoy.stat("cluster_manager.cluster_modified"), envoy.stat("listener_manager.listener_modified"))
    mesh.product.stop()
    mesh.product.start()
    eventually(lambda: envoy.stat("control_plane.connected_state") >= 1 or mesh.product.ask("/debug/syncz"))
    mesh.put("c2", cluster("c2", mesh.source), endpoints("c2", mesh.two))
    eventually(lambda: "c2" in envoy.clusters())
    assert (envoy.stat("cluster_manager.cluster_modified"), envoy.stat("listener_manager.listener_modified")) == before
    assert envoy.call("web") == (200, "one")


@pytest.mark.parametrize("mode", ["delta", "sotw"])
def test_two_servers_behind_one_address_agree(mode: str) -> None:
    """Versions are content hashes: a proxy that moves from one replica to the other is sent nothing."""
    with Product() as first, backends("one", "two") as ports:
        mesh = World(first, mode, ports)
        mesh.start()
        with Product(directory=first.directory) as second:
            first.settle()
            with Envoy(first.port, second.port, mode=mode) as envoy:
                eventually(lambda: envoy.ready() and envoy.call("web") == (200, "one"))
                mine, other = (first, second) if first.ask("/debug/syncz") else (second, first)
                modified = envoy.stat("cluster_manager.cluster_modified")
                mine.kill()
                eventually(lambda: other.ask("/debug/syncz"))
                mesh.put("c1", cluster("c1", mesh.source), endpoints("c1", mesh.two))
                eventually(lambda: envoy.call("web") == (200, "two"))
                assert envoy.stat("cluster_manager.cluster_modified") == modified
                mine.start()


@pytest.mark.parametrize("mode", ["delta", "sotw"])
def test_an_envoy_that_is_frozen_catches_up_with_the_newest(mode: str) -> None:
    """It does not read for a while: what came meanwhile reaches it once, and others do not wait."""
    with Product() as product, backends("one", "two") as ports:
        mesh = World(product, mode, ports)
        mesh.start()
        product.settle()
        with Envoy(product.port, mode=mode) as slow, Envoy(product.port, mode=mode, node="proxy-2") as fast:
            for envoy in (slow, fast):
                eventually(lambda envoy=envoy: envoy.ready() and envoy.call("web") == (200, "one"))
            os.kill(slow.process.pid, signal.SIGSTOP)
            try:
                filler = [cluster(f"filler-{index}", mesh.source, alt_stat_name="x" * 200) for index in range(300)]
                for step in range(10):
                    mesh.put("filler", *(cluster(c.name, mesh.source, alt_stat_name=f"{step}{'x' * 200}") for c in filler))
                    product.settle()
                mesh.put("filler")
                mesh.put("c1", cluster("c1", mesh.source), endpoints("c1", mesh.two))
                eventually(lambda: fast.call("web") == (200, "two"))
            finally:
                os.kill(slow.process.pid, signal.SIGCONT)
            eventually(lambda: slow.call("web") == (200, "two") and slow.clusters() == {"c1"})


@pytest.mark.parametrize("mode", ["delta", "sotw"])
def test_a_response_that_is_rejected_whole_is_taken_apart(mode: str) -> None:
    """Of endpoints Envoy rejects all for one, and it names nobody for certain."""
    with Product() as product, backends("one", "two") as ports:
        mesh = World(product, mode, ports)
        mesh.start()
        product.settle()
        names = [f"e{index}" for index in range(8)]
        with Envoy(product.port, mode=mode) as envoy:
            eventually(lambda: envoy.ready() and envoy.call("web") == (200, "one"))
            bad = endpoints("e3", mesh.two)
            # A second endpoint at a priority without a first: no rule of the descriptors forbids it.
            bad.endpoints[0].priority = 0
            bad.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address = "not-an-address"
            mesh.put("many", *(cluster(name, mesh.source) for name in names))
            mesh.put("their-endpoints", *(bad if name == "e3" else endpoints(name, mesh.two) for name in names))
            mesh.put("web", listener("web", "r", mesh.source), routes("r", default="c1", **{name: name for name in names}))
            for name in names:
                if name != "e3":
                    eventually(lambda name=name: envoy.call("web", f"/{name}") == (200, "two"))
            until(lambda: any(e["type"] == "eds" for e in product.events("push.rejected")), lambda: product.log)
            mesh.put("their-endpoints", *(endpoints(name, mesh.two) for name in names))
            eventually(lambda: envoy.call("web", "/e3") == (200, "two"))


@pytest.mark.parametrize("told", [True, False], ids=["the-rejection-arrives", "the-rejection-is-lost"])
def test_an_envoy_loses_what_it_took_of_a_rejected_response_though_it_does_not_say_that_it_has_it(told: bool) -> None:
    """V10: its connection breaks before it has acknowledged that part, and then that is gone."""
    with Product() as product:
        product.publish("kept.yaml", document(pb.Cluster(name="kept", type="STATIC")))
        asyncio.run(_partly(product, told=told))


async def _partly(product: Product, *, told: bool) -> None:
    async def soon(check: Callable[[], Any]) -> None:
        await asyncio.to_thread(eventually, check)

    taken = pb.Cluster(name="taken", type="STATIC")
    bad = pb.Cluster(name="bad", type="STATIC", transport_socket={"name": "no-such-socket"})
    async with relaying(product.port) as relay:
        envoy = await asyncio.to_thread(Envoy(relay.port, node="partly").__enter__)
        try:
            await soon(lambda: envoy.clusters() == {"kept"})
            relay.hold(requests=True)
            product.write("more.yaml", document(taken), document(bad))
            await soon(lambda: envoy.clusters() == {"kept", "taken"})
            relay.hold(requests=not told, answers=True)
            if told:
                await soon(lambda: product.events("push.rejected"))
            product.remove("more.yaml")
            await asyncio.to_thread(product.settle)
            relay.cut()
            await soon(lambda: all(each["node"] != "partly" for each in product.ask("/debug/syncz")))
            assert await asyncio.to_thread(envoy.clusters) == {"kept", "taken"}
            relay.hold()
            relay.mend()
            await soon(lambda: envoy.clusters() == {"kept"})
        finally:
            envoy.__exit__()
