"""What is refused, field by field."""

import msgspec
import pytest
from support.verdicts import GOOD, REFUSED_BY_BOTH, REFUSED_BY_US, WITHOUT_EFFECT, Spec, http

from xds.objects import KINDS, HTTPBody
from xds.objects.decoding import Decoded, from_json, from_yaml
from xds.objects.formats import format_problem

SLICE = "kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4"


def verdict(kind: str, spec: Spec) -> Decoded:
    metadata = {"name": "it", "namespace": "default"}
    document = {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": metadata, "spec": spec}
    return from_json(msgspec.json.encode(document), KINDS[kind])


@pytest.mark.parametrize(("kind", "spec", "field"), REFUSED_BY_BOTH + REFUSED_BY_US, ids=lambda v: v if isinstance(v, str) else "")
def test_a_bad_value_quarantines_its_object_and_is_named(kind: str, spec: Spec, field: str) -> None:
    decoded = verdict(kind, spec)
    assert decoded.object is None
    assert [p.field for p in decoded.problems if not p.warning] == [field]


@pytest.mark.parametrize(("kind", "spec", "field"), WITHOUT_EFFECT, ids=lambda v: v if isinstance(v, str) else "")
def test_what_has_no_effect_is_told_and_the_rest_is_taken(kind: str, spec: Spec, field: str) -> None:
    decoded = verdict(kind, spec)
    assert decoded.object is not None
    assert [(p.field, p.warning) for p in decoded.problems] == [(field, True)]


@pytest.mark.parametrize(("kind", "spec"), GOOD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_good_one_is_taken_without_a_word(kind: str, spec: Spec) -> None:
    decoded = verdict(kind, spec)
    assert decoded.problems == ()
    assert decoded.object is not None


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{kind: Service, apiVersion: v1, spec: {clusterIP: here}}", "$.spec.clusterIP"),
        ("{kind: Service, apiVersion: v1, spec: {clusterIPs: [10.96.0.1, 10.96.0.300]}}", "$.spec.clusterIPs[1]"),
        ("{kind: Service, apiVersion: v1, spec: {ports: [{port: 0}]}}", "$.spec.ports[0].port"),
        ("{kind: Service, apiVersion: v1, spec: {ports: [{port: 1, targetPort: 65536}]}}", "$.spec.ports[0].targetPort"),
        (f"{{{SLICE}, ports: [{{port: 70000}}]}}", "$.ports[0].port"),
        (f"{{{SLICE}, endpoints: [{{addresses: [10.0.0.1]}}, {{addresses: [a.example.com]}}]}}", "$.endpoints[1].addresses[0]"),
        (f"{{{SLICE}, endpoints: [{{addresses: ['fd00::1']}}]}}", "$.endpoints[0].addresses[0]"),
        ("{kind: Endpoints, apiVersion: v1, subsets: [{addresses: [{ip: a}]}]}", "$.subsets[0].addresses[0].ip"),
        ("{kind: Endpoints, apiVersion: v1, subsets: [{notReadyAddresses: [{ip: a}]}]}", "$.subsets[0].notReadyAddresses[0].ip"),
        ("{kind: Endpoints, apiVersion: v1, subsets: [{ports: [{port: -1}]}]}", "$.subsets[0].ports[0].port"),
        ("{kind: Pod, apiVersion: v1, status: {podIP: a}}", "$.status.podIP"),
        ("{kind: Pod, apiVersion: v1, status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: a}]}}", "$.status.podIPs[1].ip"),
    ],
)
def test_files_are_held_to_what_an_api_server_asks_of_services(text: str, field: str) -> None:
    (decoded,) = from_yaml(text.replace("{kind", "{metadata: {name: it}, kind", 1), "a.yaml")
    assert decoded.object is None
    assert [p.field for p in decoded.problems] == [field]


@pytest.mark.parametrize(
    "text",
    [
        "{kind: Service, apiVersion: v1, spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 1, targetPort: 0}]}}",
        "{kind: Service, apiVersion: v1, spec: {clusterIP: '', ports: [{port: 65535, targetPort: web}]}}",
        "{kind: Service, apiVersion: v1, spec: {clusterIP: 'fd96::1', clusterIPs: ['fd96::1', 10.96.0.1]}}",
        "{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: FQDN, endpoints: [{addresses: [a.example.com]}]}",
        f"{{{SLICE}, ports: [{{name: all}}], endpoints: [{{addresses: [10.0.0.1]}}]}}",
        "{kind: Endpoints, apiVersion: v1, subsets: [{addresses: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], ports: [{port: 80}]}]}",
        "{kind: Pod, apiVersion: v1, status: {podIP: ''}}",
    ],
)
def test_what_an_api_server_takes_of_them_is_taken(text: str) -> None:
    (decoded,) = from_yaml(text.replace("{kind", "{metadata: {name: it}, kind", 1), "a.yaml")
    assert (decoded.object is not None, decoded.problems) == (True, ())


@pytest.mark.parametrize("text", ["_-8=", "/+8=", "_-8"])
def test_bytes_are_base64_of_either_alphabet(text: str) -> None:
    body = HTTPBody(bytes=text)
    assert body.content == b"\xff\xef"


def test_zero_is_a_duration_that_switches_off() -> None:
    assert verdict("VirtualService", http(timeout="0s")).problems == ()


def test_a_regular_expression_as_large_as_a_proxy_takes() -> None:
    def regex(count: int) -> Spec:
        return http(match=[{"uri": {"regex": "|".join(f"/{i}a{{1000}}" for i in range(count))}}])

    assert verdict("VirtualService", regex(30)).problems == ()
    (problem,) = verdict("VirtualService", regex(40)).problems
    assert problem.reason.startswith("too large a regular expression")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("plain", None),
        ("", None),
        ("100%%", None),
        ("%PROTOCOL%", None),
        ("a %REQ(x-a?:authority):5% b", None),
        ("%START_TIME(%Y-%m-%d)%", None),
        ("%PATH:5%", None),
        ("%FILTER_STATE(a:PLAIN)%", None),
        ("100%", "a percent sign that begins no command"),
        ("%a%", "a percent sign that begins no command"),
        ("%%%", "a percent sign that begins no command"),
        ("%NOTHING%", "is not a command"),
        ("%REQ%", "needs parameters"),
        ("%REQ(a b)%", "has not the parameters"),
        ("%PROTOCOL(a)%", "takes no parameters"),
        ("%PROTOCOL:5%", "cannot be cut"),
    ],
)
def test_format_strings(text: str, problem: str | None) -> None:
    found = format_problem(text)
    assert found is None if problem is None else problem in str(found)
