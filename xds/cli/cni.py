"""`xds cni`: the node's agent of the CNI plugin, in the foreground."""

import asyncio
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xds import log as logging
from xds.errors import Forbidden, KubeError

if TYPE_CHECKING:
    from xds.sources.kube_client import KubeClient

DAEMON_SET = "/apis/apps/v1/namespaces/{namespace}/daemonsets/xds-cni"


@click.command()
@click.option("--configurations", type=click.Path(path_type=Path, file_okay=False), default="/etc/cni/net.d", show_default=True,
              metavar="DIR", help="Where the container runtime has its network's configuration.")  # fmt: skip
@click.option("--programs", type=click.Path(path_type=Path, file_okay=False), default="/opt/cni/bin", show_default=True,
              metavar="DIR", help="Where it has the plugins.")  # fmt: skip
@click.option("--plugin", type=click.Path(path_type=Path, dir_okay=False), default="/usr/local/bin/xds-cni", show_default=True,
              metavar="FILE", help="The plugin's program.")  # fmt: skip
@click.option("--node", envvar="NODE_NAME", default="", metavar="NAME", help="The node; where it is given, its pods are repaired.")
@click.option(
    "--namespace", envvar="POD_NAMESPACE", default="istio-system", show_default=True, metavar="NAME", help="Where we are installed."
)
@click.option("--kubeconfig", type=click.Path(dir_okay=False, path_type=Path), envvar="KUBECONFIG", metavar="FILE",
              help="The cluster. Default: $KUBECONFIG, ~/.kube/config, or the pod's own service account.")  # fmt: skip
@click.option("--log-json", is_flag=True, help="Log one JSON object a line.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
def command(
    configurations: Path, programs: Path, plugin: Path, node: str, namespace: str, kubeconfig: Path | None, log_json: bool, log_level: str,
) -> None:  # fmt: skip
    """Capture the traffic of this node's pods when they are made, in place of a privileged init container in each.

    Runs on every node, as root in a pod of a DaemonSet. Puts the CNI plugin xds-cni into the node's network configuration, keeps it
    there, and answers it. When it is ended because the DaemonSet is deleted, it takes the plugin out again.

    \b
    Examples:
      xds cni                                                 in its pod, with the node's directories where most nodes have them
      xds cni --configurations /host/net.d --programs /host/bin --node node-1
    """
    logging.configure(json=log_json, level=log_level)
    asyncio.run(_serve(configurations, programs, plugin, node, namespace, kubeconfig))


async def _serve(configurations: Path, programs: Path, plugin: Path, node: str, namespace: str, kubeconfig: Path | None) -> None:
    from xds.injection.cni.agent import Agent
    from xds.injection.cni.chain import Chain
    from xds.injection.cni.repair import repair
    from xds.sources.kube_client import KubeClient

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    chain = Chain(configurations, programs, plugin)
    async with KubeClient(kubeconfig) as client:
        agent = Agent(client, chain)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(agent.run())]
            if node:
                running.append(tasks.create_task(repair(client, agent, node)))
            await stopping.wait()
            for task in running:
                task.cancel()
        if await _uninstalled(client, namespace):
            chain.remove()


async def _uninstalled(client: "KubeClient", namespace: str) -> bool:
    """Whether there will be no agent after this one. Where that cannot be told, there may be one: its pods are to be captured."""
    try:
        found = json.loads(await client.request("GET", DAEMON_SET.format(namespace=namespace)))
    except Forbidden:
        return True  # the permission went with everything else
    except KubeError as e:
        return e.status == 404
    return "deletionTimestamp" in found["metadata"]
