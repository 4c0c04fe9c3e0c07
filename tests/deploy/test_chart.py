"""The Helm chart, by helm itself."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kube import binary

DEPLOY = Path(__file__).parents[2] / "deploy"

pytestmark = pytest.mark.kubernetes


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary("helm"), *arguments], capture_output=True, text=True, check=False)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    return helm("template", "xds", str(DEPLOY / "helm" / "xds"), "--namespace", "istio-system", "--kube-version", "1.34.0", *arguments)


def test_the_manifests_are_the_chart_with_its_defaults() -> None:
    generated = subprocess.run(
        [DEPLOY / "manifests" / "generate.sh"], env=os.environ | {"HELM": str(binary("helm"))}, capture_output=True, text=True, check=True
    )
    assert generated.stdout == (DEPLOY / "manifests" / "xds.yaml").read_text(), (
        "run deploy/manifests/generate.sh > deploy/manifests/xds.yaml"
    )


def test_the_chart_is_without_fault() -> None:
    done = helm("lint", "--strict", str(DEPLOY / "helm" / "xds"), "--namespace", "istio-system")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("replicas=0", "replicas"),
        ("injection.failurePolicy=Maybe", "failurePolicy"),
        ("injection.excludeInboundPorts=http", "excludeInboundPorts"),
        ("revision=UPPER", "revision"),
        ("imag.tag=x", "imag"),
        ("injection.excludeIPRanges=all", "excludeIPRanges"),
        ("injection.includeInboundPorts=80000", "includeInboundPorts"),
        ("injection.resources.requests.cpu=much", "cpu"),
        ("autoscaling.maxReplicas=1", "maxReplicas"),
        ("cni.programDirectory=opt", "programDirectory"),
        ("injection.templates.sidecar=7", "templates"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(value: str, named: str) -> None:
    done = template("--set", value)
    assert done.returncode != 0
    assert named in done.stderr


def test_one_port_may_be_a_number() -> None:
    assert 'excludeOutboundPorts: "3306"' in template("--set", "injection.excludeOutboundPorts=3306").stdout


def test_it_is_installed_where_the_meshs_configuration_is() -> None:
    done = helm("template", "xds", str(DEPLOY / "helm" / "xds"), "--namespace", "other", "--kube-version", "1.34.0")
    assert done.returncode != 0
    assert "install into the namespace istio-system" in done.stderr


def objects(*arguments: str) -> list[dict[str, Any]]:
    done = template(*arguments)
    assert done.returncode == 0, done.stderr
    return [o for o in yaml.safe_load_all(done.stdout) if o]


class TestCni:
    """What the nodes' part may do: read a pod, see whether it ends for good, and, where it repairs, replace pods."""

    @staticmethod
    def rules(*arguments: str) -> set[tuple[str, str, str, str]]:
        """Kind of role, resource, verb, and the object's name where it is one only."""
        return {
            (o["kind"], resource, verb, only)
            for o in objects("--set", "cni.enabled=true", *arguments)
            if o["kind"] in ("Role", "ClusterRole") and o["metadata"]["name"].startswith("xds-cni")
            for rule in o["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
            for only in rule.get("resourceNames", [""])
        }

    def test_it_may_do_what_it_does_and_nothing_else(self) -> None:
        least = {("ClusterRole", "pods", "get", ""), ("Role", "daemonsets", "get", "xds-cni")}
        repair = {("ClusterRole", "pods", verb, "") for verb in ("list", "delete")}
        assert self.rules() == least | repair
        assert self.rules("--set", "cni.repair=false") == least

    def test_it_is_not_privileged(self) -> None:
        (daemon,) = [o for o in objects("--set", "cni.enabled=true") if o["kind"] == "DaemonSet"]
        spec = daemon["spec"]["template"]["spec"]
        security = spec["containers"][0]["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN"]}
        assert not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]
        assert not spec.keys() & {"hostPID", "hostIPC"}
        assert {v["hostPath"]["path"] for v in spec["volumes"]} == {"/etc/cni/net.d", "/opt/cni/bin", "/run/xds-cni"}

    def test_pods_cannot_rely_on_nodes_that_have_no_part_in_it(self) -> None:
        done = template("--set", "injection.cni=true")
        assert done.returncode != 0
        assert "set cni.enabled too" in done.stderr

    def test_other_revisions_use_the_default_ones(self) -> None:
        kinds = {o["kind"] for o in objects("--set", "injection.cni=true", "--set", "revision=canary")}
        assert "DaemonSet" not in kinds
        assert "DaemonSet" not in {o["kind"] for o in objects()}


def test_two_revisions_share_no_object_but_the_namespace() -> None:
    def names(*arguments: str) -> set[tuple[str, str]]:
        return {(o["kind"], o["metadata"]["name"]) for o in objects(*arguments)}

    assert not names() & names("--set", "revision=canary")
