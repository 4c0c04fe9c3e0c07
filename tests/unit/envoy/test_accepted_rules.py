"""Whatever DestinationRule is taken, no proxy would refuse what is made of it for a rule in Envoy's API."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from support.destinations import Destination, at, reviews

from xds import pb
from xds.envoy.filters import Chain
from xds.envoy.filters.network import tcp_proxy
from xds.envoy.load_balancing import hash_policies
from xds.mesh.model import Client, Locality, Port, Protocol
from xds.objects import KINDS, DestinationRule, MeshConfig
from xds.objects.decoding import from_json
from xds.validation import check

PORTS = (Port(80, "http", Protocol.HTTP), Port(81, "grpc", Protocol.GRPC), Port(82, "tcp", Protocol.TCP))
CLIENTS = (Client("default", locality=Locality("a", "b", "c"), addresses=("10.0.0.1",)), Client("default", kind="router"))

durations = st.sampled_from(["0s", "1us", "1ms", "1500ms", "20s", "48h", "100000h"])
counts = st.sampled_from([-1, 0, 1, 2, 100, 127, 128, 2**31 - 1])
unsigned = st.sampled_from([0, 1, 99, 100, 101, 65537, 2**32 - 1])
percents = st.sampled_from([0, 0.5, 100, 101, -1])
texts = st.sampled_from(["", "a", "x-user", ":path", "a b", "a\n", "*.test", "10.0.0.1", "é", "a" * 300])
places = st.sampled_from(["", "*", "a", "a/*", "a/b/c", "a/*/c", "a*", "tier=x"])


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A message with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


hashing = some(
    httpHeaderName=texts,
    httpCookie=some(name=texts, path=texts, ttl=durations),
    useSourceIp=st.booleans(),
    httpQueryParameterName=texts,
    ringHash=some(minimumRingSize=st.sampled_from([0, 1, 8 * 2**20, 8 * 2**20 + 1])),
    maglev=some(tableSize=st.sampled_from([0, 1, 2, 4, 65537, 5000011, 5000077])),
)
localities = some(
    enabled=st.booleans(),
    distribute=st.lists(some(**{"from": places, "to": st.dictionaries(places, st.sampled_from([0, 50, 100]), max_size=2)}), max_size=2),
    failover=st.lists(some(**{"from": places, "to": places}), max_size=2),
    failoverPriority=st.lists(places, max_size=2),
)
balancers = some(
    simple=st.sampled_from(["UNSPECIFIED", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"]),
    consistentHash=hashing,
    localityLbSetting=localities,
    zoneAwareLbSetting=some(enabled=st.booleans(), minClusterSize=unsigned),
    warmup=some(duration=durations, minimumPercent=percents, aggression=percents),
)
pools = some(
    tcp=some(
        maxConnections=counts,
        connectTimeout=durations,
        tcpKeepalive=some(probes=unsigned, time=durations, interval=durations),
        maxConnectionDuration=durations,
        idleTimeout=durations,
    ),
    http=some(
        http1MaxPendingRequests=counts,
        http2MaxRequests=counts,
        maxRequestsPerConnection=counts,
        maxRetries=counts,
        idleTimeout=durations,
        h2UpgradePolicy=st.sampled_from(["DEFAULT", "UPGRADE", "DO_NOT_UPGRADE"]),
        useClientProtocol=st.booleans(),
        maxConcurrentStreams=counts,
        http2KeepAlive=some(interval=durations, timeout=durations),
    ),
)
outliers = some(
    splitExternalLocalOriginErrors=st.booleans(),
    consecutiveLocalOriginFailures=unsigned,
    consecutiveGatewayErrors=unsigned,
    consecutive5xxErrors=unsigned,
    interval=durations,
    baseEjectionTime=durations,
    maxEjectionPercent=counts,
    minHealthPercent=counts,
    outlierDetectionHttpErrorCodes=st.lists(unsigned, max_size=2),
)
transports = some(
    mode=st.sampled_from(["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"]),
    clientCertificate=texts,
    privateKey=texts,
    caCertificates=texts,
    credentialName=texts,
    subjectAltNames=st.lists(texts, max_size=2),
    sni=texts,
    insecureSkipVerify=st.booleans(),
    caCrl=texts,
)
policies = some(
    loadBalancer=balancers,
    connectionPool=pools,
    outlierDetection=outliers,
    tls=transports,
    tunnel=some(protocol=st.sampled_from(["CONNECT", "POST", "GET"]), targetHost=texts, targetPort=unsigned),
    proxyProtocol=some(version=st.sampled_from(["V1", "V2"])),
    retryBudget=some(percent=percents, minRetryConcurrency=unsigned, budgetInterval=durations),
)


@given(policies)
def test_every_rule_that_is_taken_makes_what_envoy_takes(policy: dict[str, Any]) -> None:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "it", "namespace": "default"},
        "spec": {"host": "reviews", "trafficPolicy": policy},
    }
    rule = from_json(msgspec.json.encode(document), KINDS["DestinationRule"]).object
    if rule is None:
        return
    assert isinstance(rule, DestinationRule)
    found = rule.spec.traffic_policy
    assert found is not None
    endpoints = [at(f"10.0.0.{n}", 80, place) for n, place in enumerate(("a/b/c", "a/b/d", "x/y/z"))]
    view = Destination(reviews(*PORTS), policy, endpoints=endpoints)
    route = pb.Route(match={"prefix": "/"}, route={"cluster": "a", "hash_policy": hash_policies(found)})
    made: list[Any] = [route]
    for client in CLIENTS:
        chain = Chain(inbound=False, config=MeshConfig(), client=client, protocol=Protocol.TCP, port=82)
        last = tcp_proxy(chain, "a", [("a", 1)], found)
        made += [*view.clusters(client).values(), *view.assignments(client).values(), pb.Listener(filter_chains=[{"filters": [last]}])]
    assert [str(violation) for message in made for violation in check(message)] == []
