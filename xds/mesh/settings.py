"""The mesh's settings, and which namespaces belong to it."""

from collections.abc import Iterable, Mapping

from xds import flow
from xds import objects as api
from xds.mesh.inputs import Inputs
from xds.objects.mesh_config import ROOT_NAMESPACE, mesh_config
from xds.objects.meta import Ref


def contains(labels: Iterable[tuple[str, str]], wanted: Mapping[str, str]) -> bool:
    """Whether `labels` has all that is `wanted`."""
    return wanted.items() <= dict(labels).items()


class Settings(Inputs):
    """What the MeshConfig says, and what it says of namespaces."""

    @flow.derived
    def config(self) -> api.MeshConfig:
        """The MeshConfig in the ConfigMap `istio` of the root namespace; defaults where there is none."""
        found: api.ConfigMap | None = self.item(Ref("ConfigMap", ROOT_NAMESPACE, "istio"))
        config = None if found is None else mesh_config(found.data.get("mesh", ""))[0]
        return config or api.MeshConfig()

    @flow.derived
    def root(self) -> str:
        """The namespace whose rules are the mesh's defaults."""
        return self.config().root_namespace or ROOT_NAMESPACE

    @flow.derived
    def discovered(self, namespace: str) -> bool:
        """Whether the mesh looks at what is in `namespace` (Istio: MeshConfig `discoverySelectors`; none selects all)."""
        selectors = self.config().discovery_selectors
        if not selectors:
            return True
        found: api.Namespace | None = self.item(Ref("Namespace", "", namespace))
        labels = {"kubernetes.io/metadata.name": namespace} | ({} if found is None else found.meta.labels)
        return any(s.matches(labels) for s in selectors)
