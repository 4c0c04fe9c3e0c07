"""DestinationRules: which of them apply to whom, and their subsets."""

from collections.abc import Iterator

import pytest
from support.traffic import Mesh, Pod, World, eventually

ROOT = "istio-system"

SERVICES = (
    *("plain", "short", "full", "dotted", "upper", "private", "shared", "listed", "hidden", "wild", "exact", "own", "outranked"),
    *("rooted", "root-private", "third", "own-short", "stranger"),
)

# A rule shows itself by the PROXY protocol header that the application gets: its version, or none.
RULE = """
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {{name: {name}, namespace: {namespace}}}
    spec: {{host: "{host}", trafficPolicy: {{proxyProtocol: {{version: {version}}}}}{more}}}
    ---
"""


def rule(host: str, namespace: str, version: str = "V1", name: str = "", more: str = "") -> str:
    """A rule for `host`, in `namespace`, whose calls begin with the PROXY protocol."""
    made = name or "".join(c if c.isalnum() else "-" for c in f"r{host}{version}".lower()).rstrip("-")
    return RULE.format(name=made, namespace=namespace, host=host, version=version, more=more)


def found(pod: Pod, host: str) -> str:
    """Which rule applied: the version of the PROXY protocol, or empty."""
    reply = pod.get(f"http://{host}/")
    assert reply.call is not None, reply
    return reply.call.proxied.partition(" ")[0]


@pytest.fixture(scope="module")
def mesh(world: World) -> Iterator[Mesh]:
    with Mesh(world) as mesh:
        yield mesh


class TestWhichApplies:
    """Clients in two namespaces call services in a third."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, mesh: Mesh) -> tuple[str, str, str]:
        return tuple(f"{mesh.namespace}-{name}" for name in ("near", "far", "services"))  # type: ignore[return-value]

    @pytest.fixture(scope="class")
    @classmethod
    def clients(cls, mesh: Mesh, places: tuple[str, str, str]) -> tuple[Pod, Pod]:
        near, far, services = places
        at = f"{services}.svc.cluster.local"
        for name in SERVICES:
            mesh.service(name, namespace=services)
        mesh.service("short", namespace=near)
        rules = [
            rule("short", services, "V1"),
            rule(f"full.{at}", services, "V1"),
            rule(f"dotted.{at}.", services, "V1"),
            rule(f"UPPER.{at}".replace(services, services.upper()), services, "V1"),
            rule(f"private.{at}", services, "V1", more=", exportTo: ['.']"),
            rule(f"shared.{at}", services, "V1", more=f", exportTo: ['.', {near}]"),
            rule(f"listed.{at}", services, "V1", more=", exportTo: ['*']"),
            rule(f"hidden.{at}", services, "V1", more=", exportTo: ['~']"),
            # The most specific host of a namespace.
            rule(f"*.{at}", near, "V1"),
            rule("*.cluster.local", near, "V2"),
            rule(f"exact.{at}", near, "V2"),
            # The client's namespace before the service's, before the root's.
            rule(f"own.{at}", far, "V2"),
            rule(f"own.{at}", services, "V1", name="own-of-services"),
            rule(f"rooted.{at}", ROOT, "V1", name=f"{mesh.namespace}-rooted"),
            rule(f"outranked.{at}", ROOT, "V2", name=f"{mesh.namespace}-outranked"),
            rule(f"outranked.{at}", services, "V1", name="outranked"),
            rule(f"root-private.{at}", ROOT, "V1", name=f"{mesh.namespace}-root-private", more=", exportTo: ['.']"),
            # Neither the client's namespace nor the service's nor the root.
            rule(f"third.{at}", f"{mesh.namespace}-third", "V1", name="third"),
            # A short name is one of the rule's own namespace.
            rule("own-short", far, "V1"),
            # The client's own, but exported to others only.
            rule(f"stranger.{at}", far, "V1", more=f", exportTo: [{near}]"),
            # Not in the service registry.
            rule(f"nobody-at-all.{at}", services, "V1"),
        ]  # fmt: skip
        mesh.apply("".join(rules))
        return mesh.pod("near", namespace=near), mesh.pod("far", namespace=far)

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("plain", ""),
            ("short", "1"),
            ("full", "1"),
            ("dotted", "1"),
            ("upper", "1"),
            ("private", ""),
            ("shared", ""),
            ("listed", "1"),
            ("hidden", ""),
            ("own", "2"),
            ("rooted", "1"),
            ("outranked", "1"),
            ("root-private", ""),
            ("third", ""),
            ("own-short", ""),
            ("stranger", ""),
        ],
    )
    def test_without_wildcards(self, clients: tuple[Pod, Pod], places: tuple[str, str, str], host: str, expected: str) -> None:
        assert found(clients[1], f"{host}.{places[2]}") == expected

    @pytest.mark.parametrize(("host", "expected"), [("exact", "2"), ("wild", "1"), ("listed", "1"), ("outranked", "1"), ("own", "1")])
    def test_the_most_specific_host_of_the_client_s_namespace_wins(
        self, clients: tuple[Pod, Pod], places: tuple[str, str, str], host: str, expected: str
    ) -> None:
        assert found(clients[0], f"{host}.{places[2]}") == expected

    def test_a_wildcard_of_the_client_s_namespace_takes_services_of_any(
        self, clients: tuple[Pod, Pod], places: tuple[str, str, str]
    ) -> None:
        assert found(clients[0], f"short.{places[0]}") == "2"

    def test_a_rule_is_for_the_clients_that_it_is_exported_to(self, mesh: Mesh, places: tuple[str, str, str]) -> None:
        at = f"{places[2]}.svc.cluster.local"
        for name in ("to-one", "to-both", "to-own"):
            mesh.service(name, namespace=places[2])
        mesh.apply(
            rule(f"to-one.{at}", places[2], more=f", exportTo: [{mesh.namespace}-a]")
            + rule(f"to-both.{at}", places[2], more=f", exportTo: [{mesh.namespace}-a, {mesh.namespace}-b]")
            + rule(f"to-own.{at}", places[2], more=", exportTo: ['.']")
        )
        a, b, own = (mesh.pod(f"x{n}", namespace=n) for n in (f"{mesh.namespace}-a", f"{mesh.namespace}-b", places[2]))
        applied = {pod.mesh_namespace: [found(pod, f"{n}.{places[2]}") for n in ("to-one", "to-both", "to-own")] for pod in (a, b, own)}
        assert list(applied.values()) == [["1", "1", ""], ["", "1", ""], ["", "", "1"]]


class TestChanges:
    def test_clients_follow_what_a_rule_is_exported_to_and_for(self, mesh: Mesh) -> None:
        services = f"{mesh.namespace}-moving"
        for name in ("first", "second"):
            mesh.service(name, namespace=services)
        hosts = [f"{name}.{services}.svc.cluster.local" for name in ("first", "second")]
        near, far = mesh.pod("moving"), mesh.pod("moved", namespace=f"{mesh.namespace}-moved")
        steps = [
            (hosts[0], "*", ["1", "", "1", ""]),
            (hosts[0], ".", ["", "", "", ""]),
            (hosts[0], mesh.namespace, ["1", "", "", ""]),
            (hosts[1], mesh.namespace, ["", "1", "", ""]),
            (hosts[1], far.mesh_namespace, ["", "", "", "1"]),
            (f"*.{services}.svc.cluster.local", "*", ["1", "1", "1", "1"]),
        ]
        for host, to, expected in steps:
            mesh.apply(rule(host, services, name="moving", more=f", exportTo: ['{to}']"))
            eventually(lambda expected=expected: [found(pod, h) for pod in (near, far) for h in hosts] == expected)
        mesh.delete("DestinationRule", "moving", services)
        eventually(lambda: [found(pod, h) for pod in (near, far) for h in hosts] == [""] * 4)

    def test_under_a_sidecar_too_the_rules_of_a_service_s_namespace_and_of_the_root_apply(self, mesh: Mesh) -> None:
        services, clients = f"{mesh.namespace}-shown", f"{mesh.namespace}-narrow"
        for name in ("by-owner", "by-root"):
            mesh.service(name, namespace=services)
        mesh.apply(
            rule(f"by-owner.{services}.svc.cluster.local", services, "V1", name="by-owner")
            + rule(f"by-root.{services}.svc.cluster.local", ROOT, "V2", name=f"{mesh.namespace}-by-root")
            + f"""
    apiVersion: networking.istio.io/v1
    kind: Sidecar
    metadata: {{name: default, namespace: {clients}}}
    spec: {{egress: [{{hosts: ["{services}/*"]}}]}}
    """
        )
        client = mesh.pod("narrow", namespace=clients)
        assert [found(client, f"{name}.{services}") for name in ("by-owner", "by-root")] == ["1", "2"]


class TestWorkloadSelector:
    def test_a_rule_that_selects_is_for_the_namespace_s_workloads_with_all_labels(self, mesh: Mesh) -> None:
        mesh.service("picky")
        host = f"picky.{mesh.namespace}.svc.cluster.local"
        labels = "{matchLabels: {role: caller, tier: front}}"
        mesh.apply(
            rule(host, mesh.namespace, "V2", more=f", workloadSelector: {labels}") + rule(host, mesh.namespace, "V1", name="for-all")
        )
        chosen = mesh.pod("chosen", {"role": "caller", "tier": "front", "more": "x"})
        unknown = mesh.pod("unknown", {"role": "caller", "tier": "front"}, known=False)
        half = mesh.pod("half", {"role": "caller"})
        elsewhere = mesh.pod("elsewhere", {"role": "caller", "tier": "front"}, namespace=f"{mesh.namespace}-elsewhere")
        assert [found(pod, f"picky.{mesh.namespace}") for pod in (chosen, unknown, half, elsewhere)] == ["2", "2", "1", "1"]
        mesh.delete("DestinationRule", "for-all")
        eventually(lambda: found(half, "picky") == "")
        assert found(chosen, "picky") == "2"
        pod = mesh.objects["Pod", mesh.namespace, "half"]
        mesh.put({**pod, "metadata": {**pod["metadata"], "labels": {"app": "half", "role": "caller", "tier": "front"}}})
        eventually(lambda: found(half, "picky") == "2")


class TestSubsets:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, mesh: Mesh) -> Pod:
        labels = {"v1": {"track": "stable"}, "v2": {"track": "stable"}, "v3": {"track": "canary"}}
        mesh.service("reviews", {"v1": 1, "v2": 2, "v3": 1}, labels=labels)
        mesh.apply("""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: reviews}
            spec:
              host: reviews
              trafficPolicy: {proxyProtocol: {version: V1}}
              subsets:
              - {name: v1, labels: {version: v1}}
              - {name: v2, labels: {version: v2}, trafficPolicy: {proxyProtocol: {version: V2}}}
              - {name: stable, labels: {track: stable}}
              - {name: both, labels: {track: stable, version: v2}}
              - {name: all}
              - {name: none, labels: {version: v9}}
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: reviews}
            spec:
              hosts: [reviews]
              http:
              - {match: [{uri: {prefix: /v1}}], route: [{destination: {host: reviews, subset: v1}}]}
              - {match: [{uri: {prefix: /v2}}], route: [{destination: {host: reviews, subset: v2}}]}
              - {match: [{uri: {prefix: /stable}}], route: [{destination: {host: reviews, subset: stable}}]}
              - {match: [{uri: {prefix: /both}}], route: [{destination: {host: reviews, subset: both}}]}
              - {match: [{uri: {prefix: /all}}], route: [{destination: {host: reviews, subset: all}}]}
              - {match: [{uri: {prefix: /none}}], route: [{destination: {host: reviews, subset: none}}]}
              - {match: [{uri: {prefix: /undefined}}], route: [{destination: {host: reviews, subset: undefined}}]}
              - match: [{uri: {prefix: /some}}]
                route:
                - {destination: {host: reviews, subset: v1}, weight: 50}
                - {destination: {host: reviews, subset: none}, weight: 50}
              - {route: [{destination: {host: reviews}}]}
        """)
        return mesh.pod("subsets")

    @pytest.mark.parametrize(
        ("path", "servers"),
        [
            ("v1", {"reviews-v1"}),
            ("v2", {"reviews-v2-0", "reviews-v2-1"}),
            ("stable", {"reviews-v1", "reviews-v2-0", "reviews-v2-1"}),
            ("both", {"reviews-v2-0", "reviews-v2-1"}),
            ("all", {"reviews-v1", "reviews-v2-0", "reviews-v2-1", "reviews-v3"}),
            ("", {"reviews-v1", "reviews-v2-0", "reviews-v2-1", "reviews-v3"}),
            ("none", {"503"}),
            ("undefined", {"503"}),
            ("some", {"reviews-v1", "503"}),
        ],
    )
    def test_a_subset_is_the_endpoints_with_all_its_labels(self, client: Pod, path: str, servers: set[str]) -> None:
        assert set(client.many(f"http://reviews/{path}", 100)) == servers

    def test_a_subset_inherits_the_rule_s_policy_unless_it_has_its_own(self, client: Pod) -> None:
        for path, proxied in (("", "1"), ("v1", "1"), ("v2", "2")):
            call = client.get(f"http://reviews/{path}").call
            assert call is not None
            assert call.proxied.startswith(proxied)

    def test_a_pod_joins_and_leaves_subsets_with_its_labels(self, mesh: Mesh, client: Pod) -> None:
        pod = mesh.objects["Pod", mesh.namespace, "reviews-v3"]
        mesh.put({**pod, "metadata": {**pod["metadata"], "labels": {"app": "reviews", "version": "v9"}}})
        eventually(lambda: client.get("http://reviews/none").server == "reviews-v3")
        mesh.put(pod)
        eventually(lambda: client.get("http://reviews/none").status == 503)


class TestSeveralRulesForOneHost:
    def test_their_subsets_add_up_and_the_oldest_policy_stands(self, mesh: Mesh) -> None:
        mesh.service("merged", {"v1": 1, "v2": 1})
        for name, year, version, number in (("young", 2023, "v2", "V2"), ("old", 2020, "v1", "V1"), ("bare", 2019, "v3", None)):
            host = "merged" if name != "old" else f"merged.{mesh.namespace}.svc.cluster.local"
            policy = {"trafficPolicy": {"proxyProtocol": {"version": number}}} if number else {}
            subsets = [{"name": version, "labels": {"version": version}}, {"name": "shared", "labels": {"version": version}}]
            mesh.put(
                {
                    "apiVersion": "networking.istio.io/v1",
                    "kind": "DestinationRule",
                    "metadata": {"name": name, "creationTimestamp": f"{year}-01-01T00:00:00Z"},
                    "spec": {"host": host, "subsets": subsets, **policy},
                },
                quiet=True,
            )
        mesh.apply("""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: merged}
            spec:
              hosts: [merged]
              http:
              - {match: [{uri: {prefix: /v1}}], route: [{destination: {host: merged, subset: v1}}]}
              - {match: [{uri: {prefix: /v2}}], route: [{destination: {host: merged, subset: v2}}]}
              - {match: [{uri: {prefix: /v3}}], route: [{destination: {host: merged, subset: v3}}]}
              - {match: [{uri: {prefix: /shared}}], route: [{destination: {host: merged, subset: shared}}]}
              - {route: [{destination: {host: merged}}]}
        """)
        client = mesh.pod("merging")
        replies = {path: client.get(f"http://merged/{path}") for path in ("v1", "v2", "v3", "shared", "")}
        assert [replies[p].server for p in ("v1", "v2")] == ["merged-v1", "merged-v2"]
        # The oldest rule's subset of a name stands, and no pod has the label.
        assert [replies[p].status for p in ("v3", "shared")] == [503, 503]
        for path in ("", "v1", "v2"):
            call = replies[path].call
            assert call is not None
            assert call.proxied.startswith("1")
        mesh.delete("DestinationRule", "old")
        eventually(lambda: found(client, "merged") == "2")
        assert client.get("http://merged/v1").status == 503


class TestPorts:
    PORTS = (
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "http-other", "port": 8000, "targetPort": 8080},
        {"name": "tcp", "port": 9000, "targetPort": 9090},
        {"name": "grpc", "port": 7000, "targetPort": 7070},
    )  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, mesh: Mesh) -> Pod:
        mesh.service("ports", {"v1": 1}, cls.PORTS)
        mesh.service("quiet", {"v1": 1}, cls.PORTS)
        # What shows: the version of the PROXY protocol is no setting of ports. A connection for each request is one.
        mesh.apply("""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {name: ports}
            spec:
              host: ports
              trafficPolicy:
                connectionPool: {http: {maxRequestsPerConnection: 1}}
                portLevelSettings:
                - port: {number: 8000}
                  loadBalancer: {simple: ROUND_ROBIN}
                - port: {number: 9000}
                  tls: {mode: SIMPLE, insecureSkipVerify: true, sni: of-the-port.test}
                - port: {number: 7000}
                  connectionPool: {http: {maxRequestsPerConnection: 1}}
              subsets:
              - name: v1
                labels: {version: v1}
                trafficPolicy:
                  portLevelSettings:
                  - port: {number: 80}
                    tls: {mode: SIMPLE, insecureSkipVerify: true, sni: of-the-subset.test}
              - name: again
                labels: {version: v1}
                trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: ports}
            spec:
              hosts: [ports]
              http:
              - {match: [{uri: {prefix: /v1}}], route: [{destination: {host: ports, subset: v1}}]}
              - {match: [{uri: {prefix: /again}}], route: [{destination: {host: ports, subset: again}}]}
              - {route: [{destination: {host: ports}}]}
        """)
        return mesh.pod("ports")

    def connections(self, client: Pod, url: str) -> int:
        calls = [client.get(url).call for _ in range(4)]
        return len({call.connection for call in calls if call is not None})

    def test_settings_for_all_ports_are_for_those_without_their_own(self, client: Pod) -> None:
        assert self.connections(client, "http://ports/") == 4

    def test_a_port_s_settings_inherit_nothing(self, client: Pod) -> None:
        assert self.connections(client, "http://ports:8000/") == 1

    def test_each_port_has_its_protocol(self, client: Pod) -> None:
        call = client.tcp("ports", 9000)
        assert call is not None
        assert (call.tls, call.sni) == (True, "of-the-port.test")
        grpc = client.http2("http://ports:7000/").call
        assert grpc is not None
        assert (grpc.protocol, grpc.tls) == ("HTTP/2", False)

    def test_a_subset_s_settings_for_a_port_stand_over_the_rule_s_and_inherit_nothing(self, client: Pod) -> None:
        call = client.get("http://ports/v1").call
        assert call is not None
        assert (call.tls, call.sni) == (True, "of-the-subset.test")
        assert self.connections(client, "http://ports/v1") == 1

    def test_a_subset_s_settings_stand_over_the_rule_s_for_a_port(self, client: Pod) -> None:
        assert self.connections(client, "http://ports:8000/again") == 4
