"""The scene: a mesh of many services, as Kubernetes objects, and the changes that are played on it.

The same objects for every control plane: `services` over `namespaces`, each with `endpoints` addresses in one EndpointSlice; of the
first `rules` services each has a VirtualService and a DestinationRule with two subsets. With `scoped`, every namespace has a Sidecar
that sees just its own services.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """How big it is."""

    services: int = 1000
    endpoints: int = 10
    namespaces: int = 50
    rules: int = 100
    scoped: bool = False
    pieces: bool = False  # route tables come in pieces

    def namespace(self, index: int) -> str:
        return f"ns{index % self.namespaces}"

    def host(self, index: int) -> str:
        return f"svc{index}.{self.namespace(index)}.svc.cluster.local"

    def objects(self) -> Iterator[tuple[str, Manifest]]:
        """Every object with the API path that it is created at, in an order in which it can be."""
        for n in range(self.namespaces):
            yield "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns{n}"}}
        for i in range(self.services):
            yield from self.service(i)
        for i in range(self.rules):
            yield path("virtualservices", self.namespace(i)), self.virtual_service(i)
            yield path("destinationrules", self.namespace(i)), self.destination_rule(i)
        if self.scoped:
            for n in range(self.namespaces):
                yield path("sidecars", f"ns{n}"), self.sidecar(f"ns{n}")

    def service(self, index: int) -> Iterator[tuple[str, Manifest]]:
        """A Service and its EndpointSlice."""
        namespace, name = self.namespace(index), f"svc{index}"
        yield f"/api/v1/namespaces/{namespace}/services", {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }  # fmt: skip
        yield f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", self.endpoint_slice(index)

    def endpoint_slice(self, index: int, *last: str) -> Manifest:
        """The slice of one service; `last` replaces its last addresses."""
        addresses = [f"10.{index // 250}.{index % 250}.{j + 1}" for j in range(self.endpoints - len(last))]
        addresses += last
        return {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": f"svc{index}-1", "namespace": self.namespace(index), "labels": {"kubernetes.io/service-name": f"svc{index}"},
            },
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
        }  # fmt: skip

    def virtual_service(self, index: int, mark: str = "rev-0") -> Manifest:
        """Routes of one service; `mark` is a header value that tells one edit from another."""
        host = self.host(index)
        return {
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": f"svc{index}", "namespace": self.namespace(index)},
            "spec": {"hosts": [host], "http": [
                {
                    "match": [{"uri": {"prefix": "/v2"}}], "route": [{"destination": {"host": host}}],
                    "headers": {"request": {"set": {"x-rev": mark}}},
                },
                {"route": [{"destination": {"host": host}}]},
            ]},
        }  # fmt: skip

    def destination_rule(self, index: int, extra: str = "") -> Manifest:
        """Subsets of one service, and one called `extra`."""
        names = ["v1", "v2", *([extra] if extra else [])]
        return {
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": f"svc{index}", "namespace": self.namespace(index)},
            "spec": {"host": self.host(index), "subsets": [{"name": n, "labels": {"version": n}} for n in names]},
        }  # fmt: skip

    def sidecar(self, namespace: str) -> Manifest:
        return {
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "default", "namespace": namespace},
            "spec": {"egress": [{"hosts": ["./*"]}]},
        }  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One write, and the resource by which a proxy shows that it has it: none where nothing is to be sent."""

    method: str
    path: str
    body: Manifest | None
    type: str = ""
    name: str = ""
    text: str = ""
    removal: bool = False
    manager: str = "scene"  # of the fields that a PATCH applies


def path(plural: str, namespace: str, name: str = "") -> str:
    """The API path of Istio objects in a namespace, or of one of them."""
    return f"/apis/networking.istio.io/v1/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def changes(scene: Scene, kind: str, turn: int) -> list[Change]:
    """The writes of one turn of a change; the last one is what proxies are awaited to show."""
    i = turn % min(scene.rules or scene.services, scene.services)
    namespace = scene.namespace(i)
    match kind:
        case "endpoint":
            return [_endpoint(scene, i, f"10.250.{turn // 250}.{turn % 250 + 1}")]
        case "route":
            mark = f"rev-{turn + 1}-"
            body = scene.virtual_service(i, mark)
            shown = ("VirtualHost", f"80/{scene.host(i)}:80") if scene.pieces else ("RouteConfiguration", "80")
            return [Change("PATCH", path("virtualservices", namespace, f"svc{i}"), body, *shown, mark)]
        case "rule":
            subset = f"rev{turn + 1}"
            body = scene.destination_rule(i, subset)
            where = path("destinationrules", namespace, f"svc{i}")
            return [Change("PATCH", where, body, "Cluster", f"outbound|80|{subset}|{scene.host(i)}")]
        case "service":
            return _new_service(scene, scene.services + turn)
        case "deletion":
            new = 2 * scene.services + turn
            namespace = scene.namespace(new)
            gone = Change("DELETE", f"/api/v1/namespaces/{namespace}/services/svc{new}", None, "Cluster", f"outbound|80||{scene.host(new)}")
            return [*_new_service(scene, new), replace(gone, removal=True)]
        case "rollout":  # every pod of a service is replaced, one after the other
            addresses = [f"10.251.{turn % 250}.{j + 1}" for j in range(scene.endpoints)]
            return [_endpoint(scene, i, *addresses[: j + 1]) for j in range(scene.endpoints)]
        case "status":
            return list(_status(scene, i, f"{turn + 1}"))
        case "storm":  # of everything at once: rules first, as their own fields are not awaited
            rules = [c for j in range(20) for c in (*changes(scene, "route", turn + 7 * j), *changes(scene, "rule", turn + 7 * j))]
            return [*rules, *(c for j in range(60) for c in changes(scene, "endpoint", turn + 3 * j + 1000))]
    raise ValueError(f"no such change: {kind}")


KINDS = ("endpoint", "route", "rule", "service", "deletion", "rollout", "status", "storm")


def _endpoint(scene: Scene, index: int, *last: str) -> Change:
    """The last addresses of a service become these."""
    where = f"/apis/discovery.k8s.io/v1/namespaces/{scene.namespace(index)}/endpointslices/svc{index}-1"
    name = f"outbound|80||{scene.host(index)}"
    return Change("PATCH", where, scene.endpoint_slice(index, *last), "ClusterLoadAssignment", name, last[-1])


def _new_service(scene: Scene, index: int) -> list[Change]:
    name = f"outbound|80||{scene.host(index)}"
    return [Change("POST", where, body, "Cluster", name) for where, body in reversed(list(scene.service(index)))]


def _status(scene: Scene, index: int, mark: str) -> Iterator[Change]:
    """What controllers write all the time and no proxy should hear of: a rule's status, an EndpointSlice's and a Service's annotations."""
    namespace, name = scene.namespace(index), f"svc{index}"
    where = {"name": name, "namespace": namespace}
    rule: Manifest = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": where}
    rule["status"] = {"conditions": [{"type": "Reconciled", "status": "True", "message": mark}]}
    yield Change("PATCH", path("virtualservices", namespace, f"{name}/status"), rule, manager="status")
    notes = {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": mark}}
    marked = {"name": f"{name}-1", "namespace": namespace} | notes
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    body: Manifest = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": marked}
    yield Change("PATCH", f"{slices}/{name}-1", body, manager="status")
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace} | notes}
    yield Change("PATCH", f"/api/v1/namespaces/{namespace}/services/{name}", body, manager="status")


def write_files(scene: Scene, folder: Any) -> None:
    """The scene as JSON files, one a namespace and one for the rules, for control planes that read a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, list[Manifest]] = {}
    for _, manifest in scene.objects():
        by_file.setdefault(manifest["metadata"].get("namespace", "namespaces"), []).append(manifest)
    for name, manifests in by_file.items():
        (folder / f"{name}.yaml").write_text("\n---\n".join(json.dumps(m) for m in manifests) + "\n")
