"""`xds serve`: the control plane, in the foreground."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog

from xds import log as logging
from xds.allocator import limit_arenas
from xds.cli.addresses import HOST_PORT
from xds.errors import XdsError
from xds.objects.mesh_config import ROOT_NAMESPACE

if TYPE_CHECKING:
    from xds.discovery.server import Server
    from xds.serving import Control
    from xds.sources.changes import Source

log = structlog.get_logger()

DRAIN_SECONDS = 5.0


@click.command()
@click.option(
    "--files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Read objects from the YAML files below DIR, and follow them. May be given more than once.",
)
@click.option(
    "--resources",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Serve the Envoy resources in DIR as they are. May be given more than once, and with --files.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="KUBECONFIG",
    metavar="FILE",
    help="Watch the cluster this file names. Default: $KUBECONFIG, ~/.kube/config, or the pod's own service account.",
)
@click.option("--context", metavar="NAME", help="The context of the kubeconfig to use.")
@click.option(
    "--grpc-address", default="0.0.0.0:15010", type=HOST_PORT, show_default=True, help="Where proxies connect, plain text."
)
@click.option(
    "--http-address", default="0.0.0.0:15014", type=HOST_PORT, show_default=True, help="Metrics, health and debug."
)
@click.option(
    "--injection",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Give pods their proxies: run the webhook, with the settings in FILE.",
)
@click.option(
    "--webhook-address", default="0.0.0.0:15017", type=HOST_PORT, show_default=True, help="Where the API server asks it."
)
@click.option("--log-json", is_flag=True, help="Log one JSON object a line.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
def command(
    files: tuple[Path, ...],
    resources: tuple[Path, ...],
    kubeconfig: Path | None,
    context: str | None,
    grpc_address: str,
    http_address: str,
    injection: Path | None,
    webhook_address: str,
    log_json: bool,
    log_level: str,
) -> None:
    """Run the control plane: read objects, and stream to proxies what they mean.

    Objects come from a Kubernetes API server, or, with --files, from a directory of the same YAML. With --resources alone no mesh is
    involved: Envoy resources written by hand are served as they are.

    \b
    Examples:
      xds serve                                   in a pod, or with the cluster of your kubeconfig
      xds serve --files examples/bookinfo         no cluster needed
      xds serve --resources ./envoy               an xDS server for hand-written resources
    """
    logging.configure(json=log_json, level=log_level)
    limit_arenas()
    with contextlib.suppress(KeyboardInterrupt):
        _run(_serve(files, resources, kubeconfig, context, grpc_address, http_address, injection, webhook_address))


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """Run the event loop: uvloop's, which saves a tenth of a push, where there is one for this platform."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


async def _serve(
    files: tuple[Path, ...],
    resources: tuple[Path, ...],
    kubeconfig: Path | None,
    context: str | None,
    grpc_address: str,
    http_address: str,
    injection: Path | None,
    webhook_address: str,
) -> None:
    from prometheus_client import CollectorRegistry

    from xds.admin.http import Admin
    from xds.discovery.raw import RawResources
    from xds.discovery.server import Server
    from xds.serving import Control

    registry = CollectorRegistry()
    control = Control(_sources(files, resources, kubeconfig, context), RawResources(resources) if resources else None)
    server = control.server = Server(control, registry=registry)
    admin = Admin(control, server, registry)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with _failures_told(), asyncio.TaskGroup() as tasks:
        await admin.start(http_address)
        running = tasks.create_task(control.run())
        opening = tasks.create_task(_open(control, server, grpc_address))
        if injection is not None:
            control.waiting.add("webhook")
            injecting = tasks.create_task(_inject(control, injection, webhook_address, kubeconfig, context))
        await stopping.wait()
        log.info("server.draining", seconds=DRAIN_SECONDS)
        opening.cancel()
        if control.ready.is_set():
            await server.stop(DRAIN_SECONDS)
        running.cancel()
        if injection is not None:
            injecting.cancel()
        await admin.stop()


async def _open(control: "Control", server: "Server", address: str) -> None:
    """Take no proxy before everything is known: one that is told half of the mesh drops the rest."""
    await control.ready.wait()
    (port,) = await server.start(address)
    log.info("server.listening", address=address, port=port)


async def _inject(control: "Control", file: Path, address: str, kubeconfig: Path | None, context: str | None) -> None:
    from xds.injection import settings
    from xds.injection.service import Injector
    from xds.sources.kube_client import KubeClient

    wanted = settings.read(file)
    await control.ready.wait()
    async with KubeClient(kubeconfig, context) as client:
        namespace = os.environ.get("POD_NAMESPACE", ROOT_NAMESPACE)
        identity = os.environ.get("POD_NAME") or socket.gethostname()
        injector = Injector(client, wanted, control.mesh.config, address, namespace, identity)
        await injector.run(lambda: control.waiting.discard("webhook"))


def _sources(
    files: tuple[Path, ...], resources: tuple[Path, ...], kubeconfig: Path | None, context: str | None
) -> "list[Source]":
    from xds.sources.files import Files
    from xds.sources.kubernetes import Kubernetes

    sources: list[Source] = []
    if files:
        sources.append(Files(files))
    if not files and not resources:
        sources.append(Kubernetes(kubeconfig, context))
    return sources


@contextlib.asynccontextmanager
async def _failures_told() -> AsyncIterator[None]:
    """A task that fails for a reason that is the operator's ends the command with that reason, not with a group of tracebacks."""
    try:
        yield
    except BaseExceptionGroup as group:
        found: BaseException | None = group.subgroup(XdsError)
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if found is None:
            raise
        raise found from None
