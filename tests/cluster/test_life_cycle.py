"""What clients that call all the time notice of the life of pods, proxies, the node and the control plane: nothing.

`steady` is called by HTTP and by bare TCP, on connections that are kept and on fresh ones, and never loses a call. `fragile` is
called by HTTP, with a rule that says that calls may be tried again: its containers are killed. What was in them at that moment is lost, of
necessity: nobody calls at that moment, and everybody does at the next.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from support import bookinfo
from support.instructions import Instructions
from support.kube import binary

pytestmark = [pytest.mark.kubernetes, pytest.mark.root, pytest.mark.slow]

Mesh = Any  # that of conftest.py
MANY = 20
SMALL = {"sidecar.istio.io/proxyCPU": "10m", "sidecar.istio.io/proxyMemory": "40Mi"}  # many of them are to fit on the node
STEADY = ("http://steady:9080/", "tcp://steady:9081")
FRAGILE = ("http://fragile:9080/",)
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: fragile}
spec:
  hosts: [fragile]
  http:
  - retries: {attempts: 3, retryOn: "5xx,reset,connect-failure"}
    route: [{destination: {host: fragile}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: fragile}
spec:
  host: fragile
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {connectTimeout: 1s}}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: steady}
spec: {minAvailable: 1, selector: {matchLabels: {app: steady}}}
"""
# With it, nothing that a proxy has depends on the control plane's own replicas.
OWN_NAMESPACE = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {egress: [{hosts: ["./*"]}]}
"""


def replicated(name: str, linger_seconds: float = 5) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Deployment of two replicas that answer HTTP and lines, and its Service."""
    deployment, service = bookinfo.deployment(name, "v1", 2), bookinfo.service(name)
    template = deployment["spec"]["template"]
    template["metadata"]["annotations"] = SMALL
    template["spec"]["containers"][0]["env"] = [{"name": "LINGER", "value": str(linger_seconds)}]
    service["spec"]["ports"].append({"name": "tcp", "port": 9081})
    return deployment, service


def caller(name: str, *urls: str, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod that calls these all the time."""
    pod = bookinfo.pod(name, "-Ic", bookinfo.program("caller"), *urls)
    pod["metadata"]["annotations"] = {**SMALL, **(annotations or {})}
    return pod


class Callers:
    """The callers in one pod of the mesh."""

    def __init__(self, mesh: Mesh, name: str, *urls: str) -> None:
        self._mesh = mesh
        self.pod = name
        mesh.apply(bookinfo.manifests(caller(name, *urls)))
        mesh.node.kubectl("-n", "shop", "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=170s")
        self._address = mesh.node.get("pod", "-n", "shop", name)["status"]["podIP"]
        report = f"http://{self._address}:9090/"
        mesh.node.until(lambda: isinstance(mesh.call(report)[0], dict), "the caller to tell")  # it is Ready before it listens
        self._kinds = 2 * len(urls)
        self._known = 0  # failures that are not of this test, or were to be expected

    def ask(self, path: str = "/") -> dict[str, Any]:
        """What the pod says: how many calls of each caller were answered, and which failed."""
        (found,) = self._mesh.call(f"http://{self._address}:9090{path}")
        return dict(found)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nobody calls until the block ends."""
        self.ask("/pause")
        try:
            yield
        finally:
            self.ask("/resume")

    def go_on(self) -> None:
        """Returns when each caller has had 20 more answers; AssertionError where a call has failed."""
        before = self.ask()["answered"]

        def all_answered() -> bool:
            found = self.ask()
            assert found["failures"][self._known :] == []
            return len(found["answered"]) == self._kinds and all(n >= before.get(c, 0) + 20 for c, n in found["answered"].items())

        self._mesh.node.until(all_answered, "more answered calls")

    def excuse(self, expected: Callable[[str, str], bool] = lambda _caller, _seen: True) -> None:
        """Forget failures, by caller and what it saw, all of which must be `expected`."""
        failures = self.ask()["failures"]
        assert [f for f in failures[self._known :] if not expected(f[1], f[2])] == []
        self._known = len(failures)


@pytest.fixture(scope="module")
def stage(mesh: Mesh) -> Iterator[dict[str, Callers]]:
    mesh.apply(bookinfo.manifests(*replicated("steady"), *replicated("fragile")))
    mesh.apply(RULES)
    mesh.rolled_out()
    mesh.node.until(mesh.synced, "all proxies to be SYNCED")
    found = {"steady": Callers(mesh, "caller", *STEADY), "fragile": Callers(mesh, "retrying-caller", *FRAGILE)}
    for callers in found.values():
        callers.go_on()
    yield found
    for callers in found.values():
        print("calls:", callers.ask()["answered"])
    pods = ("pod/caller", "pod/retrying-caller", "deployment/steady-v1", "deployment/fragile-v1")
    rest = ("service/steady", "service/fragile", "virtualservice/fragile", "destinationrule/fragile", "poddisruptionbudget/steady")
    mesh.node.kubectl("-n", "shop", "delete", *pods, *rest)
    mesh.rolled_out()


@pytest.fixture
def go_on(stage: dict[str, Callers]) -> Callable[[], None]:
    """Checks that all callers get answers, and none had a failure since the test began."""
    for callers in stage.values():
        callers.excuse()

    def go_on() -> None:
        for callers in stage.values():
            callers.go_on()

    return go_on


def names(mesh: Mesh, app: str, namespace: str = "shop") -> list[str]:
    """The pods of an application that are not ending."""
    pods = mesh.node.get("pods", "-n", namespace, "-l", f"app={app}")["items"]
    return [pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def ready(mesh: Mesh, pod: str) -> bool:
    conditions = mesh.node.get("pod", "-n", "shop", pod)["status"].get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def restarts(mesh: Mesh, pod: str, container: str) -> int:
    status = mesh.node.get("pod", "-n", "shop", pod)["status"]
    statuses = (*status["containerStatuses"], *status["initContainerStatuses"])
    return sum(s["restartCount"] for s in statuses if s["name"] == container)


def waiting(mesh: Mesh, app: str) -> str:
    """The name of an application's ReplicaSet for which no pod can be made; empty where there is none."""
    for found in mesh.node.get("replicasets", "-n", "shop", "-l", f"app={app}")["items"]:
        if any(c["type"] == "ReplicaFailure" and "sidecar-injector" in c["message"] for c in found["status"].get("conditions", ())):
            return str(found["metadata"]["name"])
    return ""


def sent(mesh: Mesh) -> Counter[str]:
    """How many resources the replicas of the control plane have sent since they began, by type."""
    found: Counter[str] = Counter()
    for pod in names(mesh, "istiod", "istio-system"):
        page = mesh.node.kubectl("get", "--raw", f"/api/v1/namespaces/istio-system/pods/{pod}:15014/proxy/metrics")
        for line in page.splitlines():
            if line.startswith("xds_resources_sent{"):
                found[line.split('"')[1]] += int(float(line.rpartition(" ")[2]))
    return found


@pytest.fixture
def independent(mesh: Mesh) -> Iterator[None]:
    """Proxies that know nothing of the control plane's own replicas, which come and go."""
    mesh.apply(OWN_NAMESPACE)
    mesh.node.until(lambda: not knows_of(mesh, "istiod"), "the proxies to forget the control plane")
    mesh.node.until(mesh.synced, "all proxies to be SYNCED")
    yield
    mesh.node.kubectl("-n", "shop", "delete", "sidecar.networking.istio.io/default")


def knows_of(mesh: Mesh, name: str) -> bool:
    clusters = mesh.node.kubectl("-n", "shop", "exec", "caller", "-c", "istio-proxy", "--", *admin("/clusters"))
    return f"||{name}." in clusters


def endpoints(mesh: Mesh, caller: str, name: str) -> int:
    """How many endpoints a caller's proxy has for the HTTP port of a service."""
    clusters = mesh.node.kubectl("-n", "shop", "exec", caller, "-c", "istio-proxy", "--", *admin("/clusters"))
    return sum(line.startswith(f"outbound|9080||{name}.") and "::health_flags::" in line for line in clusters.splitlines())


def admin(path: str) -> tuple[str, ...]:
    return "wget", "-q", "-O", "-", f"http://127.0.0.1:15000{path}"


class TestPods:
    def test_all_are_replaced(self, mesh: Mesh, go_on: Callable[[], None]) -> None:
        mesh.node.kubectl("-n", "shop", "rollout", "restart", "deployment")
        mesh.rolled_out()
        go_on()

    def test_a_service_grows_from_one_to_many_and_shrinks(self, mesh: Mesh, go_on: Callable[[], None]) -> None:
        for replicas in (1, MANY, 1, 2):
            mesh.node.kubectl("-n", "shop", "scale", "deployment/steady-v1", f"--replicas={replicas}")
            mesh.rolled_out()
            go_on()

    def test_all_are_evicted_as_far_as_their_budget_allows(self, mesh: Mesh, go_on: Callable[[], None]) -> None:
        """As `kubectl drain` does, which would leave nowhere to go where there is one node."""
        for app, namespace in (("steady", "shop"), ("istiod", "istio-system")):
            for pod in names(mesh, app, namespace):
                mesh.node.until(lambda pod=pod, namespace=namespace: evicted(mesh, pod, namespace), f"{pod} to be evicted")
        mesh.rolled_out()
        mesh.rolled_out("istio-system")
        go_on()

    @pytest.mark.parametrize("kind", ["native", "classic"])
    def test_one_calls_from_its_first_moment_to_its_last(self, mesh: Mesh, go_on: Callable[[], None], kind: str) -> None:
        annotations = {
            "native": {},
            "classic": {
                "sidecar.istio.io/nativeSidecar": "false",
                "proxy.istio.io/config": '{"holdApplicationUntilProxyStarts": true, "terminationDrainDuration": "10s"}',
            },
        }
        mesh.apply(bookinfo.manifests(caller("guest", *STEADY, annotations=annotations[kind])))
        mesh.node.kubectl("-n", "shop", "wait", "pod/guest", "--for=condition=Ready", "--timeout=170s")
        kubectl = (binary("kubectl"), "--kubeconfig", mesh.node.kubeconfig, "-n", "shop")
        following = mesh.node.start_inside(*kubectl, "logs", "--follow", "guest", "-c", "guest", stdout=subprocess.PIPE)
        mesh.node.kubectl("-n", "shop", "delete", "pod", "guest", "--timeout=170s")
        told = json.loads(following.communicate(timeout=170)[0])
        assert told["failures"] == []
        assert len(told["answered"]) == 4
        go_on()

    def test_what_they_are_asked_when_they_end_is_answered(self, mesh: Mesh, stage: dict[str, Callers]) -> None:
        """By an application that accepts no more at once, and ends when it has answered what it has."""
        mesh.apply(bookinfo.manifests(*replicated("slow", linger_seconds=0)))
        mesh.rolled_out()
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(mesh.call, "http://slow:9080/held", inside="deployment/details-v1") for _ in range(4)]
            mesh.node.until(lambda: working(mesh, "slow") >= 4, "the requests to be at work")
            mesh.node.kubectl("-n", "shop", "delete", "pods", "-l", "app=slow", "--wait=false")
            answers = [call.result() for call in calls]
        assert [answer[0]["name"] for answer in answers if isinstance(answer[0], dict)] == ["slow"] * 4, answers
        mesh.node.kubectl("-n", "shop", "delete", "deployment/slow-v1", "service/slow")
        mesh.rolled_out()


def working(mesh: Mesh, app: str) -> int:
    """The requests that the proxies of an application's pods have passed on to it, and that are not answered."""
    total = 0
    for pod in names(mesh, app):
        clusters = mesh.node.kubectl("-n", "shop", "exec", pod, "-c", "istio-proxy", "--", *admin("/clusters"))
        total += sum(int(line.rpartition("::")[2]) for line in clusters.splitlines() if "inbound|9080|" in line and "::rq_active::" in line)
    return total


def evicted(mesh: Mesh, pod: str, namespace: str) -> bool:
    """Ask for a pod's eviction: whether its budget allowed it."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    kubectl = (binary("kubectl"), "--kubeconfig", mesh.node.kubeconfig, "create", "--raw", path, "-f", "-")
    done = mesh.node.inside(*kubectl, stdin=json.dumps(eviction), check=False)
    assert done.returncode == 0 or "disruption budget" in done.stderr, done.stderr
    return bool(done.returncode == 0)


class TestFailures:
    @pytest.mark.parametrize("container", ["fragile", "istio-proxy"])
    def test_a_container_of_one_replica_crashes(
        self, mesh: Mesh, stage: dict[str, Callers], go_on: Callable[[], None], container: str
    ) -> None:
        pod = names(mesh, "fragile")[0]
        before = restarts(mesh, pod, container)
        with stage["fragile"].silent():
            mesh.node.crash("shop", pod, container)
        mesh.node.until(lambda: restarts(mesh, pod, container) > before and ready(mesh, pod), f"{pod} to recover")
        mesh.node.until(mesh.synced, "its proxy to be SYNCED")
        go_on()

    def test_the_kubelet_restarts(self, mesh: Mesh, stage: dict[str, Callers], go_on: Callable[[], None]) -> None:
        """The new kubelet takes all pods of its node out of service until it has probed them again (Kubernetes: KEP-4781).

        So where they are all that there are, new calls find nobody meanwhile. Connections go on, and no container ends.
        """
        before = {pod: restarts(mesh, pod, "istio-proxy") for app in stage for pod in names(mesh, app)}
        mesh.node.restart_kubelet()
        mesh.node.until(lambda: all(ready(mesh, pod) for pod in before), "all pods to be in service again")
        mesh.node.until(lambda: all(endpoints(mesh, c.pod, app) == 2 for app, c in stage.items()), "callers to know them")
        assert {pod: restarts(mesh, pod, "istio-proxy") for pod in before} == before
        for callers in stage.values():
            callers.excuse(lambda caller, seen: "no healthy upstream" in seen or (caller.startswith("tcp:") and caller.endswith("fresh")))
        go_on()


class TestControlPlane:
    def test_an_upgrade_sends_nothing_again(
        self, mesh: Mesh, instructions: Instructions, go_on: Callable[[], None], independent: None
    ) -> None:
        before = names(mesh, "istiod", "istio-system")
        mesh.node.tag(bookinfo.IMAGE, "next")
        command = "helm upgrade xds deploy/helm/xds --namespace istio-system --reuse-values --wait"
        instructions.run(mesh.node, f"{command} --set image.tag=next,injection.logLevel=info")
        mesh.rolled_out("istio-system")
        assert not set(before) & set(names(mesh, "istiod", "istio-system"))
        mesh.node.until(mesh.synced, "all proxies to be SYNCED with the new replicas")
        assert sent(mesh).total() == 0
        go_on()

    def test_it_is_gone_while_endpoints_die_and_comes_back(
        self, mesh: Mesh, stage: dict[str, Callers], go_on: Callable[[], None], independent: None
    ) -> None:
        mesh.node.kubectl("-n", "istio-system", "delete", "hpa", "istiod", "--ignore-not-found")
        mesh.node.kubectl("-n", "istio-system", "scale", "deployment/istiod", "--replicas=0")
        mesh.node.until(lambda: not mesh.node.get("pods", "-n", "istio-system", "-l", "app=istiod")["items"], "no control plane")
        go_on()

        crashed, deleted = names(mesh, "fragile")
        with stage["fragile"].silent():
            mesh.node.crash("shop", crashed, "fragile")
        mesh.node.until(lambda: ready(mesh, crashed), f"{crashed} to be ready again")
        mesh.node.kubectl("-n", "shop", "delete", "pod", deleted, "--timeout=170s")
        go_on()
        refused = mesh.node.until(lambda: waiting(mesh, "fragile"), "a pod to be refused")

        mesh.node.kubectl("-n", "istio-system", "scale", "deployment/istiod", "--replicas=2")
        mesh.rolled_out("istio-system")
        mesh.node.until(mesh.synced, "all proxies to be SYNCED again")
        go_on()
        # Who makes it tries again, after as long as it was refused, or when its own object changes.
        mesh.node.kubectl("-n", "shop", "annotate", f"replicaset/{refused}", "tried=again")
        mesh.rolled_out()
        go_on()
