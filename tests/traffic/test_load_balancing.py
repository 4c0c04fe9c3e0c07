"""DestinationRule `loadBalancer`: how requests are shared, and what is preferred for where the client is."""

from collections.abc import Iterator

import pytest
from support.traffic import Mesh, Pod, Service, World, eventually

from xds.mesh.model import Locality, Mode

HERE = Locality("north", "n1", "rack1")
PLACES = {"rack1": ("north", "n1", "rack1"), "rack2": ("north", "n1", "rack2"), "n2": ("north", "n2", ""), "south": ("south", "s1", "")}
EJECTING = "outlierDetection: {consecutive5xxErrors: 1, interval: 20ms, baseEjectionTime: 1h, maxEjectionPercent: 100}"


@pytest.fixture(scope="module")
def mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        yield mesh


def rule(host: str, policy: str, name: str = "") -> str:
    return f"""
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {{name: {name or host}}}
    spec: {{host: {host}, trafficPolicy: {{{policy}}}}}
    ---
    """


class TestSimple:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, mesh: Mesh) -> Pod:
        for name, simple in {
            "rounds": "ROUND_ROBIN",
            "dice": "RANDOM",
            "least": "LEAST_REQUEST",
            "connections": "LEAST_CONN",
            "unspecified": "UNSPECIFIED",
            "through": "PASSTHROUGH",
        }.items():
            mesh.service(name, {"v1": 3})
            mesh.apply(rule(name, f"loadBalancer: {{simple: {simple}}}"), quiet=True)
        mesh.service("silent", {"v1": 3})
        mesh.service("through-tcp", {"v1": 2}, [{"name": "tcp", "port": 9000}])
        mesh.apply(rule("through-tcp", "loadBalancer: {simple: PASSTHROUGH}"))
        return mesh.pod("simple")

    def test_round_robin_takes_turns(self, client: Pod) -> None:
        servers = [client.get("http://rounds/").server for _ in range(9)]
        assert servers[:3] == servers[3:6] == servers[6:]
        assert len(set(servers)) == 3

    @pytest.mark.parametrize("host", ["dice", "least", "connections", "unspecified", "silent"])
    def test_all_endpoints_are_called(self, client: Pod, host: str) -> None:
        assert len(client.many(f"http://{host}/", 80)) == 3

    @pytest.mark.parametrize("host", ["least", "connections", "unspecified", "silent"])
    def test_least_requests_avoids_a_busy_endpoint_and_is_the_default(self, mesh: Mesh, client: Pod, host: str) -> None:
        at = f"outbound|80||{host}.{mesh.namespace}.svc.cluster.local"
        (cluster,) = (c["cluster"] for c in client.config("dynamic_active_clusters") if c["cluster"]["name"] == at)
        assert cluster["lb_policy"] == "LEAST_REQUEST"

    def test_passthrough_goes_where_the_caller_was_going(self, mesh: Mesh, client: Pod) -> None:
        address = mesh.resolves[f"through.{mesh.namespace}.svc.cluster.local"]
        assert client.get("http://through/").server == address
        assert client.get("http://through/", at="203.0.113.50").server == "203.0.113.50"
        call = client.tcp("through-tcp", 9000)
        assert call is not None
        assert call.server == mesh.resolves[f"through-tcp.{mesh.namespace}.svc.cluster.local"]


class TestLocality:
    """One endpoint in each of `PLACES`; the client is in the first of them."""

    @pytest.fixture(scope="class")
    @classmethod
    def services(cls, mesh: Mesh) -> dict[str, Service]:
        for node, (region, zone, subzone) in PLACES.items():
            labels = {
                "topology.kubernetes.io/region": region,
                "topology.kubernetes.io/zone": zone,
                "topology.istio.io/subzone": subzone,
            }
            mesh.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{mesh.namespace}-{node}", "labels": labels}}, quiet=True)
        services = {}
        policies = {
            "near": EJECTING,
            "no-detection": "",
            "off": f"loadBalancer: {{localityLbSetting: {{enabled: false}}}}, {EJECTING}",
            "shared": "loadBalancer: {localityLbSetting: {enabled: true, distribute: "
            "[{from: north/*, to: {'north/n1/*': 50, 'south/*': 50}}, {from: '*', to: {'north/*': 100}}]}}",
            "elsewhere": "loadBalancer: {localityLbSetting: {distribute: [{from: south/*, to: {'south/*': 100}}]}}",
            "over": f"loadBalancer: {{localityLbSetting: {{failover: [{{from: north, to: south}}]}}}}, {EJECTING}",
            "labelled": "loadBalancer: {localityLbSetting: {failoverPriority: "
            f"[topology.kubernetes.io/region, topology.kubernetes.io/zone]}}}}, {EJECTING}",
            "own-label": f"loadBalancer: {{localityLbSetting: {{failoverPriority: [tier]}}}}, {EJECTING}",
            "given-label": f"loadBalancer: {{localityLbSetting: {{failoverPriority: ['version=south', 'tier=b']}}}}, {EJECTING}",
            "hashed": f"loadBalancer: {{consistentHash: {{httpHeaderName: x-user}}}}, {EJECTING}",
            "undetected": "loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region]}}",
        }
        tiers = {"rack1": {"tier": "b"}, "rack2": {"tier": "a"}, "n2": {"tier": "b"}, "south": {"tier": "c"}}
        for name, policy in policies.items():
            nodes = {place: f"{mesh.namespace}-{place}" for place in PLACES}
            services[name] = mesh.service(name, list(PLACES), labels=tiers, nodes=nodes)
            if policy:
                mesh.apply(rule(name, policy), quiet=True)
        mesh.apply(rule("unused", ""))
        return services

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, mesh: Mesh, services: dict[str, Service]) -> Pod:
        assert services
        return mesh.pod("here", {"tier": "a"}, locality=HERE, known=False)

    @pytest.mark.parametrize("by", ["node", "label"])
    def test_where_a_client_is(self, mesh: Mesh, client: Pod, by: str) -> None:
        if by == "node":
            client = mesh.pod("by-node", host=f"{mesh.namespace}-rack1", known=False)
        else:
            client = mesh.pod("by-label", {"istio-locality": "north.n1.rack1"})
        assert set(client.many("http://near/", 10)) == {"near-rack1"}

    @pytest.mark.parametrize(
        ("host", "places"),
        [
            ("near", {"rack1"}),
            ("no-detection", set(PLACES)),
            ("off", set(PLACES)),
            ("shared", {"rack1", "rack2", "south"}),
            ("elsewhere", set(PLACES)),
            ("labelled", {"rack1", "rack2"}),
            ("own-label", {"rack2"}),
            ("given-label", {"south"}),
            ("undetected", set(PLACES)),
            ("hashed", {"rack1"}),
        ],
    )
    def test_where_requests_go(self, client: Pod, host: str, places: set[str]) -> None:
        assert set(client.many(f"http://{host}/", 100)) == {f"{host}-{place}" for place in places}

    def test_shares_are_kept(self, client: Pod) -> None:
        seen = client.many("http://shared/", 200)
        assert 60 <= seen["shared-south"] <= 140


class TestFailover:
    @pytest.mark.parametrize(
        ("policy", "order"),
        [
            ("", ["rack1", "rack2", "n2", "south west"]),
            ("loadBalancer: {localityLbSetting: {failover: [{from: north, to: west}]}}", ["rack1", "rack2", "n2", "west", "south"]),
            (
                "loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region, topology.kubernetes.io/zone]}}",
                ["rack1 rack2", "n2", "south west"],
            ),
        ],
    )
    def test_the_next_place_takes_over_when_the_nearer_fail(self, mesh: Mesh, policy: str, order: list[str]) -> None:
        name = f"order-{len(mesh.pods)}"
        places = {**PLACES, "west": ("west", "w1", "")}
        endpoints = []
        applications = {}
        for place, where in places.items():
            applications[place] = mesh.application(place, ports=[8080])
            endpoints.append({"address": applications[place].address, "ports": {"http": 8080}, "locality": "/".join(filter(None, where))})
        mesh.put(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "ServiceEntry",
                "metadata": {"name": name},
                "spec": {
                    "hosts": [f"{name}.test"],
                    "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                    "resolution": "STATIC",
                    "endpoints": endpoints,
                },
            },
            quiet=True,
        )
        mesh.apply(rule(f"{name}.test", f"{policy}{', ' if policy else ''}{EJECTING}", name))
        client = mesh.pod(name, locality=HERE, known=False)
        for tier in order:
            members = set(tier.split())
            eventually(lambda members=members: set(client.many(f"http://{name}.test/", 20)) == members)
            for place in members:
                applications[place].status = 500
        eventually(lambda: client.get(f"http://{name}.test/").status == 503)

    def test_the_same_holds_for_names_that_dns_resolves(self, mesh: Mesh) -> None:
        near, far = (mesh.application(name, ports=[8080]) for name in ("near", "far"))
        mesh.name("near.endpoint.test", near.address)
        mesh.name("far.endpoint.test", far.address)
        mesh.apply(
            """
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {name: named}
            spec:
              hosts: [named.test]
              ports: [{number: 80, name: http, protocol: HTTP}]
              resolution: DNS
              endpoints:
              - {address: far.endpoint.test, ports: {http: 8080}, locality: south/s1}
              - {address: near.endpoint.test, ports: {http: 8080}, locality: north/n1}
            """,
            quiet=True,
        )
        mesh.apply(rule("named.test", EJECTING, "named"))
        client = mesh.pod("naming", locality=HERE, known=False)
        eventually(lambda: set(client.many("http://named.test/", 20)) == {"near"})
        near.status = 500
        eventually(lambda: set(client.many("http://named.test/", 20)) == {"far"})


def test_without_capture_a_headless_service_is_balanced(mesh: Mesh) -> None:
    service = mesh.service("headless", {"v1": 2}, headless=True)
    client = mesh.pod("uncaptured", mode=Mode.NONE)
    (cluster,) = (c["cluster"] for c in client.config("dynamic_active_clusters") if c["cluster"]["name"] == f"outbound|80||{service.host}")
    assert cluster["type"] == "EDS"
