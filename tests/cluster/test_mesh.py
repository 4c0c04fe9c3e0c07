"""Day one: the chart on a real node, sidecars in real pods, traffic through them; and, last, all of it gone again."""

import json
from collections import Counter
from typing import Any

import pytest
from support import bookinfo
from support.instructions import Instructions

pytestmark = [pytest.mark.kubernetes, pytest.mark.root, pytest.mark.slow]

Mesh = Any  # that of conftest.py
CHECKS = (
    "kubernetes-version", "istio-kinds", "permissions", "replicas", "webhook-certificate", "webhook", "proxies-in-sync",
    "proxies-connected", "node-capture", "namespaces", "pods-without-proxy", "pods-refused", "port-protocols", "objects",
)  # fmt: skip
PRODUCTPAGE = "http://productpage.shop:9080/"


def reviews(answer: Any) -> Any:
    """The part of productpage's answer that reviews gave."""
    return answer["called"][1]


def test_every_pod_has_a_native_sidecar_and_every_proxy_is_in_sync(mesh: Mesh) -> None:
    pods = mesh.node.get("pods", "-n", "shop")["items"]
    assert len(pods) >= 6
    for pod in pods:
        assert [c["name"] for c in pod["spec"]["initContainers"]] == ["istio-init", "istio-proxy"]
        assert all(status["ready"] for status in pod["status"]["containerStatuses"])
    mesh.node.until(mesh.synced, "all proxies to be SYNCED")


class TestTraffic:
    def test_a_virtual_service_splits_traffic_between_subsets(self, mesh: Mesh) -> None:
        versions = Counter(reviews(answer)["version"] for answer in mesh.call(PRODUCTPAGE, times=100))
        assert versions.keys() == {"v1", "v3"}
        assert versions["v1"] > versions["v3"]

    def test_a_header_chooses_a_subset(self, mesh: Mesh) -> None:
        answers = mesh.call(PRODUCTPAGE, times=20, headers={"end-user": "jason"})
        assert {reviews(answer)["version"] for answer in answers} == {"v2"}

    def test_a_fault_is_injected_where_the_rule_says(self, mesh: Mesh) -> None:
        answers = mesh.call(PRODUCTPAGE, times=5, headers={"end-user": "unlucky"})
        assert [reviews(answer)["called"] for answer in answers] == [[{"status": 555}]] * 5

    def test_calls_from_within_the_mesh_follow_the_same_rules(self, mesh: Mesh) -> None:
        answers = mesh.call("http://reviews:9080/", times=20, headers={"end-user": "jason"}, inside="deployment/details-v1")
        assert {answer["version"] for answer in answers} == {"v2"}

    def test_a_client_outside_the_mesh_reaches_every_service_and_follows_no_rule(self, mesh: Mesh) -> None:
        answers = mesh.call("http://reviews.shop:9080/", times=40)
        assert {answer["version"] for answer in answers} == {"v1", "v2", "v3"}
        assert all(answer["called"][0]["name"] == "ratings" for answer in answers)

    def test_a_pod_in_the_mesh_reaches_what_is_not(self, mesh: Mesh) -> None:
        outside = bookinfo.application("outside", "v1", calls=[])
        outside["metadata"]["name"] = "outside"
        mesh.node.apply(bookinfo.manifests({"apiVersion": "v1", "kind": "Pod", **outside}, bookinfo.service("outside")))
        mesh.node.kubectl("wait", "pod/outside", "--for=condition=Ready", "--timeout=180s")
        for url in ("http://outside.default:9080/", f"http://{mesh.node.get('pod', 'outside')['status']['podIP']}:9080/"):
            (answer,) = mesh.call(url, inside="deployment/details-v1")
            assert answer["name"] == "outside"

    def test_a_changed_rule_is_in_force_in_every_proxy(self, mesh: Mesh) -> None:
        mesh.apply(bookinfo.RULES.replace("weight: 75", "weight: 0").replace("weight: 25", "weight: 100"))
        try:
            mesh.node.until(
                lambda: {reviews(answer)["version"] for answer in mesh.call(PRODUCTPAGE, times=10)} == {"v3"}, "the new weights"
            )
        finally:
            mesh.apply(bookinfo.RULES)


class TestKindsOfSidecars:
    """Pods that ask for another kind than the cluster's own."""

    def made(self, mesh: Mesh, name: str, annotations: dict[str, str]) -> dict[str, Any]:
        """A pod with these annotations, ready, and a Service for it."""
        template = bookinfo.application(name, "v1", annotations, calls=["http://ratings:9080/"])
        template["metadata"]["name"] = name
        mesh.apply(bookinfo.manifests({"apiVersion": "v1", "kind": "Pod", **template}, bookinfo.service(name)))
        mesh.node.kubectl("-n", "shop", "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=180s")
        pod: dict[str, Any] = mesh.node.get("pod", "-n", "shop", name)
        return pod

    def removed(self, mesh: Mesh, name: str) -> None:
        mesh.node.kubectl("-n", "shop", "delete", "pod,service,job", name, "--ignore-not-found", "--wait=false")

    def test_a_classic_sidecar_starts_before_its_application_where_that_is_asked_for(self, mesh: Mesh) -> None:
        hold = {"sidecar.istio.io/nativeSidecar": "false", "proxy.istio.io/config": "holdApplicationUntilProxyStarts: true"}
        pod = self.made(mesh, "classic", hold)
        assert [c["name"] for c in pod["spec"]["containers"]] == ["istio-proxy", "classic"]
        (answer,) = mesh.call("http://classic.shop:9080/")
        assert answer["called"][0]["name"] == "ratings"
        self.removed(mesh, "classic")

    def test_a_transparent_sidecar_shows_its_caller_to_the_application(self, mesh: Mesh) -> None:
        self.made(mesh, "transparent", {"sidecar.istio.io/interceptionMode": "TPROXY"})
        (answer,) = mesh.call("http://transparent.shop:9080/")
        assert answer["peer"] == mesh.node.get("pod", "client")["status"]["podIP"]
        assert answer["called"][0]["name"] == "ratings"
        self.removed(mesh, "transparent")

    def test_excluded_ports_bypass_the_proxy(self, mesh: Mesh) -> None:
        ports = ("excludeInboundPorts", "excludeOutboundPorts")
        self.made(mesh, "excluded", {f"traffic.sidecar.istio.io/{name}": "9080" for name in ports})
        (answer,) = mesh.call("http://excluded.shop:9080/", headers={"end-user": "unlucky"})
        assert answer["peer"] == mesh.node.get("pod", "client")["status"]["podIP"]
        assert answer["called"][0]["name"] == "ratings"  # not the fault, which its proxy would have injected
        self.removed(mesh, "excluded")

    def test_a_pod_with_the_clusters_name_server_and_nothing_else_of_its_dns_is_in_the_mesh(self, mesh: Mesh) -> None:
        pod = bookinfo.pod("resolving", "-Ic", bookinfo.program("idle"))
        server = mesh.node.get("service", "-n", "kube-system", "kube-dns")["spec"]["clusterIP"]
        pod["spec"] |= {"dnsPolicy": "None", "dnsConfig": {"nameservers": [server]}}
        mesh.apply(bookinfo.manifests(pod))
        mesh.node.kubectl("-n", "shop", "wait", "pod/resolving", "--for=condition=Ready", "--timeout=180s")
        self.removed(mesh, "resolving")

    def test_a_job_ends_with_its_application(self, mesh: Mesh) -> None:
        call = "import urllib.request; print(urllib.request.urlopen('http://ratings:9080/').read().decode())"
        pod = bookinfo.pod("job", "-c", call)
        template = {"metadata": {"labels": {"app": "job"}}, "spec": {**pod["spec"], "restartPolicy": "Never"}}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"template": template}}
        mesh.apply(bookinfo.manifests(job))
        mesh.node.kubectl("-n", "shop", "wait", "job/job", "--for=condition=Complete", "--timeout=180s")
        assert json.loads(mesh.node.kubectl("-n", "shop", "logs", "job/job"))["name"] == "ratings"
        self.removed(mesh, "job")


def replicas(mesh: Mesh) -> list[str]:
    pods = mesh.node.get("pods", "-n", "istio-system", "-l", "app.kubernetes.io/name=xds")["items"]
    return [pod["metadata"]["name"] for pod in pods]


class TestCheck:
    @staticmethod
    def findings(mesh: Mesh, *options: str) -> dict[str, tuple[str, list[str]]]:
        """The status and the details of each check, by its name."""
        done = mesh.xds("check", "-o", "json", *options, check=False)
        found = {finding["check"]: (finding["status"], finding["details"]) for finding in json.loads(done.stdout)}
        assert done.returncode == any(status == "failure" for status, _ in found.values())
        return found

    def test_all_is_well(self, mesh: Mesh) -> None:
        mesh.node.until(mesh.synced, "all proxies to be SYNCED")
        assert {name: status for name, (status, _) in self.findings(mesh).items()} == dict.fromkeys(CHECKS, "ok")

    def test_each_thing_that_is_wrong_is_named(self, mesh: Mesh) -> None:
        bare = bookinfo.pod("bare", "-Ic", bookinfo.program("idle"), labels={"sidecar.istio.io/inject": "false"})
        rule = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "wrong"},
            "spec": {"hosts": ["a", "a"]},
        }
        unnamed = bookinfo.service("unnamed")
        del unnamed["spec"]["ports"][0]["name"]
        mesh.apply(bookinfo.manifests(bare, rule, unnamed))
        mesh.node.kubectl("-n", "shop", "wait", "pod/bare", "--for=condition=Ready", "--timeout=180s")
        mesh.node.kubectl("-n", "shop", "label", "pod", "bare", "sidecar.istio.io/inject-")
        try:
            found = mesh.node.until(
                lambda: (f := self.findings(mesh))["objects"][0] != "ok" and f, "the control plane to have read the rule"
            )
            assert found["pods-without-proxy"] == ("warning", ["bare.shop"])
            assert found["port-protocols"] == ("warning", ["unnamed.shop:9080"])
            assert any("wrong.shop" in detail for detail in found["objects"][1])
        finally:
            for what in ("pod/bare", "virtualservice/wrong", "service/unnamed"):
                mesh.node.kubectl("-n", "shop", "delete", what, "--wait=false")

    def test_an_istio_beside_it_is_not_asked(self, mesh: Mesh) -> None:
        other = bookinfo.pod("istio", "-Ic", bookinfo.program("idle"), labels={"app": "istiod", "istio.io/rev": "istio"})
        mesh.node.kubectl("apply", "-n", "istio-system", "-f", "-", stdin=bookinfo.manifests(other))
        mesh.node.kubectl("-n", "istio-system", "wait", "pod/istio", "--for=condition=Ready", "--timeout=60s")
        try:
            assert {status for status, _ in self.findings(mesh).values()} == {"ok"}
            assert {proxy["replica"] for proxy in mesh.proxies()} <= set(replicas(mesh))
        finally:
            mesh.node.kubectl("-n", "istio-system", "delete", "pod", "istio")

    def test_text_says_what_to_do(self, mesh: Mesh) -> None:
        shown = mesh.xds("check", "--revision", "absent", check=False).stdout
        again, named = "install the chart, or install it again", "install the chart, or name one of the revisions that are there: default"
        assert f"× new pods get their proxies\n    there is no istio-sidecar-injector-absent\n    → {again}\n" in shown
        assert f"no pod of revision absent in istio-system\n    → {named}\n" in shown


def test_the_documentation_helps_where_something_is_wrong(mesh: Mesh, instructions: Instructions) -> None:
    printed = [instructions.run(mesh.node, command) for command in instructions.commands("Troubleshooting")]
    assert all(printed[i] for i in (0, 1, 3, 4))  # a proxy that lacks nothing may have nothing to log


def test_an_upgrade_keeps_what_was_filled_in_meanwhile(mesh: Mesh, instructions: Instructions) -> None:
    def bundles() -> set[str]:
        found = mesh.node.get("mutatingwebhookconfiguration", "istio-sidecar-injector")
        return {webhook["clientConfig"].get("caBundle", "") for webhook in found["webhooks"]}

    before = bundles()
    mesh.node.kubectl("-n", "istio-system", "scale", "deployment/istiod", "--replicas=3")
    mesh.rolled_out("istio-system")
    instructions.follow(mesh.node, "Upgrade")
    assert bundles() == before != {""}
    assert mesh.node.get("deployment", "-n", "istio-system", "istiod")["spec"]["replicas"] == 3  # as an autoscaler has it
    mesh.rolled_out("istio-system")
    mesh.rolled_out()
    mesh.node.until(mesh.synced, "all proxies to be SYNCED")


def test_a_namespace_moves_to_another_revision_and_back(mesh: Mesh, instructions: Instructions) -> None:
    commands = instructions.commands("Moving a namespace from Istio")
    back = next(i for i, command in enumerate(commands) if "istio.io/rev-" in command)
    for command in commands[:back]:
        instructions.run(mesh.node, command)
    (pod,) = [
        p for p in mesh.node.get("pods", "-n", "shop", "-l", "app=productpage")["items"] if not p["metadata"].get("deletionTimestamp")
    ]
    assert pod["metadata"]["labels"]["istio.io/rev"] == "next"
    assert {answer["name"] for answer in mesh.call(PRODUCTPAGE, times=3)} == {"productpage"}
    for command in commands[back:]:
        instructions.run(mesh.node, command)
    mesh.rolled_out()
    mesh.node.until(mesh.synced, "all proxies to be SYNCED with the first revision")


def test_uninstalling_leaves_nothing_of_it(mesh: Mesh, instructions: Instructions) -> None:
    """Last: it takes the mesh away."""
    *commands, namespace, kinds_of_istio = instructions.commands("Uninstall")
    for command in commands:
        instructions.run(mesh.node, command)
    kinds = "deployment,service,configmap,secret,lease,serviceaccount,role,rolebinding,hpa,poddisruptionbudget,endpointslice"
    left = [item["kind"] + "/" + item["metadata"]["name"] for item in mesh.node.get(kinds, "-n", "istio-system")["items"]]
    assert sorted(left) == ["ConfigMap/kube-root-ca.crt", "ServiceAccount/default"]
    everywhere = mesh.node.kubectl("get", "clusterrole,clusterrolebinding,mutatingwebhookconfiguration", "-o", "name")
    assert "istio" not in everywhere
    mesh.rolled_out()
    for pod in mesh.node.get("pods", "-n", "shop", "-l", "app")["items"]:
        assert [c["name"] for c in pod["spec"]["containers"]] == [pod["metadata"]["labels"]["app"]]
        assert "initContainers" not in pod["spec"]
    assert {answer["name"] for answer in mesh.call(PRODUCTPAGE, times=3)} == {"productpage"}
    for command in (namespace, kinds_of_istio):
        instructions.run(mesh.node, command)
    assert "istio" not in mesh.node.kubectl("get", "crd,namespace", "-o", "name")
    assert instructions.pending <= {"Pods without privileges"}  # that is test_cni.py's; every other command of the document was run
