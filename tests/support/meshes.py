"""Meshes from YAML, without files and servers."""

import textwrap
from collections.abc import Iterable

from xds.mesh.model import Client, Labels, Scope, Service
from xds.mesh.store import Mesh, MeshView
from xds.objects import Object
from xds.objects.decoding import from_yaml
from xds.objects.meta import Ref
from xds.sources.changes import Change


def objects(*texts: str) -> list[Object]:
    """The objects of YAML documents. AssertionError where one is not good."""
    found = []
    for text in texts:
        for decoded in from_yaml(textwrap.dedent(text), "objects.yaml"):
            assert decoded.object is not None, list(map(str, decoded.problems))
            assert not decoded.problems, list(map(str, decoded.problems))
            found.append(decoded.object)
    return found


def apply(mesh: Mesh, *texts: str) -> None:
    mesh.apply([Change(item.ref, item) for item in objects(*texts)])


def delete(mesh: Mesh, *names: str) -> None:
    """Delete objects named as in `Service reviews.default`."""
    mesh.apply([Change(ref(name)) for name in names])


def ref(name: str) -> Ref:
    kind, _, rest = name.partition(" ")
    own, _, namespace = rest.partition(".")
    return Ref(kind, namespace, own)


def mesh(*texts: str) -> Mesh:
    """A mesh of these objects, all applied as one step."""
    made = Mesh()
    apply(made, *texts)
    return made


def view(mesh: Mesh, namespace: str = "default", labels: Iterable[tuple[str, str]] = ()) -> MeshView:
    """What a client in `namespace` sees."""
    return mesh.view(mesh.scope(Client(namespace, tuple(labels))))


def seen(mesh: Mesh, namespace: str = "default", labels: Labels = ()) -> set[str]:
    """The hosts that a client in `namespace` gets listeners and clusters for, `host@namespace`."""
    scope: Scope = mesh.scope(Client(namespace, labels))
    return {f"{host}@{where}" for egress in mesh.egress(scope) for host, where in egress.hosts}


def the(service: Service | None) -> Service:
    assert service is not None
    return service


def k8s(name: str, namespace: str = "default", spec: str = "ports: [{name: http, port: 80}]", **meta: str) -> str:
    """A Kubernetes Service; `meta` are more fields of its metadata, as YAML."""
    more = "".join(f", {key}: {value}" for key, value in meta.items())
    address = "" if "clusterIP" in spec or "externalName" in spec else "clusterIP: 10.96.0.1, "
    return f"---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}{more}}}, spec: {{{address}{spec}}}}}\n"


def istio(kind: str, name: str, spec: str, namespace: str = "default", **meta: str) -> str:
    """An object of Istio's networking API; `spec` is flow YAML without its braces."""
    more = "".join(f", {key}: {value}" for key, value in meta.items())
    head = f"apiVersion: networking.istio.io/v1, kind: {kind}"
    return f"---\n{{{head}, metadata: {{name: {name}, namespace: {namespace}{more}}}, spec: {{{spec}}}}}\n"


def config(text: str) -> str:
    """The MeshConfig, `text` being its YAML on one line."""
    return f"---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: istio, namespace: istio-system}}, data: {{mesh: '{text}'}}}}\n"


def namespace(name: str, labels: str = "") -> str:
    return f"---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}\n"


def pod(name: str, address: str, labels: str = "", namespace: str = "default", spec: str = "", ready: bool = True, **meta: str) -> str:
    more = "".join(f", {key}: {value}" for key, value in meta.items())
    status = f"{{phase: Running, podIP: {address}, podIPs: [{{ip: '{address}'}}], conditions: [{{type: Ready, status: '{ready}'}}]}}"
    metadata = f"{{name: {name}, namespace: {namespace}, labels: {{{labels}}}{more}}}"
    return f"---\n{{apiVersion: v1, kind: Pod, metadata: {metadata}, spec: {{{spec}}}, status: {status}}}\n"


def node(name: str, region: str, zone: str) -> str:
    labels = f"{{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}"
    return f"---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {labels}}}}}\n"


def endpoints(
    service: str, endpoints: str, namespace: str = "default", ports: str = "{name: http, port: 8080}", name: str = "", family: str = "IPv4"
) -> str:
    """An EndpointSlice; `endpoints` and `ports` are the items of lists, as flow YAML."""
    labels = f"{{kubernetes.io/service-name: {service}}}"
    metadata = f"{{name: {name or service}, namespace: {namespace}, labels: {labels}}}"
    head = f"apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {metadata}, addressType: {family}"
    return f"---\n{{{head}, ports: [{ports}], endpoints: [{endpoints}]}}\n"
