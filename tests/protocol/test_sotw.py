"""The rules of the state of the world, told to a running product by a client that says each word itself.

The rules' names are those of docs/protocol.md.
"""

from support.product import Product, Sotw, assignment, cluster, listener, message_of, names_of, routes, secret

from xds.discovery.protocol import types as t


def test_no_names_in_the_first_request_mean_all_clusters(product: Product) -> None:
    """W1"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Sotw(product.port) as client:
        assert names_of(client.ask(t.CLUSTER)) == {"a", "b"}


def test_a_star_means_all_of_any_type(product: Product) -> None:
    """W2"""
    product.publish("a.yaml", cluster("a"), assignment("a"))
    with Sotw(product.port) as client:
        assert names_of(client.ask(t.CLUSTER, "*")) == {"a"}
        assert names_of(client.ask(t.ENDPOINTS, "*")) == {"a"}


def test_clusters_and_listeners_are_sent_whole(product: Product) -> None:
    """R1"""
    product.publish("a.yaml", cluster("a"), cluster("b"), listener("k"), listener("l"))
    with Sotw(product.port) as client:
        first = client.ask(t.CLUSTER)
        client.ask(t.LISTENER)
        product.write("a.yaml", cluster("a"), cluster("b", timeout="9s"), listener("k"), listener("l", 81))
        second = client.next(t.CLUSTER)
        assert names_of(second) == {"a", "b"}
        assert second.version_info != first.version_info
        assert names_of(client.next(t.LISTENER)) == {"k", "l"}


def test_what_is_gone_is_absent_from_the_whole(product: Product) -> None:
    """R1"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        product.write("a.yaml", cluster("a"))
        assert names_of(client.next(t.CLUSTER)) == {"a"}
        product.remove("a.yaml")
        assert names_of(client.next(t.CLUSTER)) == set()


def test_of_other_types_only_what_changed_is_sent(product: Product) -> None:
    product.publish("a.yaml", assignment("a"), assignment("b"), routes("r"), routes("s"))
    with Sotw(product.port) as client:
        assert names_of(client.ask(t.ENDPOINTS, "a", "b")) == {"a", "b"}
        assert names_of(client.ask(t.ROUTE, "r", "s")) == {"r", "s"}
        product.write("a.yaml", assignment("a"), assignment("b", 1), routes("r", "d"), routes("s"))
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}
        assert names_of(client.next(t.ROUTE)) == {"r"}


def test_the_removal_of_other_types_is_not_told(product: Product) -> None:
    """R2, R3: there is no way to."""
    product.publish("a.yaml", assignment("a"), cluster("c"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ENDPOINTS, "a")
        product.write("a.yaml", cluster("c", timeout="9s"))
        client.next(t.CLUSTER)
        assert client.between() == []


def test_named_clusters_are_all_in_every_answer(product: Product) -> None:
    product.publish("a.yaml", cluster("a"), cluster("b"), cluster("c"))
    with Sotw(product.port) as client:
        assert names_of(client.ask(t.CLUSTER, "a")) == {"a"}
        assert names_of(client.ask(t.CLUSTER, "a", "b")) == {"a", "b"}
        product.write("a.yaml", cluster("a"), cluster("b", timeout="9s"), cluster("c", timeout="9s"))
        assert names_of(client.next(t.CLUSTER)) == {"a", "b"}


def test_added_names_are_sent_though_nothing_changed(product: Product) -> None:
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Sotw(product.port) as client:
        client.ask(t.ENDPOINTS, "a")
        assert "b" in names_of(client.ask(t.ENDPOINTS, "a", "b"))


def test_a_name_left_out_is_unsubscribed(product: Product) -> None:
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Sotw(product.port) as client:
        client.ask(t.ENDPOINTS, "a", "b")
        client.subscribe(t.ENDPOINTS, "b")
        assert client.between() == []
        product.write("a.yaml", assignment("a", 1), assignment("b", 1))
        assert names_of(client.next(t.ENDPOINTS)) == {"b"}


def test_a_name_left_out_and_taken_in_again_is_sent(product: Product) -> None:
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Sotw(product.port) as client:
        client.ask(t.ENDPOINTS, "a", "b")
        client.subscribe(t.ENDPOINTS, "b")
        assert "a" in names_of(client.ask(t.ENDPOINTS, "a", "b"))


def test_no_names_after_some_mean_nothing(product: Product) -> None:
    """W3"""
    product.publish("a.yaml", cluster("a"), assignment("a"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER, "a")
        client.ask(t.ENDPOINTS, "a")
        client.subscribe(t.CLUSTER)
        client.subscribe(t.ENDPOINTS)
        assert client.between() == []
        product.publish("a.yaml", cluster("a", timeout="9s"), assignment("a", 1))
        assert client.between() == []


def test_names_after_the_legacy_wildcard_end_it(product: Product) -> None:
    """W5"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        assert names_of(client.ask(t.CLUSTER, "a")) == {"a"}
        product.publish("a.yaml", cluster("a"), cluster("b", timeout="9s"))
        assert client.between() == []


def test_a_star_beside_names_keeps_all(product: Product) -> None:
    """W2"""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        client.subscribe(t.CLUSTER, "*", "a")
        client.between()
        product.write("a.yaml", cluster("a"), cluster("b", timeout="9s"))
        assert names_of(client.next(t.CLUSTER)) == {"a", "b"}


def test_an_acknowledgement_is_not_answered(product: Product) -> None:
    """V3"""
    product.publish("a.yaml", cluster("a"), assignment("a"), listener("l"), routes("r"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ENDPOINTS, "a")
        client.ask(t.LISTENER)
        client.ask(t.ROUTE, "r")
        assert client.between() == []


def test_names_in_another_order_are_the_same_names(product: Product) -> None:
    """W12"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Sotw(product.port) as client:
        client.subscribe(t.ENDPOINTS, "a", "b")
        response = client.receive()
        client.names[t.ENDPOINTS] = ("b", "a")
        client.ack(response)
        assert client.between() == []


def test_an_old_nonce_is_not_answered(product: Product) -> None:
    """V4"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Sotw(product.port) as client:
        first = client.ask(t.ENDPOINTS, "a")
        product.write("a.yaml", assignment("a", 1), assignment("b"))
        client.next(t.ENDPOINTS)
        client.send(type_url=t.ENDPOINTS, resource_names=["a", "b"], version_info=first.version_info, response_nonce=first.nonce)
        assert client.between() == []


def test_the_nonce_of_another_stream_is_not_answered(product: Product) -> None:
    """V6"""
    product.publish("a.yaml", assignment("a"))
    with Sotw(product.port) as client:
        client.ask(t.ENDPOINTS, "a")
        client.send(type_url=t.ENDPOINTS, resource_names=["a"], response_nonce="from-another-stream")
        assert client.between() == []


def test_the_first_request_is_answered_whatever_version_and_nonce_it_holds(product: Product) -> None:
    """V6: they are of another stream."""
    product.publish("a.yaml", assignment("a"), cluster("a"))
    with Sotw(product.port) as client:
        first = client.ask(t.ENDPOINTS, "a")
        clusters = client.ask(t.CLUSTER)
    with Sotw(product.port) as client:
        response = client.ask(t.ENDPOINTS, "a", version_info=first.version_info, response_nonce=first.nonce)
        assert names_of(response) == {"a"}
        assert response.version_info == first.version_info
        assert names_of(client.ask(t.CLUSTER, version_info=clusters.version_info)) == {"a"}


def test_a_request_without_nonce_is_answered_anew(product: Product) -> None:
    """V5"""
    product.publish("a.yaml", assignment("a"), assignment("b"))
    with Sotw(product.port) as client:
        client.ask(t.ENDPOINTS, "a", "b")
        assert names_of(client.ask(t.ENDPOINTS, "a", "b", response_nonce="")) == {"a", "b"}


def test_the_same_request_again_is_answered_again(product: Product) -> None:
    """D3: so a cluster that warms anew asks for its endpoints."""
    product.publish("a.yaml", assignment("a"))
    with Sotw(product.port) as client:
        client.ask(t.ENDPOINTS, "a")
        assert names_of(client.ask(t.ENDPOINTS, "a")) == {"a"}


def test_what_does_not_exist_is_answered_and_sent_later(product: Product) -> None:
    """R9, R10"""
    product.publish("a.yaml", assignment("a"))
    with Sotw(product.port) as client:
        response = client.ask(t.ENDPOINTS, "a", "b")
        assert names_of(response) == {"a"}
        assert [(e.resource_name.name, e.error_detail.code) for e in response.resource_errors] == [("b", 5)]
        product.write("b.yaml", assignment("b"))
        response = client.next(t.ENDPOINTS)
        assert names_of(response) == {"b"}
        assert not response.resource_errors


def test_a_rejected_version_is_not_sent_again_until_it_changes(product: Product) -> None:
    """V7, D5"""
    product.publish("a.yaml", cluster("a"))
    with Sotw(product.port) as client:
        first = client.ask(t.CLUSTER)
        product.write("a.yaml", cluster("a", timeout="9s"))
        client.nack(client.receive(), "no")
        assert client.between() == []
        product.write("a.yaml", cluster("a", timeout="10s"))
        response = client.next(t.CLUSTER)
        assert message_of(response, "a").connect_timeout.seconds == 10
        assert response.version_info != first.version_info


def test_a_rejected_cluster_stays_what_it_was_in_the_whole(product: Product) -> None:
    """D5: its absence would delete it."""
    product.publish("a.yaml", cluster("a"), cluster("b"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        product.write("a.yaml", cluster("a", timeout="9s"), cluster("b", timeout="9s"))
        client.nack(client.receive(), "Error adding/updating cluster(s) a: no")
        response = client.next(t.CLUSTER)
        assert (message_of(response, "a").connect_timeout.seconds, message_of(response, "b").connect_timeout.seconds) == (5, 9)
        assert client.between() == []


def test_a_rejected_first_answer_is_not_sent_again(product: Product) -> None:
    product.publish("a.yaml", cluster("a"))
    with Sotw(product.port) as client:
        client.subscribe(t.CLUSTER)
        client.nack(client.receive(), "no")
        assert client.between() == []


def test_content_that_comes_back_has_its_version_again(product: Product) -> None:
    """V2"""
    product.publish("a.yaml", cluster("a"))
    with Sotw(product.port) as client:
        first = client.ask(t.CLUSTER).version_info
        product.write("a.yaml", cluster("a", timeout="9s"))
        assert client.next(t.CLUSTER).version_info != first
        product.write("a.yaml", cluster("a"))
        assert client.next(t.CLUSTER).version_info == first


def test_a_step_is_sent_clusters_first_and_routes_last(product: Product) -> None:
    """O1"""
    kinds = [t.CLUSTER, t.ENDPOINTS, t.LISTENER, t.ROUTE]
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ENDPOINTS, "c")
        client.ask(t.LISTENER)
        client.ask(t.ROUTE, "r")
        product.write("a.yaml", routes("r"), listener("l"), assignment("c"), cluster("c", eds=True))
        assert [client.next().type_url for _ in kinds] == kinds


def test_clusters_go_after_the_routes_that_led_to_them(product: Product) -> None:
    """O2"""
    product.publish("a.yaml", routes("r", "old"), cluster("old"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ROUTE, "r")
        product.write("a.yaml", routes("r", "new"), cluster("new"))
        assert names_of(client.next(t.CLUSTER)) == {"old", "new"}
        assert names_of(client.next(t.ROUTE)) == {"r"}
        assert names_of(client.next(t.CLUSTER)) == {"new"}


def test_a_changed_cluster_has_its_endpoints_sent_again(product: Product) -> None:
    """D2"""
    product.publish("a.yaml", cluster("c", eds=True), assignment("c"))
    with Sotw(product.port) as client:
        client.ask(t.CLUSTER)
        client.ask(t.ENDPOINTS, "c")
        product.write("a.yaml", cluster("c", eds=True, timeout="9s"), assignment("c"))
        assert names_of(client.next(t.CLUSTER)) == {"c"}
        assert names_of(client.next(t.ENDPOINTS)) == {"c"}


def test_a_request_without_type_is_passed_over(product: Product) -> None:
    """N3: Envoy sends it where it was pushed what it never asked for."""
    product.publish("a.yaml", secret("s"))
    with Sotw(product.port) as client:
        client.send(type_url="", response_nonce="x")
        assert names_of(client.ask(t.SECRET, "s")) == {"s"}


def test_an_unknown_type_has_no_resources_and_harms_no_other(product: Product) -> None:
    product.publish("a.yaml", cluster("a"))
    with Sotw(product.port) as client:
        assert not client.ask("type.googleapis.com/no.such.Thing", "x").resources
        assert names_of(client.ask(t.CLUSTER)) == {"a"}


def test_the_first_request_must_hold_a_node(product: Product) -> None:
    """N2"""
    with Sotw(product.port, node=None) as client:
        client.subscribe(t.CLUSTER)
        assert client.end()[0] == "INVALID_ARGUMENT"


def test_a_stream_for_one_type_serves_just_that(product: Product) -> None:
    product.publish("a.yaml", cluster("x"))
    with Sotw(product.port, "envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters") as client:
        client.send()  # the type is understood
        assert names_of(client.next(t.CLUSTER)) == {"x"}
        client.subscribe(t.LISTENER)
        assert client.end()[0] == "INVALID_ARGUMENT"
