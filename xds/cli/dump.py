"""`xds dump`: what a proxy gets, asked of a running server as a proxy would, or worked out from files."""

import asyncio
import fnmatch
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import msgspec
import yaml
from google.protobuf.message import Message

from xds import pb
from xds.cli import EXIT_FAILED
from xds.cli.addresses import HOST_PORT, ask
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
@click.option("--why", is_flag=True, help="Name the objects each resource was made from.")
@click.option(
    "--http",
    default="http://127.0.0.1:15014",
    show_default=True,
    metavar="URL",
    help="The HTTP port of the server, which --why asks: a proxy is not told what its resources are made from.",
)
@click.option("-o", "output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True)
def command(
    types: tuple[str, ...], workload: str, files: tuple[Path, ...], server: str, names: tuple[str, ...], why: bool, http: str,
    output: str,
) -> None:  # fmt: skip
    """Show what a proxy gets.

    YAML and JSON are protobuf's JSON form, as Envoy's own /config_dump shows the same resources. What is wrong with objects in the files is
    told on stderr. The exit code is 1 when nothing matches.

    \b
    Examples:
      xds dump --files examples/bookinfo --as productpage-v1.default clusters
      xds dump --files examples/bookinfo --as productpage-v1.default routes --why
      xds dump --as productpage-v1.default endpoints --name '*reviews*' -o yaml
    """
    wanted = list(TYPES) if not types or "all" in types else list(dict.fromkeys(types))
    urls = [pb.type_url(TYPES[t]) for t in wanted]
    if files:
        from xds.offline import dump

        found, problems = asyncio.run(dump(files, workload, urls))
        for problem in problems:
            click.echo(f"xds: {problem}", err=True)
    else:
        from xds.discovery.client import fetch

        fetched = asyncio.run(fetch(server, workload, urls))
        reasons: dict[str, dict[str, list[str]]] = ask(f"{http}/debug/why?{urlencode({'as': workload})}", "--http") if why else {}
        found = {
            url: [(r, tuple(reasons.get(url, {}).get(r.name, ()))) for r in resources] for url, resources in fetched.items()
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
