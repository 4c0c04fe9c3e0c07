"""The injector at work in a cluster: its webhook, its credentials, and its part in electing who renews these."""

import asyncio
import json
import re
from collections.abc import Callable

import structlog

from xds.errors import KubeError
from xds.identity.serving import Credentials
from xds.injection.certificates import Certificates
from xds.injection.pods import NATIVE_SINCE
from xds.injection.settings import REVISION, Settings
from xds.injection.webhook import Webhook
from xds.objects import MeshConfig
from xds.sources.kube_client import KubeClient
from xds.status.lease import Lease

log = structlog.get_logger()

RETRY_SECONDS = 2.0


class Injector:
    """One replica's injector. `namespace` is where we are installed, `identity` the name of our pod there."""

    def __init__(
        self, client: KubeClient, settings: Settings, mesh_config: Callable[[], MeshConfig], address: str, namespace: str, identity: str
    ) -> None:
        self._client = client
        self._settings = settings
        self._mesh_config = mesh_config
        self._address = address
        self._webhook: Webhook | None = None
        self._serving: Callable[[], None] = lambda: None
        revision = settings.revision
        service = f"{of_revision('istiod', revision)}.{namespace}"
        names = (f"{service}.svc", service, f"{service}.svc.{settings.cluster_domain}")
        self._certificates = Certificates(client, namespace, of_revision("istiod-webhook", revision), webhook_name(revision), names)
        self._lease = Lease(client, namespace, of_revision("istiod-leader", revision), identity)

    async def run(self, serving: Callable[[], None]) -> None:
        """Serve until cancelled. `serving` is called when the webhook answers."""
        self._serving = serving
        self._webhook = Webhook(self._settings, self._mesh_config, native=await self._native())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._lease.run(self._certificates.lead))
                tasks.create_task(self._certificates.follow(self._serve))
        finally:
            await self._webhook.stop()

    async def _serve(self, credentials: Credentials) -> None:
        assert self._webhook is not None
        first = not self._webhook.serving
        port = await self._webhook.serve(self._address, credentials)
        if first:
            log.info("webhook.listening", address=self._address, port=port)
            self._serving()

    async def _native(self) -> bool:
        while True:
            try:
                return has_native_sidecars(json.loads(await self._client.request("GET", "/version")))
            except KubeError as e:
                log.warning("cluster.version_unknown", error=str(e))
                await asyncio.sleep(RETRY_SECONDS)


def of_revision(name: str, revision: str) -> str:
    """What something is called of which each revision has its own."""
    return name if revision == REVISION else f"{name}-{revision}"


def webhook_name(revision: str) -> str:
    """The name of a revision's MutatingWebhookConfiguration, and of the ConfigMap of its settings; Istio's."""
    return of_revision("istio-sidecar-injector", revision)


def has_native_sidecars(version: dict[str, str]) -> bool:
    """Whether every kubelet that an API server of this `/version` may have runs native sidecars (Kubernetes: KEP-753)."""
    major, minor = (int("".join(re.findall(r"^\d+", version.get(part, ""))) or 0) for part in ("major", "minor"))
    return (major, minor) >= NATIVE_SINCE
