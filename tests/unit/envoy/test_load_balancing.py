"""What requests and connections are hashed by."""

from datetime import timedelta
from typing import Any

import pytest
from support.destinations import decoded

from xds import pb
from xds.envoy.load_balancing import hash_policies, tcp_hash_policies
from xds.objects import TrafficPolicy


def hashing(**settings: Any) -> TrafficPolicy:
    policy: TrafficPolicy = decoded({"loadBalancer": {"consistentHash": settings}}, TrafficPolicy)
    return policy


def by_http(policy: TrafficPolicy) -> Any:
    (found,) = (
        pb.RouteConfiguration(virtual_hosts=[{"routes": [{"route": {"hash_policy": hash_policies(policy)}}]}])
        .virtual_hosts[0]
        .routes[0]
        .route.hash_policy
    )
    return found


@pytest.mark.parametrize("policy", [{}, {"loadBalancer": {}}, {"loadBalancer": {"consistentHash": {}}}])
def test_nothing_is_hashed_unless_asked_for(policy: dict[str, Any]) -> None:
    found = decoded(policy, TrafficPolicy)
    assert hash_policies(found) == tcp_hash_policies(found) == []


def test_header() -> None:
    assert by_http(hashing(httpHeaderName="x-user")).header.header_name == "x-user"


def test_query_parameter() -> None:
    assert by_http(hashing(httpQueryParameterName="user")).query_parameter.name == "user"


def test_source_of_requests_and_of_connections() -> None:
    assert by_http(hashing(useSourceIp=True)).connection_properties.source_ip
    assert len(tcp_hash_policies(hashing(useSourceIp=True))) == 1


def test_connections_have_no_headers() -> None:
    assert tcp_hash_policies(hashing(httpHeaderName="x-user")) == []


def test_cookie() -> None:
    cookie = {"name": "user", "path": "/p", "ttl": "60s", "attributes": [{"name": "SameSite", "value": "Strict"}]}
    found = by_http(hashing(httpCookie=cookie)).cookie
    assert (found.name, found.path, found.ttl.ToTimedelta()) == ("user", "/p", timedelta(seconds=60))
    assert [(a.name, a.value) for a in found.attributes] == [("SameSite", "Strict")]


def test_a_session_cookie_is_made_and_one_without_a_lifetime_is_not() -> None:
    session, foreign = (by_http(hashing(httpCookie=cookie)).cookie for cookie in ({"name": "a", "ttl": "0s"}, {"name": "a"}))
    assert session.HasField("ttl")
    assert session.ttl.ToTimedelta() == timedelta()
    assert not foreign.HasField("ttl")
