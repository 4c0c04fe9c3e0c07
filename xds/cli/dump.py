"""`xds dump`: what a proxy gets, asked of a running server as a proxy would, or worked out from files."""

import asyncio
import fnmatch
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
import yaml
from google.protobuf.message import Message

from xds import pb
from xds.cli import EXIT_FAILED
from xds.cli.addresses import HOST_PORT
from xds.cli.tables import TABLES, terminal
from xds.discovery.resources import Resource

TYPES: Mapping[str, type[Message]] = {
    "clusters": pb.Cluster, "endpoints": pb.ClusterLoadAssignment, "listeners": pb.Listener, "routes": pb.RouteConfiguration,
}  # fmt: skip


class Dumped(msgspec.Struct):
    """One resource, and, where it was asked for, the objects behind it."""

    resource: Resource
    why: tuple[str, ...] = ()

    @property
    def message(self) -> Message:
        return pb.message_class(self.resource.type_url.rpartition("/")[2]).FromString(self.resource.body)


@click.command()
@click.argument("types", nargs=-1, metavar="[clusters|endpoints|listeners|routes|all]...", type=click.Choice([*TYPES, "all"]))
@click.option(
    "--as", "workload", required=True, metavar="POD.NAMESPACE", help="The proxy to answer for: its pod, or a whole node id."
)
@click.option(
    "--files", multiple=True, type=click.Path(exists=True, path_type=Path), metavar="DIR", help="Work it out from these files."
)
@click.option(
    "--server",
    default="127.0.0.1:15010",
    type=HOST_PORT,
    show_default=True,
    help="Without --files: ask this server, over ADS.",
)
@click.option(
    "--name", "names", multiple=True, metavar="PATTERN", help="Only resources of this name; * and ? stand for anything."
)
@click.option("--why", is_flag=True, help="Name the objects each resource was made from. Needs --files.")
@click.option("-o", "output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True)
def command(
    types: tuple[str, ...], workload: str, files: tuple[Path, ...], server: str, names: tuple[str, ...], why: bool, output: str
) -> None:
    """Show what a proxy gets.

    YAML and JSON are protobuf's JSON form, as Envoy's own /config_dump shows the same resources. The exit code is 1 when nothing matches.

    \b
    Examples:
      xds dump --files examples/bookinfo --as productpage-v1.default clusters
      xds dump --files examples/bookinfo --as productpage-v1.default routes --why
      xds dump --server 127.0.0.1:15010 --as productpage-v1.default endpoints --name '*reviews*' -o yaml
    """
    wanted = list(TYPES) if not types or "all" in types else list(dict.fromkeys(types))
    if why and not files:
        raise click.UsageError("--why needs --files: a proxy is not told what its resources are made from")
    if files:
        from xds.offline import dump

        found = asyncio.run(dump(files, workload, [pb.type_url(TYPES[t]) for t in wanted], why=why))
    else:
        from xds.discovery.client import fetch

        found = {
            url: [(r, ()) for r in resources]
            for url, resources in asyncio.run(fetch(server, workload, [pb.type_url(TYPES[t]) for t in wanted])).items()
        }
    dumped = {
        kind: [
            Dumped(r, w)
            for r, w in sorted(found[pb.type_url(TYPES[kind])], key=lambda pair: pair[0].name)
            if _matches(r.name, names)
        ]
        for kind in wanted
    }
    if not any(dumped.values()):
        click.echo("nothing matches", err=True)
        sys.exit(EXIT_FAILED)
    _print(dumped, output, why=why)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)


def _print(dumped: Mapping[str, list[Dumped]], output: str, *, why: bool) -> None:
    if output == "table":
        console = terminal()
        for kind, resources in dumped.items():
            console.print(TABLES[kind]([(d.message, d.why) for d in resources], why=why))
        return
    documents: list[dict[str, Any]] = []
    for resources in dumped.values():
        for d in resources:
            document = {"@type": d.resource.type_url, **pb.plain(d.message)}
            documents.append({"why": list(d.why), "resource": document} if why else document)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(documents), indent=2).decode())
    else:
        yaml.dump_all(documents, sys.stdout, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=130)
