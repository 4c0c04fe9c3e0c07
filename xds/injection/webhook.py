"""The mutating webhook: the API server asks about a pod before it stores it, and gets the patch that adds the proxy.

It answers over HTTPS at `/inject`. A pod that asks for what cannot be is refused with the reason, which the user sees where the pod
was made. An answer that is late holds up pods, so nothing here waits for anything.
"""

import base64
import json
import os
import ssl
import time
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web

from xds.errors import ConfigError
from xds.identity.serving import Credentials
from xds.injection.pods import inject, json_patch
from xds.injection.policy import reason_against
from xds.injection.settings import Settings
from xds.objects import MeshConfig

log = structlog.get_logger()

PATH = "/inject"
MAX_BYTES = 8 << 20  # a request has a pod in it, which the API server limits to less


class Webhook:
    """The server. `mesh_config` tells the mesh's present settings; `native` is whether the cluster has native sidecars."""

    def __init__(self, settings: Settings, mesh_config: Callable[[], MeshConfig], *, native: bool) -> None:
        self._settings = settings
        self._mesh_config = mesh_config
        self._native = native
        self._runner: web.AppRunner | None = None
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    @property
    def serving(self) -> bool:
        """Whether it answers."""
        return self._runner is not None

    async def serve(self, address: str, credentials: Credentials) -> int:
        """Show `credentials` from now on; the first time, listen on `address` (`host:port`). The port. OSError when it cannot."""
        _load(self._tls, credentials)
        if self._runner is None:
            app = web.Application(client_max_size=MAX_BYTES)
            app.router.add_post(PATH, self._answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            host, _, port = address.rpartition(":")
            try:
                await web.TCPSite(runner, host.strip("[]") or None, int(port), ssl_context=self._tls).start()
            except OSError:
                await runner.cleanup()
                raise
            self._runner = runner
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening, when all that was asked is answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            review = json.loads(await request.read())
            asked = review["request"]
            uid = asked["uid"]
        except (ValueError, KeyError, TypeError):
            return web.Response(status=400, text="an AdmissionReview with a request is wanted\n")
        response = {"uid": uid, **self.review(asked)}
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    def review(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The `response` to an AdmissionReview's `request`, but for its uid."""
        started = time.monotonic()
        pod = asked.get("object")
        if not isinstance(pod, dict) or (asked.get("kind") or {}).get("kind") != "Pod":
            return {"allowed": True}
        metadata = pod.get("metadata") or {}
        namespace = str(asked.get("namespace") or metadata.get("namespace") or "default")
        told = log.bind(pod=str(metadata.get("name") or metadata.get("generateName") or ""), namespace=namespace)
        if reason := reason_against(pod, namespace):
            told.debug("pod.left_alone", reason=reason)
            return {"allowed": True}
        config = self._mesh_config()
        try:
            injected = inject(
                pod, namespace, self._settings, config.default_config, native=self._native, metrics=config.enable_prometheus_merge
            )
        except ConfigError as e:
            told.warning("pod.refused", annotation=e.path, reason=e.reason)
            return {"allowed": False, "status": {"code": 400, "reason": "BadRequest", "message": f"sidecar injection: {e}"}}
        patch = json_patch(pod, injected.pod)
        told.info("pod.injected", warnings=len(injected.warnings), took_ms=round((time.monotonic() - started) * 1000, 1))
        response: dict[str, Any] = {
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(patch).encode()).decode(),
        }
        if injected.warnings:
            response["warnings"] = [f"sidecar injection: {warning}" for warning in injected.warnings]
        return response


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Have `context` show the certificate in new connections. OpenSSL reads files only; these are in memory, and gone afterwards."""
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(file, (credentials.key + credentials.certificate).encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
