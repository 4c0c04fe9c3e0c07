"""The Helm chart, by helm itself."""

import os
import subprocess
from pathlib import Path

import pytest
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


def test_two_revisions_share_no_object_but_the_namespace() -> None:
    def names(*arguments: str) -> set[tuple[str, str]]:
        import yaml

        done = template(*arguments)
        assert done.returncode == 0, done.stderr
        return {(o["kind"], o["metadata"]["name"]) for o in yaml.safe_load_all(done.stdout) if o}

    assert not names() & names("--set", "revision=canary")
