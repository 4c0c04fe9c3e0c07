"""Services: from Kubernetes Services and from the hosts of ServiceEntries."""

import pytest
from support.meshes import apply, config, delete, istio, k8s, mesh, namespace, seen, the, view

from xds.mesh.model import Protocol, Resolution, Service
from xds.mesh.protocols import declared
from xds.mesh.store import Mesh
from xds.objects.service_entry import PROTOCOLS

X = "x.default.svc.cluster.local"


def service(made: Mesh, host: str = X, where: str = "default") -> Service:
    return the(made.service(host, where))


class TestKubernetes:
    def test_cluster_ip(self) -> None:
        addresses = "clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00::7']"
        found = service(mesh(k8s("x", spec=f"{addresses}, ports: [{{name: http, port: 80, targetPort: 8080}}]")))
        assert (found.hostname, found.namespace, found.name) == (X, "default", "x")
        assert found.addresses == ("10.96.0.7", "fd00::7")
        assert found.resolution is Resolution.ENDPOINTS
        assert [(p.number, p.name, p.protocol, p.target_port) for p in found.ports] == [(80, "http", Protocol.HTTP, 8080)]

    def test_headless(self) -> None:
        found = service(mesh(k8s("x", spec="clusterIP: None, ports: [{name: tcp, port: 80}]")))
        assert (found.headless, found.addresses, found.resolution) == (True, (), Resolution.PASSTHROUGH)

    def test_of_a_port_that_both_speak_tcp_counts(self) -> None:
        found = service(mesh(k8s("x", spec="ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]")))
        assert [(p.number, p.protocol) for p in found.ports] == [(53, Protocol.TCP)]

    def test_an_external_name_is_an_alias(self) -> None:
        made = mesh(k8s("x"), k8s("old", spec="type: ExternalName, externalName: x.default.svc.cluster.local"))
        assert made.service("old.default.svc.cluster.local", "default") is None
        assert service(made).aliases == ("old.default.svc.cluster.local",)
        assert the(view(made).destination("old.default.svc.cluster.local")).hostname == X
        assert seen(made) == {f"{X}@default"}

    def test_aliases_of_aliases(self) -> None:
        made = mesh(
            k8s("x"),
            k8s("old", spec="type: ExternalName, externalName: x.default.svc.cluster.local"),
            k8s("older", "other", spec="type: ExternalName, externalName: OLD.default.svc.cluster.local."),
        )
        assert service(made).aliases == ("old.default.svc.cluster.local", "older.other.svc.cluster.local")
        assert made.resolved("older.other.svc.cluster.local") == X
        delete(made, "Service old.default")
        assert service(made).aliases == ()

    def test_aliases_that_go_in_circles_end(self) -> None:
        made = mesh(
            k8s("a", spec="type: ExternalName, externalName: b.default.svc.cluster.local"),
            k8s("b", spec="type: ExternalName, externalName: a.default.svc.cluster.local"),
        )
        assert made.resolved("a.default.svc.cluster.local") == "b.default.svc.cluster.local"
        assert made.aliases("a.default.svc.cluster.local") == ("b.default.svc.cluster.local",)

    @pytest.mark.parametrize(
        ("spec", "attribute", "value"),
        [
            ("internalTrafficPolicy: Local, ports: []", "node_local", True),
            ("publishNotReadyAddresses: true, ports: []", "publish_not_ready", True),
            ("trafficDistribution: PreferClose, ports: []", "traffic_distribution", "PreferClose"),
        ],
    )
    def test_fields_that_say_how_endpoints_are_used(self, spec: str, attribute: str, value: object) -> None:
        assert getattr(service(mesh(k8s("x", spec=spec))), attribute) == value

    def test_only_annotations_of_istio_count(self) -> None:
        made = mesh(k8s("x", annotations="{networking.istio.io/traffic-distribution: PreferClose, example.com/checksum: '1'}"))
        found = service(made)
        assert found.annotations == (("networking.istio.io/traffic-distribution", "PreferClose"),)
        assert found.traffic_distribution == "PreferClose"

    @pytest.mark.parametrize(
        ("annotation", "export_to"),
        [("'*'", {"*"}), (".", {"default"}), ("'a, .'", {"a", "default"}), ("'~'", set()), ("'a,*'", {"*"})],
    )
    def test_export_to(self, annotation: str, export_to: set[str]) -> None:
        made = mesh(k8s("x", annotations=f"{{networking.istio.io/exportTo: {annotation}}}"))
        assert service(made).export_to == export_to

    def test_what_is_not_exported_by_default(self) -> None:
        made = mesh(k8s("x"), config("defaultServiceExportTo: [.]"))
        assert service(made).export_to == {"default"}


ENTRY = "hosts: [A.example.com], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS"


class TestEntries:
    def test_one_host(self) -> None:
        found = service(mesh(istio("ServiceEntry", "e", ENTRY)), "a.example.com")
        assert (found.hostname, found.external, found.resolution, found.from_kubernetes) == ("a.example.com", True, Resolution.DNS, False)
        assert [(p.number, p.protocol) for p in found.ports] == [(443, Protocol.TLS)]

    @pytest.mark.parametrize(
        ("resolution", "expected"),
        [
            ("NONE", Resolution.PASSTHROUGH),
            ("STATIC", Resolution.ENDPOINTS),
            ("DNS", Resolution.DNS),
            ("DNS_ROUND_ROBIN", Resolution.DNS_ROUND_ROBIN),
            ("DYNAMIC_DNS", Resolution.DYNAMIC_DNS),
        ],
    )
    def test_resolutions(self, resolution: str, expected: Resolution) -> None:
        made = mesh(istio("ServiceEntry", "e", ENTRY.replace("DNS", resolution)))
        assert service(made, "a.example.com").resolution is expected

    def test_several_for_one_host_add_their_ports_and_addresses_to_the_oldest(self) -> None:
        young = "hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], addresses: [10.1.0.2], resolution: STATIC"
        old = f"{ENTRY.lower().replace('dns', 'DNS').replace('tls}', 'TLS}')}, addresses: [10.1.0.1], location: MESH_INTERNAL"
        made = mesh(
            istio("ServiceEntry", "a", young, creationTimestamp="2025-01-01T00:00:00Z"),
            istio("ServiceEntry", "b", old, creationTimestamp="2024-01-01T00:00:00Z"),
        )
        found = service(made, "a.example.com")
        assert (found.name, found.external, found.resolution) == ("b", False, Resolution.DNS)
        assert (found.addresses, [p.number for p in found.ports]) == (("10.1.0.1", "10.1.0.2"), [443, 80])

    def test_a_kubernetes_service_of_that_name_counts_in_its_namespace(self) -> None:
        made = mesh(istio("ServiceEntry", "e", f"hosts: [{X}], ports: [{{number: 9, name: tcp}}], resolution: STATIC"), k8s("x"))
        assert service(made).from_kubernetes
        delete(made, "Service x.default")
        assert not service(made).from_kubernetes

    def test_udp_ports_are_left_out(self) -> None:
        made = mesh(istio("ServiceEntry", "e", ENTRY.replace("protocol: TLS", "protocol: UDP")))
        assert service(made, "a.example.com").ports == ()


class TestDiscoverySelectors:
    def test_namespaces_that_are_not_selected_are_not_there(self) -> None:
        made = mesh(k8s("x", "in"), k8s("x", "out"), namespace("in", "mesh: yes-please"), namespace("out"))
        assert len(seen(made)) == 2
        apply(made, config("discoverySelectors: [{matchLabels: {mesh: yes-please}}]"))
        assert seen(made) == {"x.in.svc.cluster.local@in"}
        apply(made, namespace("out", "mesh: yes-please"))
        assert len(seen(made)) == 2

    @pytest.mark.parametrize(
        ("selector", "chosen"),
        [
            ("{matchLabels: {kubernetes.io/metadata.name: in}}", True),
            ("{matchExpressions: [{key: team, operator: In, values: [a, b]}]}", True),
            ("{matchExpressions: [{key: team, operator: NotIn, values: [a]}]}", False),
            ("{matchExpressions: [{key: other, operator: NotIn, values: [a]}]}", True),
            ("{matchExpressions: [{key: team, operator: Exists}]}", True),
            ("{matchExpressions: [{key: team, operator: DoesNotExist}]}", False),
            ("{matchLabels: {team: a}, matchExpressions: [{key: team, operator: DoesNotExist}]}", False),
            ("{}", True),
        ],
    )
    def test_selectors(self, selector: str, chosen: bool) -> None:
        made = mesh(k8s("x", "in"), namespace("in", "team: a"), config(f"discoverySelectors: [{selector}]"))
        assert (made.service("x.in.svc.cluster.local", "in") is not None) is chosen


def test_every_protocol_that_ports_may_declare_is_known() -> None:
    assert {name for name in PROTOCOLS if declared(name) is not Protocol.AUTO} == PROTOCOLS
