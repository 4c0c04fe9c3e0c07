"""Istio's MeshConfig: what is said for the whole mesh, in the ConfigMap `istio` of `istio-system`. One fact a setting.

https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.applications import Call
from support.sidecars import sidecar
from support.traffic import SILENT, UNKNOWN, Mesh, Pod, World, eventually

from xds.mesh.model import Locality


@pytest.fixture
def mesh(own_world: World) -> Iterator[Mesh]:
    with Mesh(own_world) as mesh:
        yield mesh


def settings(mesh: Mesh, **config: Any) -> None:
    """Write the MeshConfig."""
    mesh.put(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": yaml.safe_dump(config)},
        }
    )


def answer(pod: Pod, url: str, at: str | None = None) -> str:
    reply = pod.get(url, at=at)
    return reply.server or str(reply.status)


def called(call: Call | None) -> Call:
    assert call is not None
    return call


def entry(mesh: Mesh, host: str, address: str, namespace: str | None = None) -> None:
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {{name: {host}, namespace: {namespace or mesh.namespace}}}
        spec:
          hosts: [{host}]
          ports: [{{number: 80, name: http, protocol: HTTP}}]
          resolution: STATIC
          endpoints: [{{address: {address}}}]
    """)


def test_outbound_traffic_policy(mesh: Mesh) -> None:
    mesh.service("web")
    client = mesh.pod("client")
    assert answer(client, "http://elsewhere.example.com/") == UNKNOWN
    settings(mesh, outboundTrafficPolicy={"mode": "REGISTRY_ONLY"})
    eventually(lambda: answer(client, "http://elsewhere.example.com/") == "502")

    def refused() -> bool:
        with contextlib.suppress(ConnectionError):
            return client.tcp(UNKNOWN, 9090) is None
        return True

    eventually(refused)
    assert answer(client, "http://web/") == "web-v1"
    sidecar(mesh, "egress: [{hosts: ['*/*']}]\noutboundTrafficPolicy: {mode: ALLOW_ANY}")
    eventually(lambda: answer(client, "http://elsewhere.example.com/") == UNKNOWN)
    mesh.delete("Sidecar", "default")
    settings(mesh, outboundTrafficPolicy={"mode": "ALLOW_ANY"})
    eventually(lambda: answer(client, "http://elsewhere.example.com/") == UNKNOWN)


def test_inbound_traffic_policy(mesh: Mesh) -> None:
    server = mesh.pod("server", ports=[8080])
    mesh.service("server", {}, pods=[server])
    client = mesh.pod("client")

    def address() -> str:
        return called(client.get("http://server/").call).address

    assert address() == server.address
    settings(mesh, inboundTrafficPolicy={"mode": "LOCALHOST"})
    eventually(lambda: address() == "127.0.0.1")


def test_default_service_export_to(mesh: Mesh) -> None:
    other = f"{mesh.namespace}-a"
    here, there = mesh.service("here"), mesh.service("there", namespace=other)
    said = mesh.service("said", namespace=other, meta={"annotations": {"networking.istio.io/exportTo": "*"}})
    entry(mesh, "external.example.com", mesh.application("external", ports=[80]).address, other)
    client = mesh.pod("client")
    assert answer(client, f"http://{there.host}/") == "there-v1"
    assert answer(client, "http://external.example.com/") == "external"
    settings(mesh, defaultServiceExportTo=["."], outboundTrafficPolicy={"mode": "REGISTRY_ONLY"})
    eventually(lambda: answer(client, f"http://{there.host}/") == "502")
    assert answer(client, "http://external.example.com/") == "502"
    assert answer(client, f"http://{here.host}/") == "here-v1"
    assert answer(client, f"http://{said.host}/") == "said-v1"


def test_default_virtual_service_export_to(mesh: Mesh) -> None:
    other = f"{mesh.namespace}-a"
    one, two = mesh.service("one"), mesh.service("two")
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: rule, namespace: {other}}}
        spec: {{hosts: [{one.host}], http: [{{route: [{{destination: {{host: {two.host}}}}}]}}]}}
    """)
    client = mesh.pod("client")
    assert answer(client, "http://one/") == "two-v1"
    settings(mesh, defaultVirtualServiceExportTo=["."])
    eventually(lambda: answer(client, "http://one/") == "one-v1")


def test_default_destination_rule_export_to(mesh: Mesh) -> None:
    other = f"{mesh.namespace}-a"
    far = mesh.service("far", ["v1", "v2"], namespace=other)
    mesh.apply(f"""
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {{name: far, namespace: {other}}}
        spec: {{host: {far.host}, subsets: [{{name: two, labels: {{version: v2}}}}]}}
        ---
        apiVersion: networking.istio.io/v1
        kind: VirtualService
        metadata: {{name: far}}
        spec: {{hosts: [{far.host}], http: [{{route: [{{destination: {{host: {far.host}, subset: two}}}}]}}]}}
    """)
    client = mesh.pod("client")
    assert client.many(f"http://{far.host}/", 10) == {"far-v2": 10}
    settings(mesh, defaultDestinationRuleExportTo=["."])
    eventually(lambda: answer(client, f"http://{far.host}/") == "503")


def test_discovery_selectors(mesh: Mesh) -> None:
    other = f"{mesh.namespace}-a"
    for namespace, labels in ((mesh.namespace, {"team": "mesh"}), (other, {"team": "none"})):
        mesh.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    here, there = mesh.service("here"), mesh.service("there", namespace=other)
    client = mesh.pod("client")
    selectors = [{"matchLabels": {"team": "mesh"}}, {"matchExpressions": [{"key": "extra", "operator": "Exists"}]}]
    settings(mesh, discoverySelectors=[*selectors, _steps(mesh)], outboundTrafficPolicy={"mode": "REGISTRY_ONLY"})
    eventually(lambda: answer(client, f"http://{there.host}/") == "502")
    assert answer(client, f"http://{here.host}/") == "here-v1"
    mesh.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other, "labels": {"extra": ""}}})
    eventually(lambda: answer(client, f"http://{there.host}/") == "there-v1")


def _steps(mesh: Mesh) -> dict[str, Any]:
    """Selects the namespace by which the test sees that what it wrote was taken in."""
    return {"matchLabels": {"kubernetes.io/metadata.name": f"{mesh.namespace}-steps"}}


def test_protocol_detection_timeout(mesh: Mesh) -> None:
    """A server that speaks first, on a port of which nobody said so, does once the proxy stops waiting for its caller."""
    service = mesh.service("db", ports=[{"name": "some", "port": 9000}])
    service["v1"].greeting = b"hello"
    settings(mesh, protocolDetectionTimeout="0.1s")
    with mesh.pod("client").connect("db", 9000) as connection:
        assert connection.recv(5) == b"hello"


def test_connect_timeout(mesh: Mesh) -> None:
    """An address that nobody answers at: the route's own timeout is longer."""
    entry(mesh, "silent.example.com", SILENT)
    settings(mesh, connectTimeout="0.2s")
    reply = mesh.pod("client").get("http://silent.example.com/")
    assert reply.status == 503
    assert "connection timeout" in reply.body or "connection_timeout" in reply.body


def test_access_logs(mesh: Mesh) -> None:
    mesh.service("web")
    settings(mesh, accessLogFile="/dev/stdout", accessLogFormat="called %REQ(:PATH)% %RESPONSE_CODE%\n")
    client = mesh.pod("client")
    client.get("http://web/logged")
    eventually(lambda: "called /logged 200" in client.log())
    settings(mesh, accessLogFile="/dev/stdout", accessLogEncoding="JSON", accessLogFormat='{"where": "%REQ(:PATH)%"}')
    eventually(lambda: client.get("http://web/again").status == 200 and '{"where":"/again"}' in client.log())
    settings(mesh)
    eventually(lambda: _is_quiet(client))


def _is_quiet(client: Pod) -> bool:
    before = len(client.log())
    client.get("http://web/unheard")
    return "unheard" not in client.log()[before:]


def test_locality_load_balancing(mesh: Mesh) -> None:
    """The mesh's `distribute` is for services of which no DestinationRule says otherwise; `enabled: false` ends it."""
    for zone in ("a", "b"):
        labels = {"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": zone}
        mesh.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{mesh.namespace}-{zone}", "labels": labels}}, quiet=True)
    mesh.service("web", ["v1", "v2"], nodes={"v1": f"{mesh.namespace}-a", "v2": f"{mesh.namespace}-b"})
    settings(mesh, localityLbSetting={"distribute": [{"from": "r/a/*", "to": {"r/b/*": 100}}]})
    client = mesh.pod("client", host=f"{mesh.namespace}-a", locality=Locality("r", "a"))
    eventually(lambda: client.many("http://web/", 10) == {"web-v2": 10})
    settings(mesh, localityLbSetting={"enabled": False})
    eventually(lambda: set(client.many("http://web/", 20)) == {"web-v1", "web-v2"})


def test_default_http_retry_policy(mesh: Mesh) -> None:
    service = mesh.service("web")
    client = mesh.pod("client")

    def attempts() -> int:
        service["v1"].calls.clear()
        service["v1"].status = 500
        client.get("http://web/")
        return len(service["v1"].calls)

    assert attempts() == 1
    settings(mesh, defaultHttpRetryPolicy={"attempts": 3, "retryOn": "5xx"})
    eventually(lambda: attempts() == 4)
    settings(mesh, defaultHttpRetryPolicy={"attempts": 0, "retryOn": "5xx"})
    eventually(lambda: attempts() == 1)


def test_http_proxy_port(mesh: Mesh) -> None:
    """Istio: `proxyHttpPort`: callers that know of it name the service in the request line."""
    web = mesh.service("web", ports=[{"name": "http", "port": 80, "targetPort": 8080}, {"name": "http-two", "port": 8081}])
    settings(mesh, proxyHttpPort=15002)
    client = mesh.pod("client")
    with client.session("http://127.0.0.1:15002/") as session:
        for url, port in ((f"http://{web.host}/", 8080), (f"http://{web.host}:8081/", 8081)):
            assert called(session.forwarded(url).call).port == port


def test_h2_upgrade_policy(mesh: Mesh) -> None:
    mesh.service("web")
    client = mesh.pod("client")
    assert called(client.get("http://web/").call).protocol == "HTTP/1.1"
    settings(mesh, h2UpgradePolicy="UPGRADE")
    eventually(lambda: called(client.get("http://web/").call).protocol == "HTTP/2")


def test_attempt_counts_may_be_left_out(mesh: Mesh) -> None:
    mesh.service("web")
    client = mesh.pod("client")

    def counts() -> list[str | None]:
        """What the application and an unknown one are told."""
        calls = [called(client.get(url).call) for url in ("http://web/", "http://elsewhere.example.com/")]
        return [dict(call.headers).get("x-envoy-attempt-count") for call in calls]

    assert counts() == ["1", "1"]
    settings(mesh, defaultConfig={"proxyHeaders": {"attemptCount": {"disabled": True}}})
    eventually(lambda: counts() == [None, None])


def test_servers_certificates_may_go_unchecked(mesh: Mesh) -> None:
    server = mesh.application("server", ports=[8443])
    for name, tls in (("any", ""), ("ca", f", caCertificates: {mesh.authority.path}"), ("strict", ", insecureSkipVerify: false")):
        mesh.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: {name}}}
            spec:
              hosts: [{name}.unnamed.org]
              ports: [{{name: http, number: 80, protocol: HTTP, targetPort: 8443}}]
              resolution: STATIC
              endpoints: [{{address: {server.address}}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: {name}}}
            spec: {{host: {name}.unnamed.org, trafficPolicy: {{tls: {{mode: SIMPLE{tls}}}}}}}
        """)
    client = mesh.pod("client")

    def reached() -> list[str]:
        return [name for name in ("any", "ca", "strict") if answer(client, f"http://{name}.unnamed.org/") == "server"]

    assert reached() == []
    settings(mesh, verifyCertificateAtClient=False)
    eventually(lambda: reached() == ["any", "ca"])


def test_path_normalization(mesh: Mesh) -> None:
    mesh.service("web")
    settings(mesh, pathNormalization={"normalization": "MERGE_SLASHES"})
    client = mesh.pod("client")
    eventually(lambda: called(client.get("http://web/a//b").call).path == "/a/b")
    settings(mesh, pathNormalization={"normalization": "NONE"})
    eventually(lambda: called(client.get("http://web/a/../b").call).path == "/a/../b")


def test_root_namespace(mesh: Mesh) -> None:
    mesh.service("web")
    settings(mesh, rootNamespace=f"{mesh.namespace}-root", outboundTrafficPolicy={"mode": "REGISTRY_ONLY"})
    mesh.service("other")
    client = mesh.pod("client")
    sidecar(mesh, f"egress: [{{hosts: ['*/other.{mesh.namespace}.svc.cluster.local']}}]", namespace=f"{mesh.namespace}-root")
    eventually(lambda: answer(client, "http://web/") == "502")
    assert answer(client, "http://other/") == "other-v1"


def test_default_traffic_policy(mesh: Mesh) -> None:
    service = mesh.service("web")
    settings(mesh, defaultTrafficPolicy={"connectionPool": {"http": {"maxRequestsPerConnection": 1}}})
    client = mesh.pod("client")
    with client.session("http://web/") as session:
        for _ in range(3):
            assert session.get("http://web/").status == 200
    assert service["v1"].connections == 3


def test_listen_ports(mesh: Mesh) -> None:
    mesh.service("web")
    settings(mesh, proxyListenPort=15101, proxyInboundListenPort=15106)
    client = mesh.pod("client", capture="")
    addresses = {x["name"]: x["active_state"]["listener"]["address"] for x in client.config("dynamic_listeners")}
    ports = {name: address["socket_address"]["port_value"] for name, address in addresses.items() if "socket_address" in address}
    assert (ports["virtualOutbound"], ports["virtualInbound"]) == (15101, 15106)


def test_a_bad_mesh_config_leaves_the_last_good_one_in_force(mesh: Mesh) -> None:
    mesh.service("web")
    client = mesh.pod("client")
    settings(mesh, outboundTrafficPolicy={"mode": "REGISTRY_ONLY"}, configSources=[{"address": "k8s://"}])
    eventually(lambda: answer(client, "http://elsewhere.example.com/") == "502")
    mesh.put(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": "connectTimeout: soon\n"},
        }
    )
    told = [p["problem"] for p in mesh.world.debug("configz") if p["object"] == "ConfigMap istio.istio-system"]
    assert len(told) == 2  # the one in force has a setting without effect
    assert "connectTimeout" in told[0]
    assert "configSources" in told[1]
    assert answer(client, "http://elsewhere.example.com/") == "502"
    assert answer(client, "http://web/") == "web-v1"
    settings(mesh, outboundTrafficPolicy={"mode": "ALLOW_ANY"})
    eventually(lambda: answer(client, "http://elsewhere.example.com/") == UNKNOWN)


def test_an_unknown_setting_is_told_and_leaves_the_others_in_force(mesh: Mesh) -> None:
    settings(mesh, outboundTrafficPolicy={"mode": "REGISTRY_ONLY"}, conectTimeout="1s")
    mesh.service("web")
    client = mesh.pod("client")
    assert answer(client, "http://elsewhere.example.com/") == "502"
    (problem,) = (p for p in mesh.world.debug("configz") if "istio-system" in p["object"])
    assert problem["warning"]
    assert "connectTimeout" in problem["problem"]
