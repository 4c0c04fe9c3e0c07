"""Objects from a Kubernetes API server: list and watch of every kind that clusters have for us."""

import asyncio
import functools
from pathlib import Path

import structlog

from xds.objects import KINDS
from xds.sources.changes import Sink
from xds.sources.discovery import Discovery
from xds.sources.kube_client import KubeClient
from xds.sources.reflector import IDLE_SECONDS, KindStatus, Reflector

log = structlog.get_logger()

SELECTORS = {"ConfigMap": "metadata.name=istio"}  # MeshConfig; a cluster's other ConfigMaps may be many, and large


class Kubernetes:
    """A `Source`: one cluster. See `KubeClient` for how `kubeconfig` and `context` choose it.

    `synced` waits for every kind that the cluster has; one whose CRD is not installed counts as empty, and is picked up when it
    is. A kind that we may not read is reported with the permission that is missing, and waited for.
    """

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None, idle_seconds: float = IDLE_SECONDS) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._idle_seconds = idle_seconds
        self._reflectors: list[Reflector] = []

    def status(self) -> list[KindStatus]:
        """How it stands with each kind."""
        return [reflector.status for reflector in self._reflectors]

    async def run(self, sink: Sink) -> None:
        """Deliver changes until cancelled. ConfigError where there is no usable configuration."""
        watched = {name: kind for name, kind in KINDS.items() if kind.watched}
        waiting = set(watched)

        def listed(kind: str) -> None:
            waiting.discard(kind)
            if not waiting:
                sink.synced()

        async with KubeClient(self._kubeconfig, self._context) as client, asyncio.TaskGroup() as tasks:
            log.info("cluster.watching", server=client.server)
            discovery = Discovery(client)
            for name, kind in watched.items():
                reflector = Reflector(
                    kind,
                    client,
                    discovery,
                    sink,
                    functools.partial(listed, name),
                    field_selector=SELECTORS.get(name, ""),
                    idle_seconds=self._idle_seconds,
                )
                self._reflectors.append(reflector)
                tasks.create_task(reflector.run(), name=f"watch {name}")
