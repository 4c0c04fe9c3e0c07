"""What is in the plain manifests, which are the chart with its defaults."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from xds.injection.policy import selected
from xds.injection.settings import Settings, decode
from xds.objects import KINDS

MANIFESTS = Path(__file__).parents[3] / "deploy" / "manifests" / "xds.yaml"
OBJECTS = [d for d in yaml.load_all(MANIFESTS.read_bytes(), yaml.CSafeLoader) if d]


def found(kind: str, name: str) -> dict[str, Any]:
    (only,) = [o for o in OBJECTS if o["kind"] == kind and o["metadata"]["name"] == name]
    return dict(only)


def permissions(kind: str, name: str) -> set[tuple[str, str, str, str]]:
    """Group, resource, verb and the object's name, where it is one only."""
    return {
        (group, resource, verb, only)
        for rule in found(kind, name)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for only in rule.get("resourceNames", [""])
    }


def test_the_control_plane_may_read_what_it_reads_and_nothing_else_of_the_cluster() -> None:
    webhook = "admissionregistration.k8s.io", "mutatingwebhookconfigurations"
    read = {(kind.group, kind.plural, verb, "") for kind in KINDS.values() if kind.watched for verb in ("list", "watch")}
    patched = {(*webhook, verb, "istio-sidecar-injector") for verb in ("get", "patch")}
    assert permissions("ClusterRole", "istiod-istio-system") == read | patched


def test_in_its_own_namespace_it_may_write_two_objects() -> None:
    assert permissions("Role", "istiod") == {
        *(("", "secrets", verb, "istiod-webhook") for verb in ("get", "update")),
        *(("coordination.k8s.io", "leases", verb, "istiod-leader") for verb in ("get", "update")),
    }


def test_it_runs_as_the_restricted_profile_demands() -> None:
    """Kubernetes: Pod Security Standards, "Restricted"."""
    spec = found("Deployment", "istiod")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


def test_a_replica_goes_only_when_another_has_come() -> None:
    deployment = found("Deployment", "istiod")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert found("PodDisruptionBudget", "istiod")["spec"]["minAvailable"] == 1


def test_the_injectors_settings_are_those_of_the_program() -> None:
    text = found("ConfigMap", "istio-sidecar-injector")["data"]["settings.yaml"]
    assert decode(text, "settings.yaml") == Settings(image="xds-proxy:0.1.0", image_pull_policy="IfNotPresent")


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Kubernetes: "Labels and selectors"; NotIn holds where the label is absent."""
    checks = {
        "In": lambda e: labels.get(e["key"]) in e["values"],
        "NotIn": lambda e: labels.get(e["key"]) not in e["values"],
        "DoesNotExist": lambda e: e["key"] not in labels,
    }
    return all(checks[expression["operator"]](expression) for expression in selector["matchExpressions"])


def combinations(**values: tuple[str, ...]) -> list[dict[str, str]]:
    """Every choice of one value for each label, or none of it."""
    keys = {"injection": "istio-injection", "revision": "istio.io/rev", "inject": "sidecar.istio.io/inject"}
    choices = itertools.product(*(("", *choice) for choice in values.values()))
    return [{keys[key]: value for key, value in zip(values, choice, strict=True) if value} for choice in choices]


@pytest.mark.parametrize("namespace", combinations(injection=("enabled", "disabled"), revision=("default", "canary")), ids=str)
@pytest.mark.parametrize("pod", combinations(revision=("default", "canary"), inject=("true", "false")), ids=str)
def test_the_api_server_asks_about_the_pods_that_the_policy_chooses(namespace: dict[str, str], pod: dict[str, str]) -> None:
    webhooks = found("MutatingWebhookConfiguration", "istio-sidecar-injector")["webhooks"]
    place = {"kubernetes.io/metadata.name": "shop", **namespace}
    asked = [w["name"] for w in webhooks if matches(w["namespaceSelector"], place) and matches(w["objectSelector"], pod)]
    assert len(asked) <= 1  # never twice
    assert bool(asked) is selected(namespace, pod, "default")


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease", "istio-system"])
def test_it_is_never_asked_about_what_the_cluster_needs_to_recover(namespace: str) -> None:
    place = {"kubernetes.io/metadata.name": namespace, "istio-injection": "enabled"}
    webhooks = found("MutatingWebhookConfiguration", "istio-sidecar-injector")["webhooks"]
    assert not any(matches(w["namespaceSelector"], place) for w in webhooks)
