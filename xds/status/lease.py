"""Leadership: of all replicas, one holds the Lease and does what only one may do.

Kubernetes: `coordination.k8s.io/v1` Lease, as client-go's leader election reads and writes it. Clocks of replicas need not agree:
a lease has run out when it has not changed for its duration by the clock of the one who looks.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from xds.errors import Conflict, KubeError
from xds.sources.kube_client import KubeClient

log = structlog.get_logger()

DURATION_SECONDS = 15
RENEW_SECONDS = 5
GIVE_UP_SECONDS = 10  # without a renewal for so long, another may soon lead


class Lease:
    """One Lease, and `identity`, who would hold it."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_seconds: float = DURATION_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
        give_up_seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        self._client = client
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._duration = duration_seconds
        self._renew = renew_seconds
        self._give_up = give_up_seconds
        self._seen: tuple[str, float] = ("", 0.0)  # the version of the lease that another holds, and when it was first seen
        self.leading = False

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` whenever this replica leads, and cancel it when it does not any more. Until cancelled; then the lease is free."""
        while True:
            if not await self._hold():
                await asyncio.sleep(self._renew * random.uniform(0.8, 1.2))  # noqa: S311 - only spreads requests
                continue
            log.info("leadership.gained", lease=self._name, identity=self._identity)
            self.leading = True
            try:
                await self._lead(lead)
            finally:
                self.leading = False
                with contextlib.suppress(KubeError):
                    await self._release()
            log.warning("leadership.lost", lease=self._name, identity=self._identity)

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            leading = tasks.create_task(_forever(lead))
            await self._keep()
            leading.cancel()

    async def _keep(self) -> None:
        """Renew the lease until another has it, or it could not be renewed for too long."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while loop.time() < renewed + self._give_up:
            await asyncio.sleep(self._renew)
            if await self._hold():
                renewed = loop.time()
            elif self._seen[0]:
                return

    async def _hold(self) -> bool:
        """Take the lease, or renew it; whether that was possible."""
        try:
            async with asyncio.timeout(self._give_up):
                return await self._try()
        except Conflict:
            return False  # another was faster
        except (KubeError, TimeoutError) as e:
            log.warning("lease.unavailable", lease=self._name, error=str(e) or type(e).__name__)
            return False

    async def _try(self) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        own: dict[str, Any] = {"holderIdentity": self._identity, "leaseDurationSeconds": max(1, round(self._duration)), "renewTime": now}
        try:
            found = json.loads(await self._client.request("GET", f"{self._collection}/{self._name}"))
        except KubeError as e:
            if e.status != 404:
                raise
            await self._client.request("POST", self._collection, body=self._object({**own, "acquireTime": now, "leaseTransitions": 0}))
            return True
        spec, metadata = found.get("spec") or {}, found["metadata"]
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._has_run_out(metadata["resourceVersion"], spec):
            return False
        if holder != self._identity:
            own |= {"acquireTime": now, "leaseTransitions": (spec.get("leaseTransitions") or 0) + 1}
        found["spec"] = {**spec, **own}
        await self._client.request("PUT", f"{self._collection}/{self._name}", body=found)
        self._seen = ("", 0.0)
        return True

    def _has_run_out(self, version: str, spec: dict[str, Any]) -> bool:
        now = asyncio.get_running_loop().time()
        if self._seen[0] != version:
            self._seen = (version, now)
        return now >= self._seen[1] + (spec.get("leaseDurationSeconds") or self._duration)

    async def _release(self) -> None:
        """Leave the lease to whoever asks next."""
        found = json.loads(await self._client.request("GET", f"{self._collection}/{self._name}"))
        if (found.get("spec") or {}).get("holderIdentity") == self._identity:
            found["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._client.request("PUT", f"{self._collection}/{self._name}", body=found)

    def _object(self, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


async def _forever(lead: Callable[[], Awaitable[None]]) -> None:
    """A leader that has nothing left to do leads on."""
    await lead()
    await asyncio.Event().wait()
