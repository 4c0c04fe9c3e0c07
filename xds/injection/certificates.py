"""The webhook's credentials in the cluster: in a Secret that all replicas read, and in the webhook's configuration.

The leader makes and renews them, and tells the API server whom to trust. Every replica serves with what the Secret has.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog

from xds.errors import Conflict, KubeError
from xds.identity.serving import Credentials, expiry, renew
from xds.sources.kube_client import KubeClient

log = structlog.get_logger()

POLL_SECONDS = 30.0  # a renewed certificate is served so much later at most; it is renewed a month before the old one ends
FIRST_POLL_SECONDS = 1.0  # while there is none yet
_FIELDS = {"authorities": "ca.crt", "authority_key": "ca.key", "certificate": "tls.crt", "key": "tls.key"}
_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


class Certificates:
    """Credentials for `names` (of DNS), in the Secret `secret` and the MutatingWebhookConfiguration `webhook`."""

    def __init__(self, client: KubeClient, namespace: str, secret: str, webhook: str, names: Sequence[str]) -> None:
        self._client = client
        self._namespace = namespace
        self._secret = secret
        self._webhook = webhook
        self._names = tuple(names)

    async def lead(self) -> None:
        """Keep the Secret and the configuration as they are to be, until cancelled. What fails is tried again."""
        while True:
            wait = POLL_SECONDS
            try:
                await self.reconcile(datetime.now(UTC))
            except KubeError as e:
                log.warning("cert.unwritten", secret=self._secret, webhook=self._webhook, error=str(e))
                wait = FIRST_POLL_SECONDS
            await asyncio.sleep(wait)

    async def follow(self, serve: Callable[[Credentials], Awaitable[object]]) -> None:
        """Call `serve` with the credentials that the Secret has, and whenever it has others; until cancelled."""
        known: Credentials | None = None
        while True:
            try:
                found, _ = await self._read()
            except KubeError as e:
                log.warning("cert.unread", secret=self._secret, error=str(e))
                found = None
            if found is not None and found != known:
                await serve(found)
                known = found
                log.info("cert.loaded", secret=self._secret, expires=expiry(found).isoformat())
            await asyncio.sleep(FIRST_POLL_SECONDS if known is None else POLL_SECONDS)

    async def reconcile(self, now: datetime) -> None:
        """One step, or several of them where one makes the next possible. KubeError where the API server refuses."""
        while True:
            current, version = await self._read()
            trusted = await self._trusted()
            wanted = renew(now, self._names, current, "".join(trusted.values()) if trusted and len(set(trusted.values())) == 1 else "")
            if wanted != current:
                try:
                    await self._write(wanted, version)
                except Conflict:
                    continue
                log.info("cert.issued", secret=self._secret, expires=expiry(wanted).isoformat())
            if any(bundle != wanted.authorities for bundle in trusted.values()):
                await self._trust(trusted, wanted.authorities)
            elif wanted == current:
                return

    async def _read(self) -> tuple[Credentials | None, str]:
        """What the Secret has, and its version; None where there is no Secret, or one without credentials."""
        try:
            found = json.loads(await self._client.request("GET", f"{self._secrets}/{self._secret}"))
        except KubeError as e:
            if e.status != 404:
                raise
            return None, ""
        data = found.get("data") or {}
        version = str(found["metadata"]["resourceVersion"])
        try:
            return Credentials(**{field: _decode(data[key]) for field, key in _FIELDS.items()}), version
        except (KeyError, ValueError):
            return None, version

    async def _write(self, credentials: Credentials, version: str) -> None:
        data = {key: base64.b64encode(getattr(credentials, field).encode()).decode() for field, key in _FIELDS.items()}
        metadata = {"name": self._secret, "namespace": self._namespace, "labels": {"app.kubernetes.io/part-of": "xds"}}
        body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
        if not version:
            await self._client.request("POST", self._secrets, body=body)
        else:
            metadata["resourceVersion"] = version
            await self._client.request("PUT", f"{self._secrets}/{self._secret}", body=body)

    async def _trusted(self) -> dict[str, str]:
        """The authorities that each webhook of the configuration trusts, by its name. None where there is no configuration."""
        try:
            found = json.loads(await self._client.request("GET", f"{_WEBHOOKS}/{self._webhook}"))
        except KubeError as e:
            if e.status != 404:
                raise
            log.warning("webhook.missing", webhook=self._webhook, note="no pod gets a proxy until it is there")
            return {}
        webhooks = found.get("webhooks") or []
        return {webhook["name"]: _decode((webhook.get("clientConfig") or {}).get("caBundle") or "") for webhook in webhooks}

    async def _trust(self, webhooks: dict[str, str], authorities: str) -> None:
        bundle = base64.b64encode(authorities.encode()).decode()
        patch = {"webhooks": [{"name": name, "clientConfig": {"caBundle": bundle}} for name in webhooks]}
        await self._client.request(
            "PATCH", f"{_WEBHOOKS}/{self._webhook}", body=patch, content_type="application/strategic-merge-patch+json"
        )
        log.info("webhook.patched", webhook=self._webhook)

    @property
    def _secrets(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}/secrets"


def _decode(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
