"""The demo's processes: the control plane and a stock Envoy a workload, all on loopback addresses, all stopped with the stage."""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import as_file, files
from pathlib import Path

import aiohttp

from xds.demo.apps import App
from xds.demo.binary import find_envoy
from xds.envoy.bootstrap import Node, Ports, bootstrap, bootstrap_yaml
from xds.errors import ConfigError
from xds.mesh.model import Mode

SIDECAR_PORT = 9080
ADMIN_PORT = 15000
WORKLOADS = (
    # name, version, address of the workload, address of its sidecar's egress listener; as in examples/bookinfo
    ("productpage", "v1", "127.0.1.1", "127.0.2.1"),
    ("details", "v1", "127.0.1.2", "127.0.2.2"),
    ("reviews", "v1", "127.0.1.3", "127.0.2.3"),
    ("reviews", "v2", "127.0.1.4", "127.0.2.4"),
    ("ratings", "v1", "127.0.1.5", "127.0.2.5"),
)
START_SECONDS = 60.0


class Stage:
    """A running mesh. `folder` holds the YAML that it follows; edit it, and traffic follows."""

    def __init__(self, folder: Path, grpc_port: int, http_port: int) -> None:
        self.folder = folder
        self.grpc_port = grpc_port
        self.http_port = http_port
        self.page = f"http://{WORKLOADS[0][2]}:{SIDECAR_PORT}/"

    @property
    def logs(self) -> Path:
        return self.folder.parent / "logs"


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Start everything, and stop it at the end. ConfigError where the machine lacks something; it says what."""
    envoy = find_envoy()
    _check_addresses()
    async with AsyncExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xds-demo-")))
        folder = work / "bookinfo"
        with as_file(files("xds.demo") / "bookinfo") as example:
            shutil.copytree(example, folder)
        grpc_port, http_port = _free_ports(2)
        here = Stage(folder, grpc_port, http_port)
        here.logs.mkdir()
        await stack.enter_async_context(
            _process(
                "xds",
                here.logs,
                sys.executable,
                "-m",
                "xds",
                "serve",
                "--files",
                str(folder),
                "--grpc-address",
                f"127.0.0.1:{grpc_port}",
                "--http-address",
                f"127.0.0.1:{http_port}",
            )
        )
        for name, version, address, egress in WORKLOADS:
            app = App(name, version, address, f"{egress}:{SIDECAR_PORT}")
            await app.start()
            stack.push_async_callback(app.stop)
            config = work / f"{name}-{version}.yaml"
            config.write_text(_sidecar(name, version, address, grpc_port))
            await stack.enter_async_context(
                _process(
                    f"{name}-{version}",
                    here.logs,
                    str(envoy),
                    "-c",
                    str(config),
                    "--use-dynamic-base-id",
                    "--concurrency",
                    "1",
                    "--log-level",
                    "warning",
                    "--drain-time-s",
                    "1",
                )
            )
        await _wait_until_up(here)
        yield here


def _sidecar(name: str, version: str, address: str, grpc_port: int) -> str:
    """The bootstrap of a workload's sidecar. Its own ports are on the workload's address, since all share one machine."""
    node = Node(name=f"{name}-{version}", addresses=(address,), labels={"app": name, "version": version}, mode=Mode.NONE)
    ports = Ports(admin=ADMIN_PORT, admin_address=address, listen=address)
    return bootstrap_yaml(bootstrap(node, f"127.0.0.1:{grpc_port}", ports=ports))


@asynccontextmanager
async def _process(name: str, logs: Path, *command: str) -> AsyncIterator[None]:
    with (logs / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _wait_until_up(here: Stage) -> None:
    try:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
            while not await _is_up(here, session):  # noqa: ASYNC110 - Envoy has no event to wait for
                await asyncio.sleep(0.05)
    except TimeoutError:
        kept = Path(tempfile.mkdtemp(prefix="xds-demo-logs-"))
        shutil.copytree(here.logs, kept, dirs_exist_ok=True)
        raise ConfigError("demo", f"the mesh did not serve a page within {START_SECONDS:.0f} s; its logs are in {kept}") from None


async def _is_up(here: Stage, session: aiohttp.ClientSession) -> bool:
    """Whether every sidecar has its configuration, also that of a version that few calls go to, and the page is whole."""
    try:
        for _, _, address, _ in WORKLOADS:
            async with session.get(f"http://{address}:{ADMIN_PORT}/ready") as response:
                if response.status != 200:
                    return False
        async with session.get(here.page) as response:
            if response.status != 200:
                return False
            page = await response.json()
            return "ratings" in page.get("reviews", {}) and "version" in page.get("details", {})
    except (aiohttp.ClientError, OSError):
        return False


def _check_addresses() -> None:
    for name, version, address, egress in WORKLOADS:
        for where, port in ((address, SIDECAR_PORT), (egress, SIDECAR_PORT), (address, ADMIN_PORT)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((where, port))
                except OSError as e:
                    reason = (
                        f"{where}:{port}, which the sidecar of {name}-{version} needs, cannot be had: {os.strerror(e.errno or 0)}"
                    )
                    raise ConfigError("demo", reason) from e


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
