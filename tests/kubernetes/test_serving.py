"""A cluster's objects become traffic: `kubectl apply` to a real API server, `xds serve` beside it, and a stock Envoy."""

import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.kube import Kube
from support.pod import available
from support.serving import Node, Proxy, eventually, serving

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.envoy,
    pytest.mark.root,
    pytest.mark.skipif(not available(), reason="needs root, and the commands ip, nft and setpriv"),
]

ADDRESSES = {"v1": "10.98.0.1", "v2": "10.98.0.2"}
CLIENT = "10.98.0.9"


class Reviews:
    """A namespace with the service `reviews`, its pods v1 and v2 in `node`, and a client whose sidecar is `proxy`."""

    def __init__(self, kube: Kube, node: Node) -> None:
        self.kube = kube
        self.namespace = kube.namespace()
        for version, address in ADDRESSES.items():
            node.backend(address, version)
            self.pod(f"reviews-{version}", address, {"app": "reviews", "version": version})
        self.pod("client", CLIENT, {"app": "client"})
        self.service()
        self.apply("""
            apiVersion: v1
            kind: Service
            metadata: {name: other}
            spec: {ports: [{name: http, port: 9080}]}
            ---
            apiVersion: networking.istio.io/v1
            kind: Sidecar
            metadata: {name: client}
            spec:
              workloadSelector: {labels: {app: client}}
              outboundTrafficPolicy: {mode: REGISTRY_ONLY}
              egress:
              - port: {number: 9080, protocol: HTTP, name: http}
                bind: 127.0.0.1
                hosts: [./*]
        """)
        self.endpoints("v1", "v2")
        self.proxy: Proxy = node.proxy(
            f"client.{self.namespace}", "--address", CLIENT, "--label", "app=client", "--interception", "NONE"
        )
        eventually(self.proxy.ready, "Envoy to have its first configuration")

    def apply(self, manifest: str) -> None:
        self.kube.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=textwrap.dedent(manifest))

    def pod(self, name: str, address: str, labels: dict[str, str]) -> None:
        """A Pod that runs, as a kubelet would have it."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        self.kube.request("POST", path, {
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        })  # fmt: skip
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]}
        identity = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
        self.kube.request("PATCH", f"{path}/{name}/status?fieldManager=kubelet", {**identity, "status": status})

    def service(self) -> None:
        self.apply("""
            apiVersion: v1
            kind: Service
            metadata: {name: reviews}
            spec: {selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}]}
        """)

    def endpoints(self, *versions: str) -> None:
        """The EndpointSlice, with these versions in it."""
        listed = "".join(
            f"\n            - {{addresses: [{ADDRESSES[v]}], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: reviews-{v}}}}}"
            for v in versions
        )
        self.apply(f"""
            apiVersion: discovery.k8s.io/v1
            kind: EndpointSlice
            metadata: {{name: reviews-1, labels: {{kubernetes.io/service-name: reviews}}}}
            addressType: IPv4
            ports: [{{name: http, port: 8080, protocol: TCP}}]
            endpoints:{listed or " []"}
        """)

    def rules(self, subset: str = "v1", weight: int = 100) -> None:
        """`weight` percent of the calls to the subset `chosen`, whose version is `subset`; the others to v2."""
        self.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: reviews}}
            spec:
              host: reviews
              subsets:
              - {{name: chosen, labels: {{version: {subset}}}}}
              - {{name: other, labels: {{version: v2}}}}
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: reviews}}
            spec:
              hosts: [reviews]
              http:
              - route:
                - {{destination: {{host: reviews, subset: chosen}}, weight: {weight}}}
                - {{destination: {{host: reviews, subset: other}}, weight: {100 - weight}}}
        """)

    def answer(self) -> str:
        """Who answers a call; the status where it is an error."""
        status, text = self.proxy.call("reviews")
        return text if status == 200 else str(status)

    def answers(self, count: int = 12) -> set[str]:
        return {self.answer() for _ in range(count)}

    def follows(self, *expected: str) -> None:
        """Returns when calls are answered by all of `expected`, and by no other."""
        eventually(lambda: self.answers() == set(expected), f"answers from {expected}")


@pytest.fixture(scope="module")
def node(kube: Kube) -> Iterator[Node]:
    with serving("--kubeconfig", kube.kubeconfig) as node:
        yield node


@pytest.fixture(scope="module")
def shared(kube: Kube, node: Node) -> Reviews:
    return Reviews(kube, node)


@pytest.fixture
def reviews(shared: Reviews) -> Reviews:
    """With both endpoints and without rules, whatever a test before has left."""
    shared.kube.kubectl("delete", "-n", shared.namespace, "virtualservice,destinationrule", "reviews", "--ignore-not-found")
    shared.endpoints("v1", "v2")
    shared.service()
    shared.follows("v1", "v2")
    return shared


def test_envoy_serves_and_follows_what_is_applied(reviews: Reviews) -> None:
    reviews.endpoints("v2")  # an endpoint is removed
    reviews.follows("v2")
    reviews.endpoints("v1", "v2")
    reviews.follows("v1", "v2")
    reviews.rules()
    reviews.follows("v1")
    reviews.rules(subset="v2")  # a subset means others
    reviews.follows("v2")
    reviews.rules(weight=0, subset="v1")  # a route leads elsewhere
    reviews.follows("v2")
    reviews.rules(weight=50)
    reviews.follows("v1", "v2")
    reviews.kube.kubectl("delete", "-n", reviews.namespace, "virtualservice,destinationrule", "reviews")
    reviews.follows("v1", "v2")
    reviews.endpoints()
    reviews.follows("503")
    reviews.endpoints("v1", "v2")
    reviews.kube.kubectl("delete", "-n", reviews.namespace, "service", "reviews")
    reviews.follows("502")  # a host that nobody knows, where only what is known may be called
    reviews.service()
    reviews.follows("v1", "v2")


def test_a_bad_object_harms_only_itself(reviews: Reviews, node: Node) -> None:
    reviews.rules()
    reviews.follows("v1")
    route = {"route": [{"destination": {"host": "reviews"}}], "headers": {"request": {"set": {"x-a": "5%"}}}}
    path = f"/apis/networking.istio.io/v1/namespaces/{reviews.namespace}/virtualservices/reviews"
    identity = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews"}}
    reviews.kube.request("PATCH", f"{path}?fieldManager=tests&force=true", {**identity, "spec": {"http": [route]}})

    def told() -> list[dict[str, Any]]:
        return [p for p in node.serve.debug("configz") if p["object"] == f"VirtualService reviews.{reviews.namespace}"]

    (problem,) = eventually(told, "the bad rule to be told")
    assert problem["in_force"]
    assert "$.spec.http[0].headers.request.set.x-a" in problem["problem"]
    assert reviews.answers() == {"v1"}
    reviews.rules(weight=0)
    reviews.follows("v2")
    assert told() == []


def test_a_killed_and_restarted_api_server_loses_and_flaps_nothing(reviews: Reviews, node: Node, kube: Kube) -> None:
    reviews.rules()
    reviews.follows("v1")
    proxy = reviews.proxy
    counters = r"^(cluster_manager|listener_manager)\.(.*\.)?(update_|cluster_(added|modified|removed)|listener_(added|modified|removed))"
    before, sent = proxy.stats(counters), node.serve.sent()
    assert before["cluster_manager.cds.update_success"] > 0
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            answers[reviews.answer()] += 1

    caller = threading.Thread(target=call)
    caller.start()
    try:
        kube.kill_api_server()
        eventually(lambda: "cluster.unreachable" in node.serve.log, "the loss to be seen")
        seen = answers["v1"]
        eventually(lambda: answers["v1"] > seen + 300, "calls to be answered without it")
        kube.start_api_server()
        reviews.endpoints("v2")  # nothing answers v1's subset then: what was written last got through
        eventually(lambda: answers["503"], "a change that is made afterwards")
    finally:
        stop.set()
        caller.join()
    assert set(answers) == {"v1", "503"}
    reviews.endpoints("v1", "v2")
    reviews.follows("v1")
    after = proxy.stats(counters)
    assert after == before, "clusters and listeners were not touched"
    assert {kind: count - sent.get(kind, 0) for kind, count in node.serve.sent().items() if count != sent.get(kind, 0)}.keys() == {"eds"}
