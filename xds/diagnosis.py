"""What is to be looked at before and after the installation, and what to do about what is found: `xds check`.

Each check asks the API server, or the replicas by way of it, and ends in a `Finding`. One that may not ask what it wants to know
says so, and fails only itself.
"""

import base64
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from cryptography import x509

from xds import replicas
from xds.errors import ConfigError, Forbidden, KubeError
from xds.injection import settings
from xds.injection.cni.pods import awaits_node
from xds.injection.policy import INJECTION, PROXY, REVISION_LABEL, reason_against, selected
from xds.injection.service import of_revision, webhook_name
from xds.injection.settings import REVISION
from xds.mesh.model import Protocol
from xds.mesh.protocols import service_port
from xds.objects import KINDS
from xds.objects.mesh_config import ROOT_NAMESPACE
from xds.sources.kube_client import KubeClient, Unreachable

Status = Literal["ok", "warning", "failure"]

OLDEST = (1, 29)
SOON = timedelta(days=14)
AGENT = "xds-cni"  # the DaemonSet, and what its pods' label `app` says
_ISTIO = "networking.istio.io"
_NEEDED = (  # what the installation makes: group, resource
    ("", "namespaces"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("", "configmaps"),
    ("", "secrets"),
    ("apps", "deployments"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("policy", "poddisruptionbudgets"),
    ("coordination.k8s.io", "leases"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
)


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check. `details` name what is affected; `hint` says what to do, where it is not ok."""

    check: str
    title: str
    status: Status
    details: tuple[str, ...] = ()
    hint: str = ""


class Check(msgspec.Struct, frozen=True):
    """A check: its name, what holds where it is ok, and how to find out."""

    name: str
    title: str
    ask: "Callable[[Cluster], Awaitable[Finding]]"

    def ok(self, *details: str) -> Finding:
        return Finding(self.name, self.title, "ok", details)

    async def run(self, cluster: "Cluster") -> Finding:
        """Its finding. An API server that refuses is one; one that does not answer is none: `Unreachable`."""
        try:
            return await self.ask(cluster)
        except Unreachable:
            raise
        except replicas.Absent as e:
            return Finding(self.name, self.title, "failure", (e.reason,), f"mend what {REPLICAS.name!r} tells first: only a replica knows")
        except Forbidden as e:
            return Finding(self.name, self.title, "warning", (e.reason,), "run it as somebody who may read this")
        except KubeError as e:
            return Finding(self.name, self.title, "failure", (str(e),), "see why the API server, or what it calls, does not answer")


class Cluster:
    """What the checks ask. Answers are kept: a second check that asks the same is not a second request."""

    def __init__(self, client: KubeClient, revision: str = REVISION, now: datetime | None = None, *, installed: bool = True) -> None:
        self.client = client
        self.revision = revision
        self.installed = installed
        self.now = now or datetime.now(UTC)
        self._answers: dict[str, Any] = {}

    async def get(self, path: str) -> Any:
        """The object or list at `path`, decoded."""
        if path not in self._answers:
            self._answers[path] = msgspec.json.decode(await self.client.request("GET", path))
        return self._answers[path]

    async def items(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get(path))["items"]
        return found

    async def post(self, path: str, body: dict[str, Any], **query: str) -> Any:
        return msgspec.json.decode(await self.client.request("POST", path, query, body=body))

    async def proxies(self) -> list[dict[str, Any]]:
        """The connected proxies of all replicas of the revision."""
        if "proxies" not in self._answers:
            self._answers["proxies"] = await replicas.ask_all(self.client, "/debug/syncz", self.revision)
        found: list[dict[str, Any]] = self._answers["proxies"]
        return found


async def diagnose(cluster: Cluster) -> list[Finding]:
    """The findings, in the order in which to look at them.

    What needs a control plane is left out where none is installed, and all that follows where the API server does not answer.
    """
    findings: list[Finding] = []
    for check in (*BEFORE, *(AFTER if cluster.installed else ())):
        try:
            findings.append(await check.run(cluster))
        except Unreachable as e:
            hint = "see whether the kubeconfig is the right one, and the cluster runs; the other checks were left out"
            return [*findings, Finding(check.name, check.title, "failure", (e.reason,), hint)]
    return findings


# Before the installation


async def _version(cluster: Cluster) -> Finding:
    found = await cluster.get("/version")
    numbers = tuple(int(re.sub(r"\D.*", "", found.get(part, "")) or 0) for part in ("major", "minor"))
    details = (found.get("gitVersion", ""),)
    if numbers >= OLDEST:
        return VERSION.ok(*details)
    return Finding(VERSION.name, VERSION.title, "failure", details, f"Kubernetes {OLDEST[0]}.{OLDEST[1]} or newer is needed")


async def _kinds(cluster: Cluster) -> Finding:
    try:
        found = await cluster.get(f"/apis/{_ISTIO}/v1")
        served = {resource["name"] for resource in found["resources"]}
    except KubeError as e:
        if e.status != 404:
            raise
        served = set()
    missing = tuple(kind.plural for kind in KINDS.values() if kind.group == _ISTIO and kind.plural not in served)
    if not missing:
        return CRDS.ok()
    return Finding(CRDS.name, CRDS.title, "warning", missing, "the chart brings them; until then, rules of these kinds cannot be written")


async def _permissions(cluster: Cluster) -> Finding:
    refused = []
    for group, resource in _NEEDED:
        attributes = {"group": group, "resource": resource, "verb": "create", "namespace": ROOT_NAMESPACE}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
        answer = await cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
        if not answer["status"]["allowed"]:
            refused.append(f"create {resource}.{group}".rstrip("."))
    if not refused:
        return PERMISSIONS.ok()
    status: Status = "warning" if cluster.installed else "failure"
    return Finding(PERMISSIONS.name, PERMISSIONS.title, status, tuple(refused), "install and upgrade as a cluster administrator")


# After it


async def _replicas(cluster: Cluster) -> Finding:
    pods = await replicas.pods(cluster.client, cluster.revision)
    waiting = tuple(pod["metadata"]["name"] for pod in pods if not replicas.ready(pod) and not pod["metadata"].get("deletionTimestamp"))
    if pods and not waiting:
        return REPLICAS.ok(f"{len(pods)} replicas")
    hint = f"see `kubectl -n {ROOT_NAMESPACE} describe pods` and their logs"
    if not pods:
        others = sorted({pod["metadata"]["labels"].get(REVISION_LABEL, "") for pod in await replicas.pods(cluster.client)})
        hint = f"install the chart, or name one of the revisions that are there: {', '.join(others)}" if others else "install the chart"
        details = (f"no pod of revision {cluster.revision} in {ROOT_NAMESPACE}",)
        return Finding(REPLICAS.name, REPLICAS.title, "failure", details, hint)
    return Finding(REPLICAS.name, REPLICAS.title, "warning" if len(waiting) < len(pods) else "failure", waiting, hint)


async def _webhook(cluster: Cluster) -> Finding:
    """Whether the API server gets a pod with a proxy back. Nothing is stored."""
    name = webhook_name(cluster.revision)
    try:
        found = await cluster.get(f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}")
    except KubeError as e:
        if e.status != 404:
            raise
        return Finding(WEBHOOK.name, WEBHOOK.title, "failure", (f"there is no {name}",), "install the chart, or install it again")
    if not all(webhook["clientConfig"].get("caBundle") for webhook in found["webhooks"]):
        hint = f"a replica leads, and fills it in, within seconds: see the logs in {ROOT_NAMESPACE} for `webhook.patched`"
        return Finding(WEBHOOK.name, WEBHOOK.title, "failure", (f"{name} trusts nobody yet",), hint)
    labels = {"sidecar.istio.io/inject": "true"} if cluster.revision == REVISION else {"istio.io/rev": cluster.revision}
    spec = {"containers": [{"name": "check", "image": "check"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "xds-check-", "labels": labels}, "spec": spec}
    namespace = await _neutral_namespace(cluster)
    answer = await cluster.post(f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")
    if _has_proxy(answer):
        return WEBHOOK.ok()
    hint = f"see the selectors of {name}, and whether another webhook undoes it"
    return Finding(WEBHOOK.name, WEBHOOK.title, "failure", (f"a pod tried in {namespace} got none",), hint)


async def _neutral_namespace(cluster: Cluster) -> str:
    """A namespace without a word on injection, where a pod's own label decides."""
    for namespace in await cluster.items("/api/v1/namespaces"):
        labels, name = namespace["metadata"].get("labels") or {}, namespace["metadata"]["name"]
        if not {"istio-injection", "istio.io/rev"} & labels.keys() and not name.startswith("kube-") and name != ROOT_NAMESPACE:
            return str(name)
    return "default"


async def _certificate(cluster: Cluster) -> Finding:
    name = of_revision("istiod-webhook", cluster.revision)
    try:
        secret = await cluster.get(f"/api/v1/namespaces/{ROOT_NAMESPACE}/secrets/{name}")
    except KubeError as e:
        if e.status != 404:
            raise
        details = (f"there is no Secret {name} in {ROOT_NAMESPACE}",)
        return Finding(CERTIFICATE.name, CERTIFICATE.title, "failure", details, "install the chart, or install it again")
    hint = f"see the logs in {ROOT_NAMESPACE} for `cert.unwritten`; without its data the Secret is filled anew"
    data = secret.get("data") or {}
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data.get("tls.crt", "")))
    except ValueError:
        return Finding(CERTIFICATE.name, CERTIFICATE.title, "failure", ("it is none",), hint)
    left = certificate.not_valid_after_utc - cluster.now
    details = (f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}",)
    if left > SOON:
        return CERTIFICATE.ok(*details)
    return Finding(CERTIFICATE.name, CERTIFICATE.title, "warning" if left > timedelta() else "failure", details, hint)


async def _proxies(cluster: Cluster) -> Finding:
    proxies = await cluster.proxies()
    rejected, behind = [], []
    for proxy in proxies:
        for kind, state in proxy["types"].items():
            where = f"{_name(proxy['node'])}: {kind} is {state['status']}"
            if state["status"] == "NACK":
                rejected.append(f"{where}: {state['error'][:200]}")
            elif state["status"] == "STALE":
                behind.append(where)
    if rejected:
        hint = "Envoy says why; everything else stays in force. `xds dump --why` names the objects behind a resource"
        return Finding(PROXIES.name, PROXIES.title, "failure", (*rejected, *behind), hint)
    if behind:
        return Finding(PROXIES.name, PROXIES.title, "warning", tuple(behind), "look again; one that stays behind is overloaded, or gone")
    return PROXIES.ok(f"{len(proxies)} proxies")


async def _connected(cluster: Cluster) -> Finding:
    known = {_name(proxy["node"]) for proxy in await cluster.proxies()}
    lost = tuple(
        f"{pod['metadata']['name']}.{pod['metadata']['namespace']}"
        for pod in await cluster.items("/api/v1/pods?fieldSelector=status.phase%3DRunning")
        if (pod["metadata"].get("labels") or {}).get("istio.io/rev") == cluster.revision
        and _has_proxy(pod)
        and not pod["metadata"].get("deletionTimestamp")
        and f"{pod['metadata']['name']}.{pod['metadata']['namespace']}" not in known
    )
    if not lost:
        return CONNECTED.ok()
    hint = f"see the logs of their containers {PROXY}; port 15010 of the service istiod must be reachable from these pods"
    return Finding(CONNECTED.name, CONNECTED.title, "failure", lost, hint)


async def _capture(cluster: Cluster) -> Finding:
    """Whether the agent of the CNI plugin is ready wherever pods rely on it: those that do now, and all where new ones are to."""
    name = webhook_name(cluster.revision)
    try:
        found = await cluster.get(f"/api/v1/namespaces/{ROOT_NAMESPACE}/configmaps/{name}")
        by_node = settings.decode(found.get("data", {}).get("settings.yaml", ""), "$.data['settings.yaml']").cni
    except ConfigError as e:
        hint = f"correct the chart's values: replicas that start now do not take the ConfigMap {name}"
        return Finding(CAPTURE.name, CAPTURE.title, "failure", (f"{name}: {e}",), hint)
    except KubeError as e:
        if e.status != 404:
            raise
        details = (f"there is no ConfigMap {name} in {ROOT_NAMESPACE}",)
        return Finding(CAPTURE.name, CAPTURE.title, "failure", details, "install the chart, or install it again")
    relying = Counter(
        pod["spec"]["nodeName"]
        for pod in await cluster.items(f"/api/v1/pods?labelSelector=istio.io%2Frev%3D{cluster.revision}")
        if pod["spec"].get("nodeName")
        and pod["status"]["phase"] not in ("Succeeded", "Failed")
        and _has_proxy(pod)
        and (by_node or awaits_node(pod["metadata"].get("annotations") or {}))
    )
    if not by_node and not relying:
        return CAPTURE.ok("pods do it themselves")
    agents = await cluster.items(f"/api/v1/namespaces/{ROOT_NAMESPACE}/pods?labelSelector=app%3D{AGENT}")
    ready = {pod["spec"].get("nodeName") for pod in agents if replicas.ready(pod) and not pod["metadata"].get("deletionTimestamp")}
    waiting = {pod["spec"].get("nodeName"): pod["metadata"]["name"] for pod in agents}
    if not agents:
        hint = f"set the chart's value cni.enabled; where it is set, see `kubectl -n {ROOT_NAMESPACE} describe daemonset {AGENT}`"
        details = (f"no pod of the DaemonSet {AGENT} in {ROOT_NAMESPACE}", *sorted(relying))
        return Finding(CAPTURE.name, CAPTURE.title, "failure", details, hint)
    lost = tuple(
        f"{node} (pods of the mesh: {relying[node]}): " + (f"{waiting[node]} is not ready" if node in waiting else f"no pod of {AGENT}")
        for node in sorted(relying.keys() - ready)
    )
    if not lost:
        return CAPTURE.ok(f"nodes with pods of the mesh: {len(relying)}")
    hint = f"pods do not start there: see `kubectl -n {ROOT_NAMESPACE} describe daemonset {AGENT}`, and the logs of its pods"
    return Finding(CAPTURE.name, CAPTURE.title, "failure", lost, hint)


async def _missing(cluster: Cluster) -> Finding:
    labels = await _namespace_labels(cluster)
    bare = tuple(
        f"{pod['metadata']['name']}.{pod['metadata']['namespace']}"
        for pod in await cluster.items("/api/v1/pods?fieldSelector=status.phase%3DRunning")
        if pod["metadata"]["namespace"] != ROOT_NAMESPACE
        and not pod["metadata"].get("deletionTimestamp")
        and selected(
            labels.get(pod["metadata"]["namespace"], {}),
            pod["metadata"].get("labels") or {},
            cluster.revision,
            default=cluster.revision == REVISION,
        )
        and not reason_against(pod, pod["metadata"]["namespace"])
        and not _has_proxy(pod)
    )
    if not bare:
        return MISSING.ok()
    return Finding(MISSING.name, MISSING.title, "warning", bare, "they are older than the label: `kubectl rollout restart` what made them")


async def _refused(cluster: Cluster) -> Finding:
    """ReplicaSets whose pods the API server refuses: the webhook, a quota and the pods' security level are its reasons."""
    labels = await _namespace_labels(cluster)
    refused = tuple(
        f"{found['metadata']['name']}.{found['metadata']['namespace']}: {condition['message'][:400]}"
        for found in await cluster.items("/apis/apps/v1/replicasets")
        if selected(
            labels.get(found["metadata"]["namespace"], {}),
            found["spec"]["template"]["metadata"].get("labels") or {},
            cluster.revision,
            default=cluster.revision == REVISION,
        )
        for condition in (found.get("status") or {}).get("conditions", ())
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True"
    )
    if not refused:
        return REFUSED.ok()
    hint = "mend it; they are made by and by, or at once after `kubectl -n NAMESPACE annotate --overwrite replicaset NAME tried=again`"
    return Finding(REFUSED.name, REFUSED.title, "failure", refused, hint)


async def _namespaces(cluster: Cluster) -> Finding:
    """Whether a revision that a namespace asks for is there. One that is not gives its pods no proxies, without a word."""
    found = await cluster.items("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")
    there = {webhook["metadata"]["name"] for webhook in found}
    lost = []
    for name, labels in (await _namespace_labels(cluster)).items():
        revision = labels.get(REVISION_LABEL)
        if revision is None:
            continue
        if INJECTION in labels:
            lost.append(f"{name}: {INJECTION}={labels[INJECTION]} rules, and {REVISION_LABEL}={revision} is without effect")
        elif webhook_name(revision) not in there:
            lost.append(f"{name}: {REVISION_LABEL}={revision}, and there is no such revision")
    if not lost:
        return NAMESPACES.ok()
    hint = f"leave one of the labels {INJECTION} and {REVISION_LABEL}, and name by the latter a revision that is installed"
    return Finding(NAMESPACES.name, NAMESPACES.title, "warning", tuple(lost), hint)


async def _namespace_labels(cluster: Cluster) -> dict[str, dict[str, str]]:
    return {n["metadata"]["name"]: n["metadata"].get("labels") or {} for n in await cluster.items("/api/v1/namespaces")}


async def _ports(cluster: Cluster) -> Finding:
    labels = await _namespace_labels(cluster)
    ours = {name for name, own in labels.items() if selected(own, {}, cluster.revision, default=cluster.revision == REVISION)}
    unnamed = tuple(
        f"{service['metadata']['name']}.{service['metadata']['namespace']}:{port}"
        for service in await cluster.items("/api/v1/services")
        if service["metadata"]["namespace"] in ours
        for port in _undeclared(service)
    )
    if not unnamed:
        return PORTS.ok()
    hint = "their protocol is found out by looking, connection by connection: say it by `appProtocol`, or by a name such as http-web"
    return Finding(PORTS.name, PORTS.title, "warning", unnamed, hint)


def _undeclared(service: dict[str, Any]) -> Iterator[int]:
    for port in service["spec"].get("ports", ()):
        if service_port(port["port"], port.get("name", ""), port.get("protocol", "TCP"), port.get("appProtocol")) is Protocol.AUTO:
            yield port["port"]


async def _objects(cluster: Cluster) -> Finding:
    found = await replicas.ask_one(cluster.client, "/debug/configz", cluster.revision)
    errors = [f"{item['object']}: {item['problem']}" for item in found if not item["warning"]]
    warnings = [f"{item['object']}: {item['problem']}" for item in found if item["warning"]]
    if errors:
        return Finding(OBJECTS.name, OBJECTS.title, "failure", (*errors, *warnings), "mend them; their last good versions stay in force")
    if warnings:
        return Finding(OBJECTS.name, OBJECTS.title, "warning", tuple(warnings), "they are in use, but not all that they say is")
    return OBJECTS.ok()


VERSION = Check("kubernetes-version", "the cluster is new enough", _version)
CRDS = Check("istio-kinds", "the cluster has Istio's kinds", _kinds)
PERMISSIONS = Check("permissions", "you may install the control plane", _permissions)
REPLICAS = Check("replicas", "the control plane's replicas are ready", _replicas)
CERTIFICATE = Check("webhook-certificate", "the webhook's certificate is valid", _certificate)
WEBHOOK = Check("webhook", "new pods get their proxies", _webhook)
PROXIES = Check("proxies-in-sync", "proxies have taken what they were sent", _proxies)
CONNECTED = Check("proxies-connected", "every proxy is connected", _connected)
CAPTURE = Check("node-capture", "nodes can capture the traffic of their pods", _capture)
MISSING = Check("pods-without-proxy", "pods of the mesh's namespaces have proxies", _missing)
REFUSED = Check("pods-refused", "pods of the mesh's namespaces can be made", _refused)
NAMESPACES = Check("namespaces", "namespaces choose a revision that is there", _namespaces)
PORTS = Check("port-protocols", "services say what their ports speak", _ports)
OBJECTS = Check("objects", "rules are without fault", _objects)

BEFORE = (VERSION, CRDS, PERMISSIONS)
AFTER = (REPLICAS, CERTIFICATE, WEBHOOK, PROXIES, CONNECTED, CAPTURE, NAMESPACES, MISSING, REFUSED, PORTS, OBJECTS)


def _has_proxy(pod: dict[str, Any]) -> bool:
    containers = (*pod["spec"].get("containers", ()), *pod["spec"].get("initContainers", ()))
    return any(container["name"] == PROXY for container in containers)


def _name(node: str) -> str:
    """`pod.namespace` of Istio's node ids; others as they are."""
    parts = node.split("~")
    return parts[2] if len(parts) == 4 else node
