"""Proxies by what they claim, and what their own objects say instead."""

import pytest
from support.meshes import apply, istio, mesh, node, objects, pod

from xds.mesh.model import Client, Locality, Mode
from xds.mesh.store import Mesh
from xds.mesh.workloads import claim, parse_locality, workload_name

ID = "sidecar~10.0.0.1~x-1.shop~shop.svc.cluster.local"


def client(made: Mesh, node_id: str = ID, **metadata: object) -> Client:
    return made.client(claim(node_id, metadata))


class TestClaim:
    def test_istio_s_node_id(self) -> None:
        found = claim(ID, {})
        assert (found.kind, found.addresses, found.name, found.namespace, found.domain) == (
            "sidecar", ("10.0.0.1",), "x-1", "shop", "cluster.local",
        )  # fmt: skip

    def test_metadata(self) -> None:
        found = claim(
            "router~10.0.0.1~gw.edge~edge.svc.example.org",
            {
                "NAMESPACE": "shop", "INSTANCE_IPS": "10.0.0.1, fd00::1,", "LABELS": {"b": "2", "a": "1"}, "SERVICE_ACCOUNT": "sa",
                "INTERCEPTION_MODE": "TPROXY", "NODE_NAME": "n", "NETWORK": "net", "WORKLOAD_NAME": "gw", "HTTP10": "1",
            },
        )  # fmt: skip
        assert (found.kind, found.domain, found.namespace, found.mode) == ("router", "example.org", "shop", Mode.TPROXY)
        assert (found.addresses, found.labels) == (("10.0.0.1", "fd00::1"), (("a", "1"), ("b", "2")))
        assert (found.service_account, found.node, found.network, found.workload, found.http10) == ("sa", "n", "net", "gw", True)

    @pytest.mark.parametrize("node_id", ["", "anything", "a~b", "~~~", "sidecar~~~"])
    def test_anything_may_be_missing(self, node_id: str) -> None:
        found = claim(node_id, {"NAMESPACE": 5, "LABELS": "no", "INTERCEPTION_MODE": "SIDEWAYS"})
        assert (found.namespace, found.labels, found.mode) == ("default", (), None)


class TestClient:
    def test_a_pod_says_more_than_its_proxy(self) -> None:
        made = mesh(
            pod("x-1", "10.0.0.9", "app: x", "shop", "nodeName: n, serviceAccountName: sa"),
            node("n", "r", "z"),
        )
        found = client(made, LABELS={"app": "liar"}, SERVICE_ACCOUNT="admin")
        assert (found.labels, found.service_account, found.addresses) == ((("app", "x"),), "sa", ("10.0.0.9",))
        assert (found.locality, found.node) == (Locality("r", "z"), "n")
        apply(made, pod("x-1", "10.0.0.9", "app: y", "shop"))
        assert client(made, LABELS={"app": "liar"}).labels == (("app", "y"),)

    def test_without_one_its_word_counts(self) -> None:
        found = client(mesh(), LABELS={"app": "x"}, SERVICE_ACCOUNT="sa", INTERCEPTION_MODE="NONE")
        assert (found.labels, found.service_account, found.addresses, found.mode) == ((("app", "x"),), "sa", ("10.0.0.1",), Mode.NONE)

    def test_a_workload_entry_is_found_by_address(self) -> None:
        made = mesh(istio("WorkloadEntry", "vm", "address: 10.0.0.1, labels: {app: vm}, serviceAccount: sa, locality: r/z", "shop"))
        found = client(made)
        assert (found.labels, found.service_account, found.locality) == ((("app", "vm"),), "sa", Locality("r", "z"))

    def test_one_of_another_namespace_is_not_it(self) -> None:
        entry = istio("WorkloadEntry", "vm", "address: 10.0.0.1, labels: {app: vm}", "other")
        made = mesh(entry, pod("y-1", "10.0.0.1", "app: y", "other"))
        assert client(made).labels == ()

    def test_the_mode_that_the_pod_asks_for(self) -> None:
        made = mesh(pod("x-1", "10.0.0.1", "", "shop", annotations="{sidecar.istio.io/interceptionMode: NONE}"))
        assert client(made).mode is Mode.NONE
        assert client(made, INTERCEPTION_MODE="TPROXY").mode is Mode.TPROXY
        assert client(mesh()).mode is Mode.REDIRECT

    def test_a_finished_pod_s_address_is_free_again(self) -> None:
        made = mesh(pod("old", "10.0.0.1", "app: old", "shop").replace("phase: Running", "phase: Succeeded"))
        assert client(made, "sidecar~10.0.0.1~none.shop~").labels == ()


@pytest.mark.parametrize(
    ("text", "locality"),
    [("r/z/s", Locality("r", "z", "s")), ("r.z", Locality("r", "z")), ("r", Locality("r")), ("r/z/s/t", Locality("r", "z", "s/t"))],
)
def test_localities_as_labels_write_them(text: str, locality: Locality) -> None:
    assert parse_locality(text) == locality


def owned(kind: str, owner: str, labels: str = "") -> str:
    return pod("it", "10.0.0.1", labels, ownerReferences=f"[{{kind: {kind}, name: {owner}, controller: true}}]")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (pod("alone", "10.0.0.1"), "alone"),
        (owned("ReplicaSet", "web-5d9c", "pod-template-hash: 5d9c"), "web"),
        (owned("ReplicaSet", "bare-set"), "bare-set"),
        (owned("StatefulSet", "db"), "db"),
        (owned("DaemonSet", "agent"), "agent"),
        (pod("it", "10.0.0.1", "service.istio.io/workload-name: named"), "named"),
    ],
)
def test_what_made_a_pod_names_its_workload(text: str, name: str) -> None:
    (found,) = objects(text)
    assert workload_name(found) == name  # type: ignore[arg-type]
