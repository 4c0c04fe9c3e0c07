"""The node's agent: it answers the plugin, and sees to it that the plugin is asked.

One question is one connection to a socket that only root can reach. With it comes the pod's network namespace as an open file, so
the agent needs to see neither the node's processes nor its mounts. What the pod wants is read from the API server at that moment:
the kubelet cannot know of a newer pod than the one that is found there.

Whatever fails, fails the pod's sandbox; the kubelet tries again.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from xds.errors import ConfigError, KubeError
from xds.injection.capture import TABLE, script
from xds.injection.cni.chain import Chain
from xds.injection.cni.pods import capture_of
from xds.injection.cni.protocol import Call, Code, PluginError, call, failure, success
from xds.sources.directories import changes
from xds.sources.kube_client import KubeClient

log = structlog.get_logger()

SOCKET = Path("/run/xds-cni/agent.sock")
QUESTION_BYTES = 4 << 20
QUESTION_SECONDS = 10.0
POD_SECONDS = 5.0  # so long a pod is looked for; then the kubelet tries again
RULES_SECONDS = 20.0
RETRY_SECONDS = 0.2
AT_ONCE = 16  # of a node's pods that all start again
LOOK_SECONDS = 30.0  # files are looked at so often even where no change was told


class Agent:
    """One node's agent. `socket_path` is where the plugin asks."""

    def __init__(self, client: KubeClient, chain: Chain, socket_path: Path = SOCKET) -> None:
        self._client = client
        self._socket_path = socket_path
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.chain = chain
        self.in_force = False  # whether the runtime asks us about every pod

    async def run(self) -> None:
        """Serve until cancelled. The plugin is put in place when it would be answered, and stays there afterwards."""
        with self._listening() as listening:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_in_force())
                while True:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listening)
                    tasks.create_task(self._serve(connection))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        self._socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket_path.unlink(missing_ok=True)  # of an agent before
        with socket.socket(socket.AF_UNIX) as listening:
            mask = os.umask(0o177)
            try:
                listening.bind(str(self._socket_path))
            finally:
                os.umask(mask)
            listening.listen(128)
            listening.setblocking(False)
            log.info("agent.listening", socket=str(self._socket_path))
            yield listening

    # The plugin in its place

    async def _keep_in_force(self) -> None:
        """Install the plugin, and again whenever it was removed, as happens where another writes the node's configuration anew."""
        async def keep(directory: Path) -> None:
            async for _ in changes(str(directory), recursive=False, pause=LOOK_SECONDS):
                self._install()

        async with asyncio.TaskGroup() as tasks:
            for directory in (self.chain.configurations, self.chain.programs):
                tasks.create_task(keep(directory))

    def _install(self) -> None:
        before = self.in_force
        try:
            self.in_force = self.chain.install()
        except OSError as e:
            self.in_force = False
            log.warning("plugin.not_installed", error=str(e))
            return
        if not self.in_force and before:
            log.warning("plugin.waiting", directory=str(self.chain.configurations), note="the node's network has no configuration")

    # Questions

    async def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        with connection:
            try:
                data = await asyncio.to_thread(_receive, connection, descriptors)
                answer = await self._answer(data, descriptors)
                connection.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(connection, answer)
            except OSError as e:
                log.warning("plugin.unanswered", error=str(e))
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def _answer(self, data: bytes, descriptors: list[int]) -> bytes:
        try:
            asked = call(data)
            try:
                return await self._operation(asked, descriptors)
            except PluginError as e:
                log.warning("pod.not_captured", operation=asked.command, pod=_shown(asked), error=e.message, details=e.details)
                return failure(e, asked.version)
        except PluginError as e:
            log.warning("plugin.misused", error=e.message, details=e.details)
            return failure(e)

    async def _operation(self, asked: Call, descriptors: list[int]) -> bytes:
        if asked.command == "STATUS":
            if not self.in_force:
                raise PluginError(Code.NOT_AVAILABLE, "the plugin is not in the node's configuration yet")
            return success()
        if len(descriptors) != 1 or _is_own(descriptors[0]):
            raise PluginError(Code.INVALID_ENVIRONMENT, "there is no network namespace of a pod")
        pod = None if asked.pod is None else await self._pod(*asked.pod, asked.uid)
        try:
            capture = None if pod is None else capture_of(pod)
        except ConfigError as e:
            raise PluginError(Code.POD_REFUSED, "the pod asks for a capture that cannot be", str(e)) from e
        if asked.command == "CHECK":
            if capture is not None:
                await self._run(descriptors[0], f"nft list table inet {TABLE} > /dev/null")
            return success()
        if capture is not None:
            await self._run(descriptors[0], script(capture))
            log.info("pod.captured", pod=_shown(asked), mode=capture.mode.name)
        return success(asked.previous)

    async def _pod(self, namespace: str, name: str, uid: str) -> dict[str, Any]:
        """The pod that the runtime means. A node makes some pods by itself, and the API server learns of these a moment later."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        reason = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POD_SECONDS):
                while True:
                    try:
                        pod: dict[str, Any] = json.loads(await self._client.request("GET", path))
                        if uid in ("", *_uids(pod)):
                            return pod
                        reason = f"there is a newer pod of this name, {pod['metadata'].get('uid')}; asked was {uid}"
                    except KubeError as e:
                        reason = str(e)
                    await asyncio.sleep(RETRY_SECONDS)
        raise PluginError(Code.TRY_AGAIN, f"the API server does not show the pod {namespace}/{name}", reason)

    async def _run(self, namespace: int, program: str) -> None:
        """Run a shell program in a network namespace."""
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                "nsenter", f"--net=/proc/self/fd/{namespace}", "/bin/sh", "-c", program,
                pass_fds=[namespace], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                async with asyncio.timeout(RULES_SECONDS):
                    said, _ = await process.communicate()
            except TimeoutError as e:
                raise PluginError(Code.TRY_AGAIN, "the rules were not installed in time") from e
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode:
            raise PluginError(Code.NOT_CAPTURED, "the rules are not in force", said.decode(errors="replace").strip()[:1000])


def _is_own(namespace: int) -> bool:
    """Whether this is the network that we are in, which is the node's: no rules of ours belong there."""
    here, own = os.fstat(namespace), Path("/proc/self/ns/net").stat()
    return (here.st_dev, here.st_ino) == (own.st_dev, own.st_ino)


def _uids(pod: dict[str, Any]) -> tuple[str, str]:
    """The pod's UID, and that by which the node knows one which it has made by itself."""
    metadata = pod["metadata"]
    return str(metadata.get("uid", "")), str((metadata.get("annotations") or {}).get("kubernetes.io/config.mirror", ""))


def _receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """The whole question, and the open file that comes with it. OSError where that is late or too much."""
    connection.settimeout(QUESTION_SECONDS)
    data, passed, _, _ = socket.recv_fds(connection, 65536, 1)
    descriptors += passed
    parts = [data]
    while part := connection.recv(65536):
        parts.append(part)
        if sum(map(len, parts)) > QUESTION_BYTES:
            raise OSError("a question that is too long")
    return b"".join(parts)


def _shown(asked: Call) -> str:
    return "" if asked.pod is None else ".".join(reversed(asked.pod))
