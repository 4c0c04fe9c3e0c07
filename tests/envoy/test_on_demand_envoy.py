"""Clusters and virtual hosts that Envoy asks for when a request needs them, from a running product (X4, X5)."""

import http.client
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format
from support.discovery import Envoy, backends, cluster, endpoints, eventually, listener
from support.product import Product

from xds import pb

ADS = {"ads": {}, "resource_api_version": "V3"}
PATIENT = {**ADS, "initial_fetch_timeout": {"seconds": 600}}


def document(message: Any) -> dict[str, Any]:
    return {"@type": pb.type_url(message), **json_format.MessageToDict(message, descriptor_pool=pb.POOL)}


def on_demand() -> dict[str, Any]:
    """The filter that holds a request until its cluster has come."""
    return {"name": "envoy.filters.http.on_demand", "typed_config": pb.any(pb.OnDemand(odcds={"source": ADS, "timeout": {"seconds": 600}}))}


def call(envoy: Envoy, host: str = "any", listener: str = "web", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", envoy.ports()[listener], timeout=60)
    try:
        connection.request("GET", "/", headers={"Host": host, **headers})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def host(name: str, target: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": target}}
    return document(pb.VirtualHost(name=f"80/{name}", domains=[name], routes=[route]))


@pytest.fixture
def world() -> Iterator[tuple[Product, Envoy, dict[str, int]]]:
    with Product() as product, backends("one", "two") as ports:
        product.write("c1.yaml", document(cluster("c1")), document(endpoints("c1", ports["one"])))
        product.write("web.yaml", document(listener("web", "80", filters=(on_demand(),))))
        by_header = {"match": {"prefix": "/"}, "route": {"cluster_header": "x-cluster"}}
        table = pb.RouteConfiguration(
            name="80", vhds={"config_source": ADS}, virtual_hosts=[{"name": "80/pick", "domains": ["pick"], "routes": [by_header]}]
        )
        product.write("table.yaml", document(table))
        product.write("hosts.yaml", host("known", "c1"))
        product.settle()
        with Envoy(product.port, mode="delta") as envoy:
            eventually(lambda: envoy.ready() and call(envoy, "known") == (200, "one"))
            yield product, envoy, ports


def test_a_cluster_comes_when_a_request_needs_it(world: tuple[Product, Envoy, dict[str, int]]) -> None:
    product, envoy, ports = world
    # One that does not exist is told so at once: the request fails before it would be given up.
    assert call(envoy, "pick", **{"x-cluster": "missing"})[0] == 503
    # When it comes to be, it is pushed, and what all have stays.
    product.write("missing.yaml", document(cluster("missing")), document(endpoints("missing", ports["two"])))
    eventually(lambda: call(envoy, "pick", **{"x-cluster": "missing"}) == (200, "two"))
    assert call(envoy, "known") == (200, "one")
    assert call(envoy, "pick", **{"x-cluster": "c1"}) == (200, "one")
    product.remove("missing.yaml")
    eventually(lambda: "missing" not in envoy.clusters())
    assert envoy.clusters() == {"c1"}


def test_a_host_that_nobody_has_is_refused_at_once_and_comes_later(world: tuple[Product, Envoy, dict[str, int]]) -> None:
    product, envoy, _ = world
    assert call(envoy, "unknown")[0] == 404
    product.write("unknown.yaml", host("unknown", "c1"))
    eventually(lambda: call(envoy, "unknown") == (200, "one"))
    # An alias: Envoy asks for the name in the request, and takes the resource that answers to it.
    aliased = pb.VirtualHost(
        name="80/canonical", domains=["canonical", "other-name"], routes=[{"match": {"prefix": "/"}, "route": {"cluster": "c1"}}]
    )
    product.write("canonical.yaml", {"resource": document(aliased), "aliases": ["80/other-name", "80/canonical"]})
    eventually(lambda: call(envoy, "other-name") == (200, "one"))
    product.remove("unknown.yaml")
    eventually(lambda: call(envoy, "unknown")[0] == 404)
    assert call(envoy, "known") == (200, "one")


def test_a_table_without_hosts_does_not_hold_up_the_listener() -> None:
    """X4: Envoy waits to hear of some host; without an answer it would wait as long as it is patient."""
    with Product() as product:
        product.write("web.yaml", document(listener("web", "80")))
        product.publish("table.yaml", document(pb.RouteConfiguration(name="80", vhds={"config_source": PATIENT})))
        with Envoy(product.port, mode="delta") as envoy:
            eventually(envoy.ready)
            assert call(envoy, "any")[0] == 404


def test_a_table_that_is_let_go_and_wanted_again_has_its_hosts_as_they_are_by_then(
    world: tuple[Product, Envoy, dict[str, int]],
) -> None:
    """X4: Envoy lets go of a table when the last listener that uses it has drained."""
    product, envoy, ports = world
    product.write("c2.yaml", document(cluster("c2")), document(endpoints("c2", ports["two"])))
    more = document(listener("more", "90"))
    table = document(pb.RouteConfiguration(name="90", vhds={"config_source": ADS}))
    product.write("more.yaml", more, table, {**host("known", "c1"), "name": "90/known"})
    eventually(lambda: call(envoy, "known", "more") == (200, "one"))
    product.write("more.yaml", table, {**host("known", "c1"), "name": "90/known"})
    eventually(lambda: names_asked_for(product, "rds") == 1)
    product.write("more.yaml", table, {**host("known", "c2"), "name": "90/known"}, {**host("fresh", "c1"), "name": "90/fresh"})
    product.settle()
    assert call(envoy, "known") == (200, "one")
    product.write("again.yaml", more)
    eventually(lambda: call(envoy, "known", "more") == (200, "two") and call(envoy, "fresh", "more") == (200, "one"))
    assert call(envoy, "known") == (200, "one")


def names_asked_for(product: Product, kind: str) -> int | None:
    """By the one Envoy there is."""
    (status,) = [each for each in product.ask("/debug/syncz") if each["node"] != "witness"]
    asked: int | None = status["types"][kind]["resources"]
    return asked
