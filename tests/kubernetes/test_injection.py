"""The injector against a real API server, which calls its webhook, with the permissions that the manifests give it.

There is no network of Services here: the API server calls the webhook at a port of this machine instead.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kube import Kube
from support.recorder import asynchronous, following

from xds.errors import Forbidden
from xds.identity.serving import AUTHORITY_LIFETIME, Credentials
from xds.injection.certificates import Certificates
from xds.injection.settings import Settings, decode
from xds.injection.webhook import Webhook
from xds.objects import MeshConfig
from xds.sources.kube_client import KubeClient
from xds.sources.kubernetes import Kubernetes
from xds.status.lease import Lease

pytestmark = pytest.mark.kubernetes

MANIFESTS = Path(__file__).parents[2] / "deploy" / "manifests" / "xds.yaml"
SYSTEM, NAME, SECRET, LEASE = "istio-system", "istio-sidecar-injector", "istiod-webhook", "istiod-leader"
CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{NAME}"
SETTINGS = Settings(image="localhost/xds-proxy:1")


@pytest.fixture(scope="module")
def installed(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The manifests, applied; the kubeconfig of the account that they make."""
    kube.kubectl("apply", "-f", str(MANIFESTS))
    token = kube.request("POST", f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/istiod/token", {"spec": {}})["status"]["token"]
    yield kube.write_kubeconfig(tmp_path_factory.mktemp("account") / "config", "istiod", token=token)
    kube.kubectl("delete", "--wait=false", "-f", str(MANIFESTS))


def certificates(client: KubeClient, *names: str) -> Certificates:
    return Certificates(client, SYSTEM, SECRET, NAME, names or ("localhost",))


@asynccontextmanager
async def serving(
    kube: Kube, kubeconfig: Path, config: MeshConfig | None = None, settings: Settings = SETTINGS
) -> AsyncIterator[Webhook]:
    """A webhook that the API server calls, with credentials as the leader and a replica put them there."""
    webhook = Webhook(settings, lambda: config or MeshConfig(), native=True)
    async with KubeClient(kubeconfig) as client, asyncio.TaskGroup() as tasks:
        made = certificates(client)
        await made.reconcile(datetime.now(UTC))
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(credentials: Credentials) -> None:
            port = await webhook.serve("127.0.0.1:0", credentials)
            if not listening.done():
                listening.set_result(port)

        following_secret = tasks.create_task(made.follow(serve))
        await asyncio.to_thread(point, kube, await listening)
        try:
            yield webhook
        finally:
            following_secret.cancel()
            await webhook.stop()


def point(kube: Kube, port: int) -> None:
    """Have the API server call this port."""
    configuration = kube.request("GET", CONFIGURATION)
    for webhook in configuration["webhooks"]:
        webhook["clientConfig"].pop("service", None)
        webhook["clientConfig"]["url"] = f"https://localhost:{port}/inject"
    kube.request("PUT", CONFIGURATION, configuration)


async def namespace(kube: Kube, **labels: str) -> str:
    name = await asyncio.to_thread(kube.namespace)
    if labels:
        await asyncio.to_thread(kube.kubectl, "label", "namespace", name, *(f"{key}={value}" for key, value in labels.items()))
    return name


async def created(
    kube: Kube,
    where: str,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    name: str = "web",
    image: str = "web",
) -> dict[str, Any]:
    """A pod of one container, as the API server has stored it."""
    metadata = {"generateName": "web-", "labels": labels or {}, "annotations": annotations or {}}
    body = {"metadata": metadata, "spec": {"containers": [{"name": name, "image": image}]}}
    found: dict[str, Any] = await asyncio.to_thread(kube.request, "POST", f"/api/v1/namespaces/{where}/pods", body)
    return found


def has_proxy(pod: dict[str, Any]) -> bool:
    return "istio-proxy" in [c["name"] for c in pod["spec"].get("initContainers", ())]


@asynchronous
async def test_pods_of_a_labelled_namespace_get_a_proxy_and_others_do_not(kube: Kube, installed: Path) -> None:
    async with serving(kube, installed):
        labelled, other = await namespace(kube, **{"istio-injection": "enabled"}), await namespace(kube)
        pod = await created(kube, labelled)
        assert has_proxy(pod)
        assert pod["metadata"]["name"].startswith("web-")
        assert not has_proxy(await created(kube, labelled, {"sidecar.istio.io/inject": "false"}))
        assert not has_proxy(await created(kube, other))
        assert has_proxy(await created(kube, other, {"sidecar.istio.io/inject": "true"}))
        assert has_proxy(await created(kube, await namespace(kube, **{"istio.io/rev": "default"})))


@asynchronous
async def test_the_meshs_configuration_of_the_moment_counts(kube: Kube, installed: Path) -> None:
    config = MeshConfig(enable_prometheus_merge=False)
    async with serving(kube, installed, config):
        pod = await created(kube, await namespace(kube, **{"istio-injection": "enabled"}))
        assert "prometheus.io/scrape" not in pod["metadata"]["annotations"]


@asynchronous
async def test_a_pod_that_asks_for_what_cannot_be_is_refused_with_the_reason(kube: Kube, installed: Path) -> None:
    async with serving(kube, installed):
        where = await namespace(kube, **{"istio-injection": "enabled"})
        with pytest.raises(AssertionError, match=r"sidecar injection: sidecar.istio.io/interceptionMode: must be REDIRECT, TPROXY or NONE"):
            await created(kube, where, annotations={"sidecar.istio.io/interceptionMode": "MAGIC"})


TEMPLATES = """
image: localhost/xds-proxy:1
templates:
  greeting: |
    metadata:
      labels: {greeted: "true"}
    spec:
      tolerations: [{key: greetings, operator: Exists}]
      containers:
      - {name: istio-proxy, env: [{name: GREETING, value: hello}]}
"""


class TestTemplates:
    @asynchronous
    async def test_a_pod_has_those_that_it_names(self, kube: Kube, installed: Path) -> None:
        async with serving(kube, installed, settings=decode(TEMPLATES, "settings.yaml")):
            where = await namespace(kube, **{"istio-injection": "enabled"})
            pod = await created(kube, where, annotations={"inject.istio.io/templates": "sidecar,greeting"})
            assert pod["metadata"]["labels"]["greeted"] == "true"
            (proxy,) = [c for c in pod["spec"]["initContainers"] if c["name"] == "istio-proxy"]
            assert {"name": "GREETING", "value": "hello"} in proxy["env"]
            assert "greeted" not in (await created(kube, where))["metadata"]["labels"]

    @asynchronous
    async def test_the_api_server_takes_what_the_built_in_ones_make(self, kube: Kube, installed: Path) -> None:
        async with serving(kube, installed):
            where = await namespace(kube, **{"istio-injection": "enabled", "pod-security.kubernetes.io/enforce": "baseline"})
            clients = await created(kube, where, annotations={"inject.istio.io/templates": "grpc-simple"})
            assert [c["name"] for c in clients["spec"]["initContainers"]] == ["grpc-bootstrap-init"]
            gateway = await created(kube, where, annotations={"inject.istio.io/templates": "gateway"}, name="istio-proxy", image="auto")
            (proxy,) = gateway["spec"]["containers"]
            assert proxy["image"] == SETTINGS.image

    @asynchronous
    async def test_one_that_there_is_not_refuses_the_pod(self, kube: Kube, installed: Path) -> None:
        async with serving(kube, installed):
            where = await namespace(kube, **{"istio-injection": "enabled"})
            with pytest.raises(AssertionError, match=r"inject.istio.io/templates: there is no template 'grpc-agent'"):
                await created(kube, where, annotations={"inject.istio.io/templates": "grpc-agent"})


@asynchronous
async def test_kubectl_shows_what_has_no_effect(kube: Kube, installed: Path) -> None:
    async with serving(kube, installed):
        where = await namespace(kube, **{"istio-injection": "enabled"})
        pod = {
            "metadata": {"name": "web", "annotations": {"sidecar.istio.io/agentLogLevel": "all:debug"}},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        }
        text = yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", **pod})
        shown = await asyncio.to_thread(kube.kubectl_warnings, "create", "-n", where, "-f", "-", stdin=text)
        assert "Warning: sidecar injection: sidecar.istio.io/agentLogLevel has no effect: there is no agent beside the proxy" in shown


@asynchronous
async def test_without_us_only_pods_that_would_have_a_proxy_wait(kube: Kube, installed: Path) -> None:
    async with serving(kube, installed):
        pass
    labelled, other = await namespace(kube, **{"istio-injection": "enabled"}), await namespace(kube)
    assert not has_proxy(await created(kube, other))
    assert not has_proxy(await created(kube, labelled, {"sidecar.istio.io/inject": "false"}))
    with pytest.raises(AssertionError, match="failed calling webhook"):
        await created(kube, labelled)


@asynchronous
async def test_what_is_renewed_is_trusted_before_it_is_shown(kube: Kube, installed: Path) -> None:
    secret = f"/api/v1/namespaces/{SYSTEM}/secrets/{SECRET}"
    async with KubeClient(installed) as client:
        made = certificates(client)
        await made.reconcile(datetime.now(UTC))
        for later in (timedelta(days=61), AUTHORITY_LIFETIME * 2 / 3 + timedelta(days=1)):
            before = kube.request("GET", secret)["data"]
            await made.reconcile(datetime.now(UTC) + later)
            after = kube.request("GET", secret)["data"]
            assert after["tls.crt"] != before["tls.crt"]
            assert {w["clientConfig"]["caBundle"] for w in kube.request("GET", CONFIGURATION)["webhooks"]} == {after["ca.crt"]}
        assert after["ca.crt"] != before["ca.crt"]
    async with serving(kube, installed):  # the clock is right again
        assert has_proxy(await created(kube, await namespace(kube, **{"istio-injection": "enabled"})))


@asynchronous
async def test_an_emptied_secret_is_filled_anew(kube: Kube, installed: Path) -> None:
    secret = f"/api/v1/namespaces/{SYSTEM}/secrets/{SECRET}"
    kube.request("PUT", secret, {**kube.request("GET", secret), "data": {}})
    async with serving(kube, installed):
        assert has_proxy(await created(kube, await namespace(kube, **{"istio-injection": "enabled"})))


@asynchronous
async def test_the_manifests_allow_all_that_is_asked_for(kube: Kube, installed: Path) -> None:
    """Sources sync, which they do not where one kind is forbidden; what is not needed is forbidden."""
    async with following(Kubernetes(installed)):
        pass
    async with KubeClient(installed) as client:
        for path in ("/api/v1/secrets", f"/api/v1/namespaces/{SYSTEM}/secrets", "/api/v1/namespaces/default/secrets/x"):
            with pytest.raises(Forbidden):
                await client.request("GET", path)


class TestLease:
    @staticmethod
    def lease(client: KubeClient, identity: str) -> Lease:
        return Lease(client, SYSTEM, LEASE, identity, duration_seconds=600, renew_seconds=0.1, give_up_seconds=300)

    @asynchronous
    async def test_one_leads_and_when_it_goes_the_other_does_at_once(self, kube: Kube, installed: Path) -> None:
        leaders: list[str] = []
        changed = asyncio.Condition()

        async def lead(name: str) -> None:
            async with changed:
                leaders.append(name)
                changed.notify_all()
            await asyncio.Event().wait()

        async with KubeClient(installed) as client, asyncio.TaskGroup() as tasks:
            leases = {name: self.lease(client, name) for name in ("a", "b")}
            running = {name: tasks.create_task(lease.run(lambda name=name: lead(name))) for name, lease in leases.items()}
            async with changed:
                await changed.wait_for(lambda: leaders)
            first = leaders[0]
            (second,) = {"a", "b"} - {first}
            assert leases[first].leading
            running[first].cancel()
            async with changed:
                await changed.wait_for(lambda: len(leaders) == 2)
            assert leaders == [first, second]
            assert not leases[first].leading
            running[second].cancel()

    @asynchronous
    async def test_who_does_not_renew_is_followed_when_the_lease_has_run_out(self, kube: Kube, installed: Path) -> None:
        async with KubeClient(installed) as client:
            path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{LEASE}"
            gone = {"holderIdentity": "gone", "leaseDurationSeconds": 1, "leaseTransitions": 4}
            await asyncio.to_thread(self.put, kube, path, gone)
            leading = asyncio.Event()

            async def lead() -> None:
                leading.set()

            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self.lease(client, "next").run(lead))
                await leading.wait()
                spec = json.loads(await client.request("GET", path))["spec"]
                running.cancel()
            assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("next", 5)

    @asynchronous
    async def test_a_leader_that_is_replaced_stops(self, kube: Kube, installed: Path) -> None:
        async with KubeClient(installed) as client:
            path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{LEASE}"
            await asyncio.to_thread(self.put, kube, path, {})
            leading, stopped = asyncio.Event(), asyncio.Event()

            async def lead() -> None:
                leading.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.set()

            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self.lease(client, "first").run(lead))
                await leading.wait()
                await asyncio.to_thread(self.put, kube, path, {"holderIdentity": "usurper", "leaseDurationSeconds": 60})
                await stopped.wait()
                running.cancel()

    @staticmethod
    def put(kube: Kube, path: str, spec: dict[str, Any]) -> None:
        """Write the Lease as somebody else would."""
        while True:
            found = kube.request("GET", path)
            try:
                kube.request("PUT", path, {**found, "spec": spec})
            except AssertionError as e:
                if " 409 " not in str(e):
                    raise
            else:
                return
