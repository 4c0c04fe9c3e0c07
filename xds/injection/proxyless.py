"""A pod whose gRPC clients speak xDS themselves: no proxy, no capture, only the file by which they find the control plane.

Istio: the template `grpc-simple`; names of container, volume and path are its. gRPC: gRFC A27, `GRPC_XDS_BOOTSTRAP`.
"""

import json
from typing import Any

from xds.envoy.bootstrap import grpc_bootstrap
from xds.injection.annotations import Wishes
from xds.injection.capture import PROXY_ID
from xds.injection.settings import Settings
from xds.injection.sidecar import FACTS, literal, pull_policy

INIT, VOLUME = "grpc-bootstrap-init", "grpc-io-proxyless-bootstrap"
DIRECTORY = "/var/lib/grpc/data"
VARIABLE = "GRPC_XDS_BOOTSTRAP"
FILE = f"{DIRECTORY}/bootstrap.json"


def add_bootstrap(spec: dict[str, Any], wishes: Wishes, settings: Settings) -> dict[str, list[str]]:
    """Put the file into all containers of `spec` that do not have another; what was added, by where."""
    mount = {"name": VOLUME, "mountPath": DIRECTORY}
    for key in ("initContainers", "containers"):
        for container in spec.get(key) or ():
            if not any(variable.get("name") == VARIABLE for variable in container.get("env") or ()):
                container["env"] = [*(container.get("env") or ()), {"name": VARIABLE, "value": FILE}]
                container["volumeMounts"] = [*(container.get("volumeMounts") or ()), {**mount, "readOnly": True}]
    node = f"sidecar~$(INSTANCE_IP)~$(POD_NAME).$(POD_NAMESPACE)~$(POD_NAMESPACE).svc.{literal(settings.cluster_domain)}"
    file = json.dumps(grpc_bootstrap(node, "$(POD_NAMESPACE)", literal(wishes.config.discovery_address)))
    writer = {
        "name": INIT,
        "image": wishes.image,
        **pull_policy(settings),
        "command": ["/bin/sh", "-c", f'printf %s "$0" > {FILE}'],
        "args": [file],
        "env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in FACTS.items()],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1000m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": PROXY_ID,
            "runAsNonRoot": True,
            "runAsUser": PROXY_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [mount],
    }
    spec["initContainers"] = [writer, *(spec.get("initContainers") or ())]
    spec["volumes"] = [*(spec.get("volumes") or ()), {"name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    return {"initContainers": [INIT], "containers": []}
