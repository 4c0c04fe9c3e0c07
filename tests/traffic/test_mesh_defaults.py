"""MeshConfig's defaults for destinations, and what rules make of them."""

from collections.abc import Iterator

import pytest
from support.traffic import Mesh, Pod, World

PORTS = ({"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-other", "port": 8000, "targetPort": 8080})

CONFIG = """
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: istio, namespace: istio-system}
    data:
      mesh: |
        defaultTrafficPolicy:
          connectionPool: {http: {maxRequestsPerConnection: 1}}
        h2UpgradePolicy: UPGRADE
        connectTimeout: 7s
        tcpKeepalive: {time: 33s}
        localityLbSetting: {enabled: false}
"""


@pytest.fixture(scope="module")
def mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        for name in ("bare", "empty", "pooled", "ported"):
            mesh.service(name, ports=PORTS)
        mesh.apply(CONFIG, quiet=True)
        mesh.apply("""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: empty}
            spec: {host: empty, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: pooled}
            spec: {host: pooled, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}, tcp: {connectTimeout: 2s}}}}
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: ported}
            spec:
              host: ported
              trafficPolicy:
                connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}
                portLevelSettings: [{port: {number: 8000}, loadBalancer: {simple: RANDOM}}]
        """)
        yield mesh


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Pod:
    return mesh.pod("client")


@pytest.mark.parametrize(
    ("url", "connections", "protocol"),
    [
        ("http://bare/", 3, "HTTP/2"),
        ("http://empty/", 3, "HTTP/2"),
        ("http://pooled/", 1, "HTTP/1.1"),
        ("http://ported/", 1, "HTTP/1.1"),
        # What a port's settings leave out is the mesh's default again, and not the rule's.
        ("http://ported:8000/", 3, "HTTP/2"),
    ],
)
def test_a_rule_s_block_replaces_the_mesh_s(client: Pod, url: str, connections: int, protocol: str) -> None:
    calls = [client.get(url).call for _ in range(3)]
    assert len({call.connection for call in calls if call is not None}) == connections
    assert {call.protocol for call in calls if call is not None} == {protocol}


@pytest.mark.parametrize(("host", "timeout"), [("bare", "7s"), ("pooled", "2s")])
def test_timeouts_and_keepalive_are_the_mesh_s_where_the_rule_has_none(mesh: Mesh, client: Pod, host: str, timeout: str) -> None:
    name = f"outbound|80||{host}.{mesh.namespace}.svc.cluster.local"
    (cluster,) = (c["cluster"] for c in client.config("dynamic_active_clusters") if c["cluster"]["name"] == name)
    assert cluster["connect_timeout"] == timeout
    assert cluster["upstream_connection_options"] == {"tcp_keepalive": {"keepalive_time": 33}}
