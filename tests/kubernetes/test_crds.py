"""The chart's CustomResourceDefinitions in an API server that has no others."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import bookinfo
from support.kube import Kube, poll

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "deploy" / "helm" / "xds" / "crds"

pytestmark = pytest.mark.kubernetes


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """An API server with our definitions of Istio's kinds."""
    kube = Kube(tmp_path_factory.mktemp("crds"))
    try:
        kube.start()
        kube.kubectl("apply", "--server-side", "-f", str(CRDS))
        kube.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
        yield kube
    finally:
        kube.stop()


def test_they_are_what_the_typed_objects_make_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "deploy" / "helm" / "crds.py", tmp_path], check=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in CRDS.iterdir()}, "run deploy/helm/crds.py"


def test_the_api_server_finds_no_fault_in_them(bare: Kube) -> None:
    """A schema that is not structural is accepted, but not used, and the condition says so."""
    for crd in bare.request("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]:
        conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
        assert conditions.get("NonStructuralSchema") != "True"
        assert conditions["NamesAccepted"] == conditions["Established"] == "True"
        assert [v["name"] for v in crd["spec"]["versions"]] == ["v1", "v1beta1", "v1alpha3"]


def test_what_istio_users_write_is_accepted_whole(bare: Kube) -> None:
    for manifest in (
        bookinfo.RULES,
        (ROOT / "examples" / "bookinfo" / "reviews.yaml").read_text(),
        (ROOT / "examples" / "bookinfo" / "sidecars.yaml").read_text(),
    ):
        poll(
            lambda text=manifest: bare.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text), "it to be accepted"
        )


def test_explain_shows_the_fields_and_what_they_mean(bare: Kube) -> None:
    shown = poll(lambda: bare.kubectl("explain", "virtualservices.spec.http.match.uri"), "the schema to be published")
    assert "At most one is set" in shown
    assert all(field in shown for field in ("exact", "prefix", "regex"))


WRONG = {
    "an enum": ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {simple: MAGIC}}}", "Unsupported value"),
    "a missing field": ("DestinationRule", "{subsets: [{name: v1}]}", "spec.host: Required value"),
    "a type": ("VirtualService", "{hosts: a}", "spec.hosts in body must be of type array"),
    "a range": ("ServiceEntry", "{hosts: [a.b], ports: [{number: -1, name: x}]}", "spec.ports[0].number in body should be greater"),
    "a duration": ("VirtualService", "{hosts: [a], http: [{timeout: soon, route: [{destination: {host: a}}]}]}", "spec.http[0].timeout"),
    "an unknown field": ("VirtualService", "{hosts: [a], htpp: []}", 'unknown field "spec.htpp"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_schema_refuses(bare: Kube, case: str) -> None:
    kind, spec, reason = WRONG[case]
    manifest = f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: wrong}}\nspec: {spec}\n"
    with pytest.raises(AssertionError) as refused:
        bare.kubectl("apply", "--validate=strict", "-f", "-", stdin=manifest)
    assert reason in str(refused.value)
