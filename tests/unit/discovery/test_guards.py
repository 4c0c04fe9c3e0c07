"""What of a resource protects: versions that differ in it are not offered in each other's place."""

from typing import Any

import pytest

from xds import pb
from xds.discovery.guards import guards
from xds.discovery.resources import Group, Resource

TLS = {"name": "tls", "typed_config": pb.any(pb.UpstreamTlsContext(sni="a"))}
OTHER_TLS = {"name": "tls", "typed_config": pb.any(pb.UpstreamTlsContext(sni="b"))}
RBAC: Any = pb.message_class("envoy.extensions.filters.http.rbac.v3.RBAC")
DENY = {"name": "rbac", "typed_config": pb.any(RBAC(rules={"action": "DENY"}))}
ROUTER = {"name": "router", "typed_config": pb.any(pb.Router())}


def cluster(**fields: Any) -> Resource:
    return Resource.of(pb.Cluster(name="a", **fields))


def listener(*filters: Any, **chain: Any) -> Resource:
    manager = pb.HttpConnectionManager(stat_prefix="a", http_filters=filters)
    return Resource.of(pb.Listener(name="a", filter_chains=[{**chain, "filters": [{"name": "hcm", "typed_config": pb.any(manager)}]}]))


def secret(text: str) -> Resource:
    return Resource.of(pb.Secret(name="a", validation_context={"trusted_ca": {"inline_string": text}}))


def routes(*, denies: bool) -> Resource:
    per_route: Any = pb.message_class("envoy.extensions.filters.http.rbac.v3.RBACPerRoute")
    config = {"rbac": pb.any(per_route(rbac={"rules": {"action": "DENY"}}))} if denies else {}
    return Resource.of(pb.RouteConfiguration(name="a", virtual_hosts=[{"name": "v", "domains": ["*"], "typed_per_filter_config": config}]))


MATCHES = [{"name": "tls", "match": {"tls": "yes"}, "transport_socket": TLS}]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (cluster(), cluster(transport_socket=TLS)),
        (cluster(transport_socket=TLS), cluster()),
        (cluster(transport_socket=TLS), cluster(transport_socket=OTHER_TLS)),
        (cluster(), cluster(transport_socket_matches=MATCHES)),
        (cluster(transport_socket_matches=MATCHES), cluster(transport_socket_matches=[{**MATCHES[0], "match": {"tls": "no"}}])),
        (listener(ROUTER), listener(DENY, ROUTER)),
        (listener(ROUTER), listener(ROUTER, transport_socket=TLS)),
        (listener(ROUTER), listener(ROUTER, filter_chain_match={"transport_protocol": "tls"})),
        (routes(denies=False), routes(denies=True)),
        (secret("one"), secret("two")),
    ],
)
def test_a_version_that_protects_otherwise_is_not_replaced_by_the_last_good_one(before: Resource, after: Resource) -> None:
    assert guards(before) != guards(after)
    group = Group(before.type_url, "test", [before])
    group.accept([before])
    group.update({"a": after})
    assert not group.reject(after)
    assert group.get("a") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (cluster(transport_socket=TLS), cluster(transport_socket=TLS, alt_stat_name="other")),
        (listener(DENY, ROUTER), listener({"name": "other", "typed_config": pb.any(pb.Fault())}, DENY, ROUTER)),
    ],
)
def test_a_version_that_protects_alike_is(before: Resource, after: Resource) -> None:
    group = Group(before.type_url, "test", [before])
    group.accept([before])
    group.update({"a": after})
    assert group.reject(after)
    assert group.get("a") == before


def test_what_cannot_be_read_has_no_guards() -> None:
    assert guards(Resource("a", "type.googleapis.com/nobody.Knows", "1", b"x")) == ()
    assert guards(Resource("a", pb.type_url(pb.Cluster), "1", b"\xff")) == ()
