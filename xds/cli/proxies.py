"""`xds proxies`."""

import asyncio
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
import yaml
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from xds.cli import EXIT_FAILED
from xds.cli.addresses import ask
from xds.cli.tables import terminal
from xds.errors import ConfigError, KubeError

COLUMNS = ("CDS", "EDS", "LDS", "RDS")  # always; others where some proxy asks for them


@click.command()
@click.option(
    "--server", metavar="URL", help="Ask one control plane, at its HTTP port, as in http://127.0.0.1:15014, and no cluster."
)
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="KUBECONFIG",
    metavar="FILE",
    help="Ask all replicas in the cluster that this file names.",
)
@click.option("--context", metavar="NAME", help="The context of the kubeconfig to use.")
@click.option("-o", "output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True)
def command(server: str | None, kubeconfig: Path | None, context: str | None, output: str) -> None:
    """List the connected proxies and how far each has come: SYNCED, STALE (sent, not acknowledged), NACK or NOT SENT, by type.

    A version that is not the one of most proxies is marked. The exit code is 1 when a proxy has rejected something.

    \b
    Examples:
      xds proxies                                    of all replicas in the cluster of your kubeconfig
      xds proxies --server http://127.0.0.1:15014    of a control plane that runs here
    """
    proxies: list[dict[str, Any]]
    proxies = asyncio.run(_ask_cluster(kubeconfig, context)) if server is None else ask(f"{server.rstrip('/')}/debug/syncz", "--server")
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(proxies), indent=2).decode())
    elif output == "yaml":
        yaml.dump(proxies, sys.stdout, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=130)
    else:
        terminal().print(_table(proxies))
    if any(kind["status"] == "NACK" for proxy in proxies for kind in proxy["types"].values()):
        sys.exit(EXIT_FAILED)


async def _ask_cluster(kubeconfig: Path | None, context: str | None) -> list[dict[str, Any]]:
    from xds import log, replicas
    from xds.sources.kube_client import KubeClient

    log.configure(level="error")
    async with KubeClient(kubeconfig, context) as client:
        try:
            return await replicas.ask_all(client, "/debug/syncz")
        except KubeError as e:
            raise ConfigError(client.server, e.reason) from e


def _table(proxies: list[dict[str, Any]]) -> Table:
    usual, _ = next(iter(Counter(proxy["version"] for proxy in proxies).most_common(1)), ("", 0))
    kinds = [*COLUMNS, *sorted({kind.upper() for proxy in proxies for kind in proxy["types"]} - set(COLUMNS))]
    table = Table("PROXY", "CLASS", "VERSION", *kinds, "CONNECTED", "LAST ERROR", box=SIMPLE_HEAD, pad_edge=False)
    for proxy in proxies:
        states = [proxy["types"].get(kind.lower(), {}).get("status", "-") for kind in kinds]
        version = proxy["version"] if proxy["version"] == usual else f"{proxy['version']} (most: {usual})"
        errors = [f"{name}: {kind['error']}" for name, kind in proxy["types"].items() if kind["error"]]
        cells = (proxy["node"], proxy["assignment"], version, *states, _since(proxy["connected"]), "; ".join(errors).partition("\n")[0])
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _since(connected: str) -> str:
    """How long ago that is, in its largest unit."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(connected)).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{max(seconds, 0)}s ago"
