"""Endpoints of services, and the services that a workload is behind."""

from typing import Any

import pytest
from support.meshes import apply, delete, endpoints, istio, k8s, mesh, node, pod

from xds.mesh.model import Health, Locality
from xds.mesh.store import Mesh

X = "x.default.svc.cluster.local"


def of(made: Mesh, host: str = X, port: int = 80, labels: tuple[tuple[str, str], ...] = (), where: str = "default") -> list[str]:
    return [f"{e.address}:{e.port}" for e in made.endpoints(host, where, port, labels)]


class TestSlices:
    def test_addresses_with_the_port_of_their_slice(self) -> None:
        made = mesh(k8s("x"), endpoints("x", "{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}"))
        assert of(made) == ["10.0.0.1:8080", "10.0.0.2:8080"]

    def test_ports_go_by_name(self) -> None:
        spec = "ports: [{name: http, port: 80}, {name: admin, port: 81}]"
        made = mesh(k8s("x", spec=spec), endpoints("x", "{addresses: [10.0.0.1]}", ports="{name: admin, port: 9}"))
        assert (of(made), of(made, port=81)) == ([], ["10.0.0.1:9"])

    def test_slices_of_one_service_add_up_and_may_overlap(self) -> None:
        made = mesh(
            k8s("x"),
            endpoints("x", "{addresses: [10.0.0.1], conditions: {ready: false}}", name="x-1"),
            endpoints("x", "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}", name="x-2"),
        )
        assert of(made) == ["10.0.0.1:8080", "10.0.0.2:8080"]
        assert made.endpoints(X, "default", 80)[0].health is Health.HEALTHY

    def test_of_two_address_families_the_service_s_first_counts(self) -> None:
        six = endpoints("x", "{addresses: ['fd00::1']}", name="x-6", family="IPv6")
        four = endpoints("x", "{addresses: [10.0.0.1]}")
        made = mesh(k8s("x"), four, six)
        assert of(made) == ["10.0.0.1:8080"]
        apply(made, k8s("x", spec="clusterIP: 'fd96::1', ports: [{name: http, port: 80}]"))
        assert of(made) == ["fd00::1:8080"]
        delete(made, "EndpointSlice x-6.default")
        assert of(made) == ["10.0.0.1:8080"]

    @pytest.mark.parametrize(
        ("conditions", "health"),
        [
            ("", Health.HEALTHY),
            ("ready: true", Health.HEALTHY),
            ("ready: false", Health.UNHEALTHY),
            ("ready: false, serving: true, terminating: true", None),
            ("ready: true, terminating: true", Health.HEALTHY),
        ],
    )
    def test_readiness(self, conditions: str, health: Health | None) -> None:
        made = mesh(k8s("x"), endpoints("x", f"{{addresses: [10.0.0.1], conditions: {{{conditions}}}}}"))
        assert [e.health for e in made.endpoints(X, "default", 80)] == ([] if health is None else [health])

    def test_terminating_ones_drain_where_sessions_are_kept(self) -> None:
        ending = endpoints("x", "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}")
        made = mesh(k8s("x", labels="{istio.io/persistent-session: a}"), ending)
        assert [e.health for e in made.endpoints(X, "default", 80)] == [Health.DRAINING]

    def test_those_not_ready_are_healthy_where_the_service_says_so(self) -> None:
        made = mesh(
            k8s("x", spec="publishNotReadyAddresses: true, ports: [{name: http, port: 80}]"),
            endpoints("x", "{addresses: [10.0.0.1], conditions: {ready: false}}"),
        )
        assert [e.health for e in made.endpoints(X, "default", 80)] == [Health.HEALTHY]

    def test_labels_account_and_place_come_from_the_pod(self) -> None:
        made = mesh(
            k8s("x"),
            endpoints("x", "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: x-1}}"),
            pod("x-1", "10.0.0.1", "version: v1", spec="nodeName: n, serviceAccountName: sa"),
            node("n", "r", "z"),
        )
        (found,) = made.endpoints(X, "default", 80)
        assert (found.labels, found.service_account, found.locality, found.node) == ((("version", "v1"),), "sa", Locality("r", "z"), "n")
        assert (of(made, labels=(("version", "v1"),)), of(made, labels=(("version", "v2"),))) == (["10.0.0.1:8080"], [])
        apply(made, node("n", "r", "other"))
        assert made.endpoints(X, "default", 80)[0].locality == Locality("r", "other")

    def test_without_a_reference_the_pod_is_found_by_address(self) -> None:
        made = mesh(k8s("x"), endpoints("x", "{addresses: [10.0.0.1]}"), pod("x-1", "10.0.0.1", "version: v1"))
        assert of(made, labels=(("version", "v1"),)) == ["10.0.0.1:8080"]

    def test_without_a_pod_the_slice_tells_the_zone(self) -> None:
        made = mesh(k8s("x"), endpoints("x", "{addresses: [10.0.0.1], zone: z}"))
        assert made.endpoints(X, "default", 80)[0].locality == Locality(zone="z")

    def test_a_workload_entry_that_the_selector_finds_is_one_too(self) -> None:
        made = mesh(
            k8s("x", spec="selector: {app: x}, ports: [{name: http, port: 80, targetPort: 8080}]"),
            istio("WorkloadEntry", "vm", "address: 10.9.0.1, labels: {app: x}, ports: {http: 9090}, weight: 5, locality: r/z/s"),
            istio("WorkloadEntry", "other", "address: 10.9.0.2, labels: {app: y}"),
        )
        assert of(made) == ["10.9.0.1:9090"]
        (found,) = made.endpoints(X, "default", 80)
        assert (found.weight, found.locality) == (5, Locality("r", "z", "s"))


def old(subsets: str) -> str:
    return f"---\n{{apiVersion: v1, kind: Endpoints, metadata: {{name: x}}, subsets: [{subsets}]}}\n"


class TestOldEndpoints:
    ONE = old("{addresses: [{ip: 10.0.0.1, nodeName: n, targetRef: {kind: Pod, name: x-1}}], ports: [{name: http, port: 8080}]}")

    def test_they_stand_where_there_is_no_slice(self) -> None:
        made = mesh(k8s("x"), self.ONE, pod("x-1", "10.0.0.1", "version: v1"))
        assert of(made, labels=(("version", "v1"),)) == ["10.0.0.1:8080"]
        assert [target.port for target in made.targets("default", ("10.0.0.1",), ())] == [8080]
        apply(made, endpoints("x", "{addresses: [10.0.0.2]}", name="x-1"))
        assert of(made) == ["10.0.0.2:8080"]
        assert made.targets("default", ("10.0.0.1",), ()) == ()
        delete(made, "EndpointSlice x-1.default")
        assert of(made) == ["10.0.0.1:8080"]

    def test_they_stand_before_what_the_selector_finds(self) -> None:
        spec = "selector: {app: x}, ports: [{name: http, port: 80, targetPort: 8080}]"
        made = mesh(k8s("x", spec=spec), self.ONE, pod("x-2", "10.0.0.2", "app: x"))
        assert of(made) == ["10.0.0.1:8080"]
        delete(made, "Endpoints x.default")
        assert of(made) == ["10.0.0.2:8080"]

    def test_each_subset_has_ports_of_its_own(self) -> None:
        one = "{addresses: [{ip: 10.0.0.1}], ports: [{name: http, port: 1}]}"
        two = "{addresses: [{ip: 10.0.0.2}, {ip: 10.0.0.3}], ports: [{name: http, port: 2}]}"
        assert of(mesh(k8s("x"), old(f"{one}, {two}"))) == ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:2"]

    def test_not_all_may_be_ready(self) -> None:
        made = mesh(k8s("x"), old("{addresses: [{ip: 10.0.0.1}], notReadyAddresses: [{ip: 10.0.0.2}], ports: [{name: http, port: 1}]}"))
        assert [e.health for e in made.endpoints(X, "default", 80)] == [Health.HEALTHY, Health.UNHEALTHY]

    def test_of_two_address_families_the_service_s_first_counts(self) -> None:
        made = mesh(k8s("x"), old("{addresses: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], ports: [{name: http, port: 1}]}"))
        assert of(made) == ["10.0.0.1:1"]


PORTS = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]"


def entry(rest: str) -> str:
    return istio("ServiceEntry", "e", f"hosts: [a.example.com], {PORTS}, {rest}")


class TestEntries:
    def a(self, *texts: str) -> list[str]:
        return of(mesh(*texts), "a.example.com")

    def test_inline(self) -> None:
        text = entry("resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, ports: {http: 9}}, {address: 'unix:///run/it'}]")
        assert self.a(text) == ["10.0.0.1:8080", "10.0.0.2:9", "unix:///run/it:0"]

    def test_none_where_calls_go_where_they_were_going(self) -> None:
        assert self.a(entry("resolution: NONE")) == []

    def test_a_name_that_dns_resolves_is_its_own(self) -> None:
        assert self.a(entry("resolution: DNS")) == ["a.example.com:8080"]

    def test_names_to_resolve(self) -> None:
        assert self.a(entry("resolution: DNS, endpoints: [{address: eu.example.com}]")) == ["eu.example.com:8080"]

    def test_selected_pods_and_workload_entries(self) -> None:
        text = entry("resolution: STATIC, workloadSelector: {labels: {app: a}}")
        made = mesh(
            text,
            pod("a-1", "10.0.0.1", "app: a"),
            pod("a-2", "10.0.0.2", "app: a", ready=False),
            pod("a-3", "10.0.0.3", "app: a", namespace="other"),
            pod("a-5", "10.0.0.5", "app: a", deletionTimestamp="'2024-01-01T00:00:00Z'"),
            istio("WorkloadEntry", "vm", "address: 10.0.0.4, labels: {app: a}, ports: {http: 9}"),
        )
        assert of(made, "a.example.com") == ["10.0.0.1:8080", "10.0.0.4:9"]
        apply(made, pod("a-2", "10.0.0.2", "app: a"), pod("a-1", "10.0.0.1", "app: b"))
        assert of(made, "a.example.com") == ["10.0.0.2:8080", "10.0.0.4:9"]


class TestTargets:
    """The service ports that a workload is behind."""

    def targets(self, made: Mesh, address: str, labels: str = "") -> list[tuple[str, int, int]]:
        own = tuple(tuple(pair.split("=")) for pair in labels.split(",") if pair)
        found: Any = made.targets("default", (address,), own)
        return sorted((t.service[0], t.service_port, t.port) for t in found)

    def test_by_a_slice_ready_or_not(self) -> None:
        made = mesh(k8s("x"), endpoints("x", "{addresses: [10.0.0.1], conditions: {ready: false}}"))
        assert self.targets(made, "10.0.0.1") == [(X, 80, 8080)]
        assert self.targets(made, "10.0.0.2") == []

    def test_by_an_inline_endpoint(self) -> None:
        made = mesh(entry("resolution: STATIC, endpoints: [{address: 10.0.0.1, ports: {http: 9}}]"))
        assert self.targets(made, "10.0.0.1") == [("a.example.com", 80, 9)]

    def test_by_a_selector(self) -> None:
        made = mesh(entry("resolution: STATIC, workloadSelector: {labels: {app: a}}"))
        assert self.targets(made, "10.0.0.1", "app=a,version=v1") == [("a.example.com", 80, 8080)]
        assert self.targets(made, "10.0.0.1", "app=b") == []

    def test_by_a_workload_entry_that_a_service_selects(self) -> None:
        made = mesh(
            k8s("x", spec="selector: {app: x}, ports: [{name: http, port: 80, targetPort: 8080}]"),
            istio("WorkloadEntry", "vm", "address: 10.9.0.1, labels: {app: x}"),
        )
        assert self.targets(made, "10.9.0.1") == [(X, 80, 8080)]
