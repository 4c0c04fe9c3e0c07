"""Requests to one Kubernetes API server: bytes out, bytes back.

kubernetes-asyncio finds the configuration and knows the ways to authenticate. Its models are not used: decoding an object through
them takes twenty times as long as everything else that happens to it. Nor are they imported: they are 36 MB, and half of the time
that a start takes.
"""

import asyncio
import importlib
import importlib.util
import json
import os
import socket
import sys
import types
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog

from xds._version import __version__
from xds.errors import ConfigError, Conflict, Forbidden, Gone, KubeError

log = structlog.get_logger()

LIBRARY = "kubernetes_asyncio"
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
RELOAD_SECONDS = 5.0  # credentials that were refused are not read again before
KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))  # a dead peer is noticed in 30 s


class Unreachable(KubeError):  # noqa: N818
    """There was no answer, or it broke off. `status` is 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


class KubeClient:
    """An API server and our identity there; an async context manager.

    The configuration is the `kubeconfig` file (in it the `context`, else the current one), else `$KUBECONFIG`, else
    `~/.kube/config`, else the pod's own service account. Rotated credentials are picked up: a service account's token within a
    minute, anything else when the API server refuses what we have.
    """

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._rest: Any = None  # kubernetes-asyncio's transport: an aiohttp session with TLS and proxy set up
        self._configuration: Any = None
        self._loading = asyncio.Lock()
        self._loaded_at = 0.0
        self._reachable = True

    async def __aenter__(self) -> Self:
        """Read the configuration. Nothing is sent yet. ConfigError where there is none that can be used."""
        await self._load()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._rest.close()

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._configuration.host)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        *,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """The body of the answer. `body` is sent as JSON; KubeError for every answer but 2xx."""
        async with self.open(method, path, query, body=body, headers={"Content-Type": content_type}) as response:
            return await response.read()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        read_seconds: float = READ_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer while it is still being read; `read_seconds` is the longest silence that is borne.

        KubeError for every answer but 2xx and 304; Unreachable also when it breaks off while the caller reads it.
        """
        try:
            used = self._rest
            response = await self._send(method, path, query, body, headers, read_seconds)
            if response.status == 401 and await self._reload(used):
                response.close()
                response = await self._send(method, path, query, body, headers, read_seconds)
            self._report(None)
            async with response:
                if response.status >= 300 and response.status != 304:
                    raise kube_error(response.status, await response.read(), response.headers.get("Retry-After"))
                try:
                    yield response
                finally:
                    _drop(response)
        except (aiohttp.ClientError, OSError) as e:
            error = Unreachable(f"{self.server}: {str(e) or type(e).__name__}")
            self._report(error)
            if isinstance(e, aiohttp.ClientSSLError):
                await self._reload(used)
            raise error from e

    def _report(self, error: Unreachable | None) -> None:
        """Log that the server has gone, or is back: once, however many requests are under way."""
        if self._reachable != (error is None):
            self._reachable = error is None
            if error is None:
                log.info("cluster.reachable", server=self.server)
            else:
                log.warning("cluster.unreachable", server=self.server, error=error.reason, note="retried; all stays in force")

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        body: Any,
        headers: Mapping[str, str] | None,
        read_seconds: float,
    ) -> aiohttp.ClientResponse:
        # Plain bytes: on a cluster's network, inflating lists costs our event loop more than their transfer takes.
        sent = {
            "User-Agent": f"xds/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        if token := await self._configuration.get_api_key_with_prefix("BearerToken"):
            sent["Authorization"] = token
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=read_seconds)
        response: aiohttp.ClientResponse = await self._rest.request(
            method,
            self.server + path,
            query_params=query,
            headers=sent,
            body=body,
            _preload_content=False,
            _request_timeout=timeout,
        )
        if (connection := response.connection) is not None and connection.transport is not None:
            peer = connection.transport.get_extra_info("socket")
            for option, value in KEEPALIVE:
                peer.setsockopt(socket.IPPROTO_TCP, option, value)
        return response

    async def _reload(self, refused: Any) -> bool:
        """Read the configuration again, since `refused`'s credentials were; False where that was done just now."""
        async with self._loading:
            if self._rest is not refused:
                return True
            if asyncio.get_running_loop().time() < self._loaded_at + RELOAD_SECONDS:
                return False
            try:
                await self._load()
            except ConfigError as e:
                raise Unreachable(str(e)) from e
            log.info("credentials.reloaded", server=self.server)
            return True

    async def _load(self) -> None:
        config, client, transport = _library()
        configuration = client.Configuration()
        configuration.disable_strict_ssl_verification = True  # many clusters' CAs lack the key identifiers that RFC 5280 asks for
        path = self._kubeconfig_path()
        place = "the pod's service account" if path is None else str(path)
        try:
            if path is None:
                config.load_incluster_config(client_configuration=configuration)
            else:
                await config.load_kube_config(
                    config_file=str(path), context=self._context, client_configuration=configuration, persist_config=False
                )
            rest = transport.RESTClientObject(configuration)
        except config.ConfigException as e:
            raise ConfigError(place, str(e)) from e
        except Exception as e:  # the library raises whatever it stumbles over in a broken file
            raise ConfigError(place, f"this cannot be used, it may be empty or cut short ({type(e).__name__}: {e})") from e
        finally:
            self._loaded_at = asyncio.get_running_loop().time()
        previous, self._rest, self._configuration = self._rest, rest, configuration
        if previous is not None:
            await previous.close()  # open watches break, and resume with what is valid now

    def _kubeconfig_path(self) -> Path | None:
        """The kubeconfig file (or files, separated as `$KUBECONFIG` separates them); None means in-cluster."""
        named = self._kubeconfig or os.environ.get("KUBECONFIG")
        if named:
            if not any(Path(part).expanduser().exists() for part in str(named).split(os.pathsep)):
                raise ConfigError(str(named), "no such file")
            return Path(named)
        default = Path.home() / ".kube" / "config"
        if default.exists():
            return default
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return None
        raise ConfigError(str(default), "no such file, $KUBECONFIG is not set, and this is no pod: no cluster to connect to")


def _drop(response: aiohttp.ClientResponse) -> None:
    """End the connection of an answer that is not read to its end, as watches never are: TLS's goodbye might outlive the loop."""
    if (connection := response.connection) is not None and connection.transport is not None:
        connection.transport.abort()


@cache
def _library() -> tuple[Any, Any, Any]:
    """kubernetes-asyncio's `config`, `client.configuration` and `client.rest`, without the rest of it.

    Importing any part of the library imports all of it, as its packages import all that is in them. Here empty packages stand in for
    these until what we need is imported. Whoever imports the library otherwise gets it whole, before and after.
    """
    whole = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == LIBRARY}
    spec = importlib.util.find_spec(LIBRARY)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (place,) = spec.submodule_search_locations
    for name in whole:
        del sys.modules[name]
    try:
        root, client = (types.ModuleType(name) for name in (LIBRARY, f"{LIBRARY}.client"))
        root.__path__ = [place]
        client.__path__ = [str(Path(place) / "client")]
        sys.modules |= {root.__name__: root, client.__name__: client}
        configuration, transport = (importlib.import_module(f"{LIBRARY}.client.{part}") for part in ("configuration", "rest"))
        vars(client).update(Configuration=configuration.Configuration, ApiClient=None)  # `config` names it, for what we do not use
        return importlib.import_module(f"{LIBRARY}.config"), configuration, transport
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == LIBRARY]:
            del sys.modules[name]
        sys.modules.update(whole)


def kube_error(status: int, body: bytes, retry_after: str | None = None) -> KubeError:
    """The error that an answer means. The API server says why in a Status object; a proxy before it may say anything."""
    try:
        reason = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        reason = body.decode(errors="replace").strip()[:200] or "no reason given"
    kind = {401: Forbidden, 403: Forbidden, 409: Conflict, 410: Gone}.get(status, KubeError)
    error = kind(status, reason)
    if retry_after is not None and retry_after.isdigit():
        error.retry_after = float(retry_after)
    return error
