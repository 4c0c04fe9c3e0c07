"""Our structs and our verdicts against Istio's own CRDs, in the API server that enforces them."""

import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from support.kube import Kube, binary
from support.verdicts import GOOD, REFUSED_BY_BOTH, REFUSED_BY_US, Spec

from xds.objects import KINDS
from xds.objects.decoding import from_json
from xds.objects.meta import Duration
from xds.objects.schema import options

pytestmark = pytest.mark.kubernetes

ISTIO = ("VirtualService", "DestinationRule", "Sidecar", "ServiceEntry", "WorkloadEntry")


def schemas() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, version and schema of the spec, of every version that is served."""
    for crd in yaml.load_all(binary("istio-crds.yaml").read_bytes(), yaml.CSafeLoader):
        if crd and (kind := crd["spec"]["names"]["kind"]) in ISTIO:
            for version in crd["spec"]["versions"]:
                yield kind, version["name"], version["schema"]["openAPIV3Schema"]["properties"]["spec"]


def differences(schema: dict[str, Any], type_: Any, path: str) -> Iterator[str]:
    """What a schema has and our type has not, or the other way round."""
    bare = options(type_)[0]
    if "properties" in schema:
        fields = {field.encode_name: field for field in msgspec.structs.fields(bare)}
        for name in schema["properties"].keys() - fields.keys():
            yield f"{path}.{name} is missing"
        for name in fields.keys() - schema["properties"].keys():
            yield f"{path}.{name} is ours alone"
        for name in schema["properties"].keys() & fields.keys():
            yield from differences(schema["properties"][name], fields[name].type, f"{path}.{name}")
            if fields[name].required and name not in schema.get("required", ()):
                yield f"{path}.{name} is required by us alone"
    elif schema.get("type") == "array":
        yield from differences(schema["items"], typing.get_args(bare)[0], f"{path}[]")
    elif "additionalProperties" in schema:
        yield from differences(schema["additionalProperties"], typing.get_args(bare)[1], f"{path}{{}}")
    elif "enum" in schema:
        if set(typing.get_args(bare)) != set(schema["enum"]):
            yield f"{path} has the values {typing.get_args(bare)}, not {schema['enum']}"
    else:
        expected = {"string": (str, Duration), "integer": (int,), "number": (float,), "boolean": (bool,)}[schema["type"]]
        if bare not in expected:
            yield f"{path} is a {bare}, not a {schema['type']}"


def test_structs_have_the_fields_of_the_crds() -> None:
    found = []
    for kind, version, schema in schemas():
        (spec,) = (field for field in msgspec.structs.fields(KINDS[kind].struct) if field.name == "spec")
        found += differences(schema, spec.type, f"{kind} {version} $.spec")
        assert version in KINDS[kind].versions
    assert found == []


def test_no_kind_is_left_out() -> None:
    assert {kind for kind, _, _ in schemas()} == set(ISTIO)


class TestVerdicts:
    """`kubectl apply --dry-run=server`, in effect."""

    def refusal(self, kube: Kube, kind: str, spec: Spec) -> str:
        """What the API server says against it, empty where it takes it."""
        document = {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": {"name": "it"}, "spec": spec}
        try:
            kube.request("POST", f"{KINDS[kind].path(namespace='default')}?dryRun=All", document)
        except AssertionError as e:
            return str(e)
        return ""

    def test_what_the_server_refuses_in_files_is_refused_too(self, kube: Kube) -> None:
        taken = [(kind, field) for kind, spec, field in REFUSED_BY_BOTH if "422" not in self.refusal(kube, kind, spec)]
        assert taken == []

    def test_what_we_refuse_beyond_that_the_server_takes(self, kube: Kube) -> None:
        refused = [(field, said) for kind, spec, field in REFUSED_BY_US if (said := self.refusal(kube, kind, spec))]
        assert refused == []

    def test_what_is_good_is_good_to_the_server(self, kube: Kube) -> None:
        refused = [(spec, said) for kind, spec in GOOD if (said := self.refusal(kube, kind, spec))]
        assert refused == []

    def test_what_the_server_sends_back_is_what_was_meant(self, kube: Kube) -> None:
        for kind, spec in GOOD:
            document = {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": {"name": "it", "namespace": "default"}}
            answer = kube.request("POST", f"{KINDS[kind].path(namespace='default')}?dryRun=All", {**document, "spec": spec})
            sent = from_json(msgspec.json.encode({**document, "spec": spec}), KINDS[kind]).object
            got: Any = from_json(msgspec.json.encode(answer), KINDS[kind]).object
            assert sent is not None
            assert got.spec == sent.spec  # type: ignore[union-attr]
