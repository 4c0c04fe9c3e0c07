"""`xds proxies`."""

import sys
from typing import Any

import click
import msgspec
import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from xds.cli import EXIT_FAILED
from xds.cli.addresses import ask
from xds.cli.tables import terminal

COLUMNS = ("cds", "eds", "lds", "rds")


@click.command()
@click.option(
    "--server", default="http://127.0.0.1:15014", show_default=True, metavar="URL", help="The control plane's HTTP port."
)
@click.option("-o", "output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True)
def command(server: str, output: str) -> None:
    """List the connected proxies and how far each has come: SYNCED, STALE, NACK or NOT SENT, by type.

    The exit code is 1 when a proxy has rejected something.

    \b
    Example:
      xds proxies --server http://127.0.0.1:15014
    """
    proxies: list[dict[str, Any]] = ask(f"{server.rstrip('/')}/debug/syncz", "--server")
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(proxies), indent=2).decode())
    elif output == "yaml":
        yaml.dump(proxies, sys.stdout, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=130)
    else:
        terminal().print(_table(proxies))
    if any(kind["status"] == "NACK" for proxy in proxies for kind in proxy["types"].values()):
        sys.exit(EXIT_FAILED)


def _table(proxies: list[dict[str, Any]]) -> Table:
    table = Table("PROXY", "CLASS", *map(str.upper, COLUMNS), "SINCE", "LAST ERROR", box=SIMPLE_HEAD, pad_edge=False)
    for proxy in sorted(proxies, key=lambda p: str(p["node"])):
        states = [proxy["types"].get(name, {}).get("status", "-") for name in COLUMNS]
        error = next((k["error"] for k in proxy["types"].values() if k.get("error")), "")
        table.add_row(str(proxy["node"]), str(proxy["assignment"]), *states, str(proxy["connected"])[:19], str(error)[:100])
    return table
