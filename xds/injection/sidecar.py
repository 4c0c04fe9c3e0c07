"""The two containers of an injected pod: the one that captures its traffic, or sees that the node has done so, and its proxy.

The proxy is a stock Envoy without an agent. Its bootstrap is an argument; what is known of a pod only when it runs (its name, its
addresses) stands in there as `$(VARIABLE)`, which the kubelet replaces from the container's environment. Labels and service
account are in the bootstrap only for the moment before the control plane sees the Pod: then the Pod itself is believed.
"""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from xds.envoy.bootstrap import ADMIN_PORT, PROMETHEUS_PORT, STATISTICS, STATUS_PORT, Node, Ports, bootstrap, bootstrap_json
from xds.injection.annotations import DNS_CAPTURE, Wishes
from xds.injection.capture import PROXY_ID, Capture, script, validation_script
from xds.injection.policy import INIT, PROXY, VALIDATION
from xds.injection.settings import Settings
from xds.mesh.model import Mode

_META = "ISTIO_META_"
_DEFAULT_CONCURRENCY = 2  # where no limit of CPU says how many threads are of use
FACTS = {  # the environment, and where the kubelet takes it from
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "INSTANCE_IP": "status.podIP",
    "INSTANCE_IPS": "status.podIPs",
    "SERVICE_ACCOUNT": "spec.serviceAccountName",
    "NODE_NAME": "spec.nodeName",
}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a pod before it runs."""

    namespace: str
    labels: Mapping[str, str]
    workload: str = ""
    owner: str = ""
    kind: str = "sidecar"  # or `router`: a gateway


def capture_container(capture: Capture, image: str, settings: Settings) -> dict[str, Any]:
    """The init container that installs the capture rules, or, where the node does that, fails unless they are there."""
    container: dict[str, Any] = {
        "name": VALIDATION if settings.cni else INIT,
        "image": image,
        **pull_policy(settings),
        "command": ["/bin/sh", "-c"],
        "args": [literal(validation_script() if settings.cni else script(capture))],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1000m", "memory": "128Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True},
    }
    security = container["securityContext"]
    if settings.cni:
        container["terminationMessagePolicy"] = "FallbackToLogsOnError"
        security |= {"capabilities": {"drop": ["ALL"]}, "runAsGroup": PROXY_ID, "runAsNonRoot": True, "runAsUser": PROXY_ID}
        security["seccompProfile"] = {"type": "RuntimeDefault"}
    else:
        security |= {"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "runAsGroup": 0, "runAsNonRoot": False, "runAsUser": 0}
    return container


def proxy_container(wishes: Wishes, settings: Settings, identity: Identity, tried: Mapping[str, int]) -> dict[str, Any]:
    """The proxy: an init container that stays where `wishes.native`, else a container like the others.

    `tried` are the application's ports whose TCP probes it answers, by their paths.
    """
    transparent = wishes.capture is not None and wishes.capture.mode is Mode.TPROXY
    container: dict[str, Any] = {
        "name": PROXY,
        "image": wishes.image,
        **pull_policy(settings),
        "command": ["/usr/local/bin/envoy"],
        "args": _arguments(wishes, settings, identity, tried),
        "env": [
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in FACTS.items()),
            # What the node looks at where it captures. The rest of `proxyMetadata` is in the bootstrap: there is no agent to read it here.
            *({"name": name, "value": value} for name, value in wishes.config.proxy_metadata.items() if name == DNS_CAPTURE),
        ],
        "ports": [{"name": "http-envoy-prom", "containerPort": PROMETHEUS_PORT, "protocol": "TCP"}],
        "resources": {"requests": dict(wishes.requests), "limits": dict(wishes.limits)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            # A transparent proxy calls the application from its caller's address: the kernel lets only NET_ADMIN do so.
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]} if transparent else {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": PROXY_ID,
            "runAsNonRoot": not transparent,
            "runAsUser": 0 if transparent else PROXY_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "lifecycle": _lifecycle(wishes),
    }
    if wishes.probed:
        ready = {"httpGet": {"path": "/healthz/ready", "port": STATUS_PORT}}
        container["startupProbe"] = {**ready, "periodSeconds": 1, "failureThreshold": 600, "timeoutSeconds": 3}
        container["readinessProbe"] = {
            **ready,
            "initialDelaySeconds": wishes.initial_delay_seconds,
            "periodSeconds": wishes.period_seconds,
            "failureThreshold": wishes.failure_threshold,
            "timeoutSeconds": 3,
        }
    if wishes.native:
        container["restartPolicy"] = "Always"
    if wishes.mounts:
        container["volumeMounts"] = list(wishes.mounts)
    return container


def _lifecycle(wishes: Wishes) -> dict[str, Any]:
    """How the proxy begins and ends.

    At the end it asks its callers at once to close their connections. A native sidecar then lives until the application has ended;
    a container of the classic kind ends by itself, and waits as long as the mesh's `terminationDrainDuration` says.
    """
    port = wishes.config.proxy_admin_port or ADMIN_PORT
    # Its answer does not matter: a proxy that does not answer has no connections.
    drain = f'wget -q -O /dev/null --post-data= "http://127.0.0.1:{port}/drain_listeners?inboundonly&graceful&skip_exit" || true'
    if not wishes.native:
        drain += f"; sleep {_seconds(wishes.config.termination_drain_duration)}"
    hooks: dict[str, Any] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", drain]}}}
    if wishes.config.hold_application_until_proxy_starts and not wishes.native:
        wait = f"for _ in $(seq 600); do wget -q -O /dev/null http://127.0.0.1:{port}/ready && exit 0; sleep 0.1; done; exit 1"
        hooks["postStart"] = {"exec": {"command": ["/bin/sh", "-c", wait]}}
    return hooks


def _arguments(wishes: Wishes, settings: Settings, identity: Identity, tried: Mapping[str, int]) -> list[str]:
    return [
        "--config-yaml",
        _bootstrap(wishes, settings, identity, tried),
        *_concurrency(wishes),
        "--log-level",
        wishes.log_level,
        "--component-log-level",
        wishes.component_log_level,
        "--drain-time-s",
        str(_seconds(wishes.config.drain_duration)),
        "--disable-hot-restart",  # it would need memory shared with a successor, which there never is
    ]


def _bootstrap(wishes: Wishes, settings: Settings, identity: Identity, tried: Mapping[str, int]) -> str:
    config = wishes.config
    metadata: dict[str, Any] = {key.removeprefix(_META): literal(v) for key, v in config.proxy_metadata.items() if key.startswith(_META)}
    node = Node(
        name="$(POD_NAME)",
        namespace="$(POD_NAMESPACE)",
        addresses=("$(INSTANCE_IP)",),
        kind=identity.kind,
        labels=dict(identity.labels),
        service_account="$(SERVICE_ACCOUNT)",
        host="$(NODE_NAME)",
        domain=literal(settings.cluster_domain),
        workload=identity.workload,
        owner=identity.owner,
        cluster_id=literal(settings.cluster_id),
        mesh_id=literal(config.mesh_id or ""),
        network=literal(identity.labels.get("topology.istio.io/network") or settings.network),
        mode=_mode(wishes, identity),
        metadata={"INSTANCE_IPS": "$(INSTANCE_IPS)", **metadata},
    )
    # Readiness and metrics are asked for at the pod's address, and only there: of which family it is shows at run time.
    ports = Ports(admin=config.proxy_admin_port, listen="$(INSTANCE_IP)")
    statistics = (*STATISTICS, *map(literal, wishes.statistics))
    message = bootstrap(node, literal(config.discovery_address), ports=ports, statistics=statistics, tried=tried)
    return bootstrap_json(message, indent=None)


def _mode(wishes: Wishes, identity: Identity) -> Mode:
    """How calls come in, as far as the control plane is to know: a gateway never listens in an application's place."""
    if wishes.capture is None:
        return Mode.NONE if identity.kind == "sidecar" else Mode.REDIRECT
    return wishes.capture.mode


def _concurrency(wishes: Wishes) -> list[str]:
    """As many threads as the proxy may use CPUs, unless the mesh says a number. 0 is one for each of the node's CPUs, Envoy's default."""
    threads = wishes.config.concurrency
    if threads is None:
        limit = wishes.limits.get("cpu", str(_DEFAULT_CONCURRENCY))
        threads = max(1, math.ceil(float(limit[:-1]) / 1000 if limit.endswith("m") else float(limit)))
    return ["--concurrency", str(threads)] if threads else []


def _seconds(duration: timedelta) -> int:
    return math.ceil(duration.total_seconds())


def literal(text: str) -> str:
    """`text` as an argument in which the kubelet is to replace nothing (Kubernetes: `$$` is `$`)."""
    return text.replace("$", "$$")


def pull_policy(settings: Settings) -> dict[str, str]:
    return {"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {}
