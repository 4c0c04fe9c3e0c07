"""The kinds of objects, and where the Kubernetes API has them."""

from typing import TypeAlias

import msgspec

from xds.objects.destination_rule import DestinationRule
from xds.objects.kubernetes import ConfigMap, Endpoints, EndpointSlice, Namespace, Node, Pod, Service
from xds.objects.service_entry import ServiceEntry, WorkloadEntry
from xds.objects.sidecar import Sidecar
from xds.objects.virtual_service import VirtualService

Object: TypeAlias = (
    Service
    | EndpointSlice
    | Endpoints
    | Pod
    | Node
    | Namespace
    | ConfigMap
    | VirtualService
    | DestinationRule
    | Sidecar
    | ServiceEntry
    | WorkloadEntry
)


class Kind(msgspec.Struct, frozen=True):
    """A kind of object. `versions` are those we read, all alike, the preferred one first; `group` is empty for the core.

    One that is not `watched` is read from files only: a cluster says the same by another kind.
    """

    struct: type[Object]
    group: str
    versions: tuple[str, ...]
    plural: str
    watched: bool = True

    @property
    def kind(self) -> str:
        return self.struct.__name__

    @property
    def namespaced(self) -> bool:
        return self.struct.namespaced

    @property
    def api_versions(self) -> tuple[str, ...]:
        """What objects of this kind have as `apiVersion`."""
        return tuple(f"{self.group}/{version}" if self.group else version for version in self.versions)

    def path(self, version: str = "", namespace: str = "") -> str:
        """The path at which the API server lists these: `/apis/networking.istio.io/v1/virtualservices`, or of one namespace."""
        version = version or self.versions[0]
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" if namespace and self.namespaced else f"{root}/{self.plural}"


_ISTIO = ("v1", "v1beta1", "v1alpha3")

KINDS: dict[str, Kind] = {
    kind.kind: kind
    for kind in (
        Kind(Service, "", ("v1",), "services"),
        Kind(EndpointSlice, "discovery.k8s.io", ("v1",), "endpointslices"),
        Kind(Endpoints, "", ("v1",), "endpoints", watched=False),
        Kind(Pod, "", ("v1",), "pods"),
        Kind(Node, "", ("v1",), "nodes"),
        Kind(Namespace, "", ("v1",), "namespaces"),
        Kind(ConfigMap, "", ("v1",), "configmaps"),
        Kind(VirtualService, "networking.istio.io", _ISTIO, "virtualservices"),
        Kind(DestinationRule, "networking.istio.io", _ISTIO, "destinationrules"),
        Kind(Sidecar, "networking.istio.io", _ISTIO, "sidecars"),
        Kind(ServiceEntry, "networking.istio.io", _ISTIO, "serviceentries"),
        Kind(WorkloadEntry, "networking.istio.io", _ISTIO, "workloadentries"),
    )
}
