"""The HTTP port (15014): metrics, health, and what `xds proxies` and a person with curl ask.

`/metrics` Prometheus · `/healthz` the process lives · `/readyz` every source is synced and every server answers ·
`/debug/syncz` proxies and how far each is · `/debug/configz` objects with problems · `/debug/errors` translations that fail ·
`/debug/registryz` services · `/debug/why` the objects behind a proxy's resources · `/debug/memory` what is held, by kind ·
`POST /v3/discovery:clusters` and its siblings: xDS over REST.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from google.protobuf import json_format
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from xds import pb
from xds.admin import memory
from xds.discovery.client import node
from xds.discovery.fetch import KINDS
from xds.discovery.server import Server
from xds.errors import ConfigError, ProtocolError
from xds.mesh.workloads import claim
from xds.reasons import blamed, explained, overshadowed
from xds.serving import Control, errors

Answer = Callable[[], Any]  # or something to await


class Admin:
    """The HTTP server beside the xDS server."""

    def __init__(self, control: Control, server: Server, registry: CollectorRegistry) -> None:
        self._control = control
        self._server = server
        self._registry = registry
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> None:
        """Listen on `address` (`host:port`). ConfigError when it cannot."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthy)
        for path in ("/readyz", "/ready"):
            app.router.add_get(path, self._ready)
        for name, answer in self._debug().items():
            app.router.add_get(f"/debug/{name}", _json(answer))
        app.router.add_get("/debug/why", self._why)
        app.router.add_get("/debug/", self._index)
        for kind, type_url in KINDS.items():
            app.router.add_post(f"/v3/discovery:{kind}", self._fetch(type_url))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        host, _, port = address.rpartition(":")
        try:
            await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()
        except OSError as e:
            raise ConfigError(address, f"cannot listen here: {os.strerror(e.errno or 0)}") from e

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _debug(self) -> dict[str, Answer]:
        return {
            "syncz": self._server.proxies,
            "configz": self._problems,
            "registryz": self._control.mesh.registry,
            "errors": lambda: errors(self._control.mesh),
            "memory": lambda: memory.report(self._control, self._server),
        }

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        waiting = [] if self._control.ready.is_set() else ["first full sync"]
        waiting += sorted(self._control.waiting)
        if not waiting:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"waiting for the {' and the '.join(waiting)}\n")

    async def _why(self, request: web.Request) -> web.Response:
        """The objects behind each resource of the proxy `?as=POD.NAMESPACE`, by type and name."""
        workload = request.query.get("as", "")
        try:
            who = node(workload)
        except ConfigError as e:
            return web.Response(status=400, text=f"?as= {e.reason}\n")
        claimed = claim(who["id"], who["metadata"])
        classes = self._control.classes
        found = explained(classes, classes.connected(claimed.name, claimed.namespace) or claimed)
        return web.json_response({url: {r.name: objects for r, objects in resources} for url, resources in found.items()})

    def _fetch(self, type_url: str) -> Callable[[web.Request], Any]:
        """xDS over REST: a DiscoveryRequest as JSON, answered in kind; 304 where the client has this version."""

        async def handle(call: web.Request) -> web.Response:
            try:
                request = json_format.Parse(await call.text(), pb.DiscoveryRequest(), ignore_unknown_fields=True, descriptor_pool=pb.POOL)
                data = await self._server.fetch(type_url, request)
            except (json_format.ParseError, UnicodeDecodeError) as e:
                return web.Response(status=400, text=f"not a DiscoveryRequest: {e}\n")
            except ProtocolError as e:
                return web.Response(status=400 if e.status == "INVALID_ARGUMENT" else 503, text=f"{e.reason}\n")
            if data is None:
                return web.Response(status=304)
            response = pb.DiscoveryResponse.FromString(data)
            return web.Response(text=json_format.MessageToJson(response, descriptor_pool=pb.POOL), content_type="application/json")

        return handle

    async def _index(self, _: web.Request) -> web.Response:
        return web.json_response({"endpoints": [*(f"/debug/{name}" for name in self._debug()), "/debug/why?as=POD.NAMESPACE"]})

    async def _problems(self) -> list[dict[str, Any]]:
        found, classes = await self._control.problems(), self._control.classes
        return [*found, *blamed(classes, self._server.rejections()), *overshadowed(classes)]


def _json(answer: Answer) -> Callable[[web.Request], Any]:
    async def handle(_: web.Request) -> web.Response:
        value = answer()
        if isinstance(value, Awaitable):
            value = await value
        return web.Response(body=msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2), content_type="application/json")

    return handle
