"""The rules of the incremental variant, told to a running product by a client that says each word itself.

The rules' names are those of docs/protocol.md.
"""

import shutil
from pathlib import Path

import pytest
from support.product import Delta, Product, assignment, cluster, listener, message_of, names_of, routes, secret, until, versions_of

from xds.discovery.protocol import types as t

TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"


def test_no_names_in_the_first_request_mean_all_clusters(product: Product) -> None:
    """W1"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"a", "b"}


def test_a_star_means_all(product: Product) -> None:
    """W2"""
    product.publish("a.yaml", cluster("a"), assignment("a"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.CLUSTER, "*")) == {"a"}
        assert names_of(client.ask(t.ENDPOINTS, "*")) == {"a"}


def test_no_names_mean_nothing_of_types_without_wildcard(product: Product) -> None:
    """W1"""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS)
        assert client.between() == []


def test_an_empty_directory_answers_a_wildcard_with_nothing(product: Product) -> None:
    """R13: the client knows that it has everything."""
    with Delta(product.port) as client:
        response = client.ask(t.CLUSTER)
        assert not response.resources
        assert not response.removed_resources
        product.write("a.yaml", cluster("a"))
        assert names_of(client.next(t.CLUSTER)) == {"a"}


def test_only_what_changed_is_sent(product: Product) -> None:
    """V12"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        before = versions_of([client.ask(t.CLUSTER)])
        product.write("a.yaml", cluster("a"), cluster("b", timeout="7s"), cluster("c"))
        after = versions_of([client.next(t.CLUSTER)])
        assert after.keys() == {"b", "c"}
        assert after["b"] != before["b"]


def test_an_acknowledgement_is_not_answered(product: Product) -> None:
    """V3"""
    product.publish("a.yaml", cluster("a"), listener("l"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.LISTENER)
        assert client.between() == []


def test_the_same_content_again_is_not_sent(product: Product) -> None:
    """V12: the file is another, its fields are in another order, and nothing has changed."""
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        product.write("a.yaml", dict(reversed(cluster("a").items())))
        product.write("z.yaml", cluster("z"))
        assert names_of(client.next(t.CLUSTER)) == {"z"}


def test_a_resource_that_moves_to_another_file_is_not_sent_again(product: Product) -> None:
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        (product.directory / "a.yaml").rename(product.directory / "b.yaml")
        product.write("z.yaml", cluster("z"))
        response = client.next(t.CLUSTER)
        assert names_of(response) == {"z"}
        assert not response.removed_resources


def test_what_is_gone_is_told_as_removed(product: Product) -> None:
    """R1"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        product.write("a.yaml", cluster("a"))
        response = client.next(t.CLUSTER)
        assert list(response.removed_resources) == ["b"]
        assert not response.resources


def test_a_resource_that_comes_back_is_sent(product: Product) -> None:
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as client:
        version = versions_of([client.ask(t.ENDPOINTS, "a")])
        product.remove("a.yaml")
        assert list(client.next(t.ENDPOINTS).removed_resources) == ["a"]
        product.write("a.yaml", assignment("a"))
        assert versions_of([client.next(t.ENDPOINTS)]) == version


def test_what_does_not_exist_is_told_at_once_and_sent_later(product: Product) -> None:
    """R11"""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as client:
        response = client.ask(t.ENDPOINTS, "a", "b")
        assert (names_of(response), list(response.removed_resources)) == ({"a"}, ["b"])
        product.write("b.yaml", assignment("b"))
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}


def test_names_add_up(product: Product) -> None:
    product.publish("a.yaml", assignment("a"), assignment("b"), assignment("c"))
    with Delta(product.port) as client:
        assert names_of(client.ask(t.ENDPOINTS, "a")) == {"a"}
        assert names_of(client.ask(t.ENDPOINTS, "b")) == {"b"}
        product.write("a.yaml", assignment("a", 1), assignment("b", 1), assignment("c", 1))
        assert names_of(client.next(t.ENDPOINTS)) == {"a", "b"}


def test_a_name_subscribed_to_again_is_sent_again(product: Product) -> None:
    """W6"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as client:
        client.ask(t.ENDPOINTS, "a", "b")
        assert names_of(client.ask(t.ENDPOINTS, "a")) == {"a"}


def test_a_star_subscribed_to_again_sends_all_again(product: Product) -> None:
    """W6: beside the legacy wildcard too."""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        for _ in range(2):
            assert names_of(client.ask(t.CLUSTER, "*")) == {"a", "b"}
        assert client.between() == []


def test_what_is_unsubscribed_is_not_sent_any_more(product: Product) -> None:
    """W8"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as client:
        client.ask(t.ENDPOINTS, "a", "b")
        client.unsubscribe(t.ENDPOINTS, "a")
        assert client.between() == []
        product.write("a.yaml", assignment("a", 1), assignment("b", 1))
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}


def test_unsubscribing_from_the_last_name_is_no_wildcard(product: Product) -> None:
    """W3"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER, "a")
        client.unsubscribe(t.CLUSTER, "a")
        product.publish("a.yaml", cluster("a", timeout="9s"))
        assert client.between() == []


def test_a_name_beside_the_legacy_wildcard_leaves_it_in_force(product: Product) -> None:
    """W4"""
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        assert list(client.ask(t.CLUSTER, "on-demand").removed_resources) == ["on-demand"]
        product.write("a.yaml", cluster("a"), cluster("b"))
        assert names_of(client.next(t.CLUSTER)) == {"b"}


def test_unsubscribing_from_the_star_leaves_the_names(product: Product) -> None:
    """W4"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.CLUSTER, "a")
        client.unsubscribe(t.CLUSTER, "*")
        assert client.between() == []
        product.write("a.yaml", cluster("a", timeout="9s"), cluster("b", timeout="9s"))
        assert names_of(client.next(t.CLUSTER)) == {"a"}


def test_unsubscribing_from_a_name_under_the_wildcard_is_answered(product: Product) -> None:
    """W7: with the resource, which the wildcard covers, or with its removal."""
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER, "*", "a", "b")
        client.unsubscribe(t.CLUSTER, "a", "b")
        response = client.next(t.CLUSTER)
        assert (names_of(response), list(response.removed_resources)) == ({"a"}, ["b"])


def test_one_request_subscribes_and_unsubscribes_and_acknowledges(product: Product) -> None:
    """W9"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS, "a")
        response = client.receive()
        client.send(
            type_url=t.ENDPOINTS, response_nonce=response.nonce, resource_names_subscribe=["b"], resource_names_unsubscribe=["a"]
        )
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}
        product.write("a.yaml", assignment("a", 1), assignment("b", 1))
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}


def test_a_name_subscribed_to_and_left_in_one_request_is_not_answered(product: Product) -> None:
    """W9"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as client:
        client.ask(t.ENDPOINTS, "a")
        client.send(type_url=t.ENDPOINTS, resource_names_subscribe=["b"], resource_names_unsubscribe=["b"])
        assert client.between() == []
        product.publish("a.yaml", assignment("a"), assignment("b", 81))
        assert client.between() == []


def test_a_client_that_leaves_everything_may_ask_for_all(product: Product) -> None:
    """W2, W3"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as client:
        client.ask(t.ENDPOINTS, "a", "x")
        client.unsubscribe(t.ENDPOINTS, "a", "x")
        product.publish("b.yaml", assignment("x"))
        assert client.between() == []
        assert names_of(client.ask(t.ENDPOINTS, "*")) == {"a", "b", "x"}
        client.unsubscribe(t.ENDPOINTS, "*")
        product.publish("b.yaml", assignment("x", 81))
        assert client.between() == []


def test_a_change_of_subscription_with_an_old_nonce_counts(product: Product) -> None:
    """V4: only the acknowledgement in it is stale."""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as client:
        first = client.ask(t.ENDPOINTS, "a")
        product.write("a.yaml", assignment("a", 1), assignment("b"))
        client.next(t.ENDPOINTS)
        client.send(type_url=t.ENDPOINTS, response_nonce=first.nonce, resource_names_subscribe=["b"])
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}


def test_nonces_differ_and_are_never_empty(product: Product) -> None:
    """V1"""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as client:
        nonces = [client.ask(t.ENDPOINTS, "a").nonce for _ in range(5)]
        assert all(nonces)
        assert len(set(nonces)) == 5


def test_a_rejected_resource_is_not_sent_again_until_it_changes(product: Product) -> None:
    """D5"""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as client:
        client.ask(t.ENDPOINTS, "a")
        product.write("a.yaml", assignment("a", 1))
        client.nack(client.receive(), "not that port")
        assert client.between() == []
        product.write("a.yaml", assignment("a", 2))
        assert names_of(client.next(t.ENDPOINTS)) == {"a"}


def test_neighbours_of_a_rejected_resource_are_sent(product: Product) -> None:
    """D4: what a rejected response held is not held by the client."""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.subscribe(t.CLUSTER)
        client.nack(client.receive(), "Error adding/updating cluster(s) a: it is bad")
        assert names_of(client.next(t.CLUSTER)) == {"b"}
        assert client.between() == []


def test_the_culprit_that_nobody_names_is_found(product: Product) -> None:
    """D5: each half is tried by itself."""
    names = [f"n{index}" for index in range(16)]
    product.publish("a.yaml", *(assignment(name) for name in names))
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS, *names)
        held: set[str] = set()
        for _ in range(20):
            response = client.receive()
            came = names_of(response)
            if "n5" in came:
                client.nack(response, "something is wrong with it")
            else:
                held |= came
                client.ack(response)
            if len(held) == 15:
                break
        assert held == set(names) - {"n5"}
        assert client.between() == []


def test_a_rejection_on_one_stream_does_not_touch_another(product: Product) -> None:
    """N4: nobody ever accepted it, and so there is nothing else to offer."""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as one, Delta(product.port, node={"id": "other"}) as other:
        one.subscribe(t.ENDPOINTS, "a")
        one.nack(one.receive(), "no")
        assert one.between() == []
        assert names_of(other.ask(t.ENDPOINTS, "a")) == {"a"}


def test_others_are_offered_the_last_good_version(product: Product) -> None:
    """D5: until somebody acknowledges the new one."""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as one:
        good = versions_of([one.ask(t.ENDPOINTS, "a")])
        product.write("a.yaml", assignment("a", 1))
        one.nack(one.receive(), "no")
        assert one.between() == []
        with Delta(product.port, node={"id": "other"}) as other:
            assert versions_of([other.ask(t.ENDPOINTS, "a")]) == good


def test_a_rejection_is_forgotten_when_nobody_is_left(product: Product) -> None:
    """D5"""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as one:
        good = versions_of([one.ask(t.ENDPOINTS, "a")])
        product.write("a.yaml", assignment("a", 1))
        one.nack(one.receive(), "no")
        assert one.between() == []
    product_sees_nobody(product)
    with Delta(product.port) as next_one:
        assert versions_of([next_one.ask(t.ENDPOINTS, "a")]) != good


def product_sees_nobody(product: Product) -> None:
    until(lambda: not product.ask("/debug/syncz"), lambda: product.ask("/debug/syncz"))


def test_a_client_that_returns_is_sent_only_what_differs(product: Product) -> None:
    """R12, R13"""
    product.publish("a.yaml", cluster("a"), cluster("b"), cluster("gone"))
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.CLUSTER)])
    product.publish("a.yaml", cluster("a"), cluster("b", timeout="9s"), cluster("new"))
    with Delta(product.port) as client:
        response = client.ask(t.CLUSTER, initial_resource_versions=held)
        assert (names_of(response), list(response.removed_resources)) == ({"b", "new"}, ["gone"])


def test_a_client_that_returns_with_everything_is_sent_an_empty_answer(product: Product) -> None:
    """R13"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.CLUSTER)])
    with Delta(product.port) as client:
        response = client.ask(t.CLUSTER, initial_resource_versions=held)
        assert not response.resources
        assert not response.removed_resources


def test_a_client_that_returns_with_names_is_sent_what_differs_of_these(product: Product) -> None:
    """R12"""
    product.publish("a.yaml", assignment("a"), assignment("b"), assignment("c"))
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.ENDPOINTS, "a", "b")])
    with Delta(product.port) as client:
        held |= {"gone": "1", "b": "0"}
        response = client.ask(t.ENDPOINTS, "a", "b", "c", "gone", initial_resource_versions=held)
        assert (names_of(response), list(response.removed_resources)) == ({"b", "c"}, ["gone"])


def test_a_client_that_returns_with_all_its_names_is_not_answered(product: Product) -> None:
    """R13"""
    product.publish("a.yaml", assignment("a"))
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.ENDPOINTS, "a")])
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS, "a", initial_resource_versions=held)
        assert client.between() == []


def test_versions_survive_a_restart() -> None:
    """V6, V12"""
    with Product() as product:
        product.publish("a.yaml", cluster("a"))
        with Delta(product.port) as client:
            held = versions_of([client.ask(t.CLUSTER)])
        product.stop()
        product.start()
        with Delta(product.port) as client:
            assert not client.ask(t.CLUSTER, initial_resource_versions=held).resources


def test_types_are_independent_on_one_stream(product: Product) -> None:
    product.publish("a.yaml", cluster("c"), assignment("e"), listener("l"), routes("r"), secret("s"))
    with Delta(product.port) as client:
        client.subscribe(t.SECRET, "s")
        client.subscribe(t.ROUTE, "r")
        client.subscribe(t.CLUSTER)
        client.subscribe(t.LISTENER)
        client.subscribe(t.ENDPOINTS, "e")
        came = {}
        for _ in range(5):
            response = client.next()
            came[response.type_url] = names_of(response)
        assert came == {t.CLUSTER: {"c"}, t.ENDPOINTS: {"e"}, t.LISTENER: {"l"}, t.ROUTE: {"r"}, t.SECRET: {"s"}}


def test_a_step_is_sent_clusters_first_and_routes_last(product: Product) -> None:
    """O1"""
    kinds = [t.CLUSTER, t.ENDPOINTS, t.LISTENER, t.ROUTE]
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ENDPOINTS, "c")
        client.ask(t.LISTENER)
        client.ask(t.ROUTE, "r")
        product.write("a.yaml", routes("r"), listener("l"), assignment("c"), cluster("c", eds=True))
        assert [client.next().type_url for _ in kinds] == kinds


def test_clusters_go_after_the_routes_that_led_to_them(product: Product) -> None:
    """O2"""
    product.publish("a.yaml", routes("r", "old"), cluster("old"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ROUTE, "r")
        product.write("a.yaml", routes("r", "new"), cluster("new"))
        added, routed, removed = client.next(), client.next(), client.next()
        assert names_of(added) == {"new"}
        assert not added.removed_resources
        assert names_of(routed) == {"r"}
        assert list(removed.removed_resources) == ["old"]


def test_a_changed_cluster_has_its_endpoints_sent_again(product: Product) -> None:
    """D2: Envoy waits for them, and does not ask."""
    product.publish("a.yaml", cluster("c", eds=True), assignment("c"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ENDPOINTS, "c")
        product.write("a.yaml", cluster("c", eds=True, timeout="9s"), assignment("c"))
        assert names_of(client.next(t.CLUSTER)) == {"c"}
        assert names_of(client.next(t.ENDPOINTS)) == {"c"}


def test_the_first_request_must_hold_a_node(product: Product) -> None:
    """N2"""
    with Delta(product.port, node=None) as client:
        client.subscribe(t.CLUSTER)
        assert client.end()[0] == "INVALID_ARGUMENT"


def test_a_stream_belongs_to_one_node(product: Product) -> None:
    """N2"""
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        client.send(node={"id": "another"}, type_url=t.CLUSTER)
        assert client.end()[0] == "INVALID_ARGUMENT"


def test_an_unknown_type_has_no_resources_and_harms_no_other(product: Product) -> None:
    """N3"""
    product.publish("a.yaml", cluster("a"))
    with Delta(product.port) as client:
        assert list(client.ask("type.googleapis.com/no.such.Thing", "x").removed_resources) == ["x"]
        client.send(type_url="")
        assert names_of(client.ask(t.CLUSTER)) == {"a"}


def test_thousands_of_names_come_in_one_answer(product: Product) -> None:
    """N10"""
    names = [f"name-{index}" for index in range(3000)]
    product.publish("a.json", *(assignment(name) for name in names))
    with Delta(product.port) as client:
        held = versions_of([client.ask(t.ENDPOINTS, *names)])
        assert held.keys() == set(names)
    with Delta(product.port) as client:
        response = client.ask(t.ENDPOINTS, *names, "one-more", initial_resource_versions=held)
        assert (names_of(response), list(response.removed_resources)) == (set(), ["one-more"])


@pytest.mark.parametrize(
    ("service", "method", "kind", "resource"),
    [
        ("cluster.v3.ClusterDiscoveryService", "DeltaClusters", t.CLUSTER, cluster("x")),
        ("endpoint.v3.EndpointDiscoveryService", "DeltaEndpoints", t.ENDPOINTS, assignment("x")),
        ("listener.v3.ListenerDiscoveryService", "DeltaListeners", t.LISTENER, listener("x")),
        ("route.v3.RouteDiscoveryService", "DeltaRoutes", t.ROUTE, routes("x")),
        ("secret.v3.SecretDiscoveryService", "DeltaSecrets", t.SECRET, secret("x")),
    ],
)
def test_a_stream_for_one_type_serves_just_that(product: Product, service: str, method: str, kind: str, resource: dict[str, str]) -> None:
    product.publish("a.yaml", resource)
    with Delta(product.port, f"envoy.service.{service}/{method}") as client:
        client.send(resource_names_subscribe=["x"])  # the type is understood
        assert names_of(client.next(kind)) == {"x"}
        client.subscribe(t.RUNTIME, "y")
        assert client.end()[0] == "INVALID_ARGUMENT"


def test_two_streams_of_one_node_are_two(product: Product) -> None:
    """N4, N5"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Delta(product.port) as one, Delta(product.port) as two:
        assert names_of(one.ask(t.ENDPOINTS, "a")) == {"a"}
        assert names_of(two.ask(t.ENDPOINTS, "b")) == {"b"}
        one.__exit__()
        product.write("a.yaml", assignment("a", 1), assignment("b", 1))
        assert names_of(two.next(t.ENDPOINTS)) == {"b"}


def test_what_came_meanwhile_is_sent_once(product: Product) -> None:
    """V13: a client that does not acknowledge is sent the newest state, after a while."""
    product.publish("a.yaml", assignment("a", 1))
    with Delta(product.port) as client:
        client.subscribe(t.ENDPOINTS, "a")
        client.receive()
        for port in range(2, 30):
            product.write("a.yaml", assignment("a", port))
        ports = []
        while 29 not in ports:
            ports.append(message_of(client.receive(), "a").endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value)
        assert len(ports) < 10


def test_a_configmap_volume_is_followed(product: Product, tmp_path: Path) -> None:
    """A kubelet swaps a symlink to a directory; the files' own names stay what they are."""
    import json

    def publish(timeout: str, version: str) -> None:
        data = product.directory / f"..{version}"
        data.mkdir()
        (data / "a.yaml").write_text(json.dumps(cluster("a", timeout=timeout)))
        link = product.directory / "..data_tmp"
        link.symlink_to(data.name)
        link.rename(product.directory / "..data")

    publish("1s", "2026_1")
    (product.directory / "a.yaml").symlink_to("..data/a.yaml")
    product.settle()
    with Delta(product.port) as client:
        assert message_of(client.ask(t.CLUSTER), "a").connect_timeout.seconds == 1
        publish("2s", "2026_2")
        shutil.rmtree(product.directory / "..2026_1")
        assert message_of(client.next(t.CLUSTER), "a").connect_timeout.seconds == 2


def test_a_file_that_is_emptied_and_filled_takes_nothing_away(product: Product) -> None:
    """Editors do so."""
    import json

    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Delta(product.port) as client:
        client.ask(t.CLUSTER)
        text = json.dumps(cluster("a", timeout="9s")) + "\n---\n" + json.dumps(cluster("b"))
        (product.directory / "a.yaml").write_text(text)  # not at once: it is empty first
        response = client.next(t.CLUSTER)
        assert (names_of(response), list(response.removed_resources)) == ({"a"}, [])


def test_what_was_taken_with_a_rejected_resource_is_removed_from_a_client_that_returns(product: Product) -> None:
    """V10: Envoy holds `b`, and does not say so."""
    product.publish("a.yaml", cluster("a"))
    node = {"id": "partly"}
    with Delta(product.port, node=node) as client:
        held = versions_of([client.ask(t.CLUSTER)])
        product.write("b.yaml", cluster("b"), cluster("bad"))
        response = client.receive()
        assert names_of(response) == {"b", "bad"}
        client.nack(response, "Error adding/updating cluster(s) bad: no")
        assert names_of(client.receive()) == {"b"}  # and then the connection breaks
    until(lambda: all(each["node"] != "partly" for each in product.ask("/debug/syncz")), lambda: product.log)
    product.remove("b.yaml")
    product.settle()
    with Delta(product.port, node={"id": "another"}) as other:
        assert list(other.ask(t.CLUSTER, initial_resource_versions=held).removed_resources) == []
    with Delta(product.port, node=node) as client:
        returned = client.ask(t.CLUSTER, initial_resource_versions=held)
        assert (names_of(returned), list(returned.removed_resources)) == (set(), ["b"])
        client.between()
    with Delta(product.port, node=node) as client:
        assert list(client.ask(t.CLUSTER, initial_resource_versions=held).removed_resources) == []


def test_a_new_proxy_is_not_handed_plain_text_in_place_of_tls(product: Product) -> None:
    """D5: not even where everybody rejects the version with TLS."""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": t.PREFIX + TLS}}
    with Delta(product.port, node={"id": "one"}) as one, Delta(product.port, node={"id": "two"}) as two:
        one.ask(t.CLUSTER)
        one.between()
        product.publish("a.yaml", {**cluster("a"), "transport_socket": socket}, cluster("b", timeout="9s"))
        one.nack(one.receive(), "Error adding/updating cluster(s) a: no, b: no")
        one.between()
        offered = two.ask(t.CLUSTER)
        assert message_of(offered, "a").HasField("transport_socket")
        assert message_of(offered, "b").connect_timeout.seconds == 5  # what protects as before is the last good one
