"""The applications of the demo: four services that know nothing of the mesh. Each calls others at its sidecar's egress address."""

from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web

APP_PORT = 9081  # where an application listens; its sidecar is in front of it at 9080
CALLS: Mapping[str, tuple[str, ...]] = {"productpage": ("details", "reviews"), "reviews": ("ratings",)}


class App:
    """One workload's application: answers any GET with its name and version, and with what it got from the services it calls."""

    def __init__(self, name: str, version: str, address: str, egress: str) -> None:
        self.name = name
        self.version = version
        self.address = address
        self._egress = egress  # `host:port` of the sidecar's egress listener
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; OSError where the address cannot be had."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, APP_PORT).start()

    async def stop(self) -> None:
        """Stop listening, and close what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _answer(self, _: web.Request) -> web.Response:
        body: dict[str, Any] = {"app": self.name, "version": self.version}
        headers = {}
        for callee in CALLS.get(self.name, ()):
            body[callee], answered = await self._call(callee)
            if "x-canary" in answered:
                headers["x-canary"] = answered["x-canary"]
        return web.json_response(body, headers=headers)

    async def _call(self, callee: str) -> tuple[Any, Mapping[str, str]]:
        assert self._session is not None
        async with self._session.get(f"http://{self._egress}/", headers={"Host": callee}) as response:
            if response.status != 200:
                return {"error": response.status}, response.headers
            return await response.json(), response.headers
