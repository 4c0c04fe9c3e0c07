"""`xds check`."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xds.cli import EXIT_FAILED

if TYPE_CHECKING:
    from xds.diagnosis import Finding

MARKS = {"ok": ("√", "green"), "warning": ("‼", "yellow"), "failure": ("×", "red")}
SHOWN = 10  # details of one check, in the table


@click.command()
@click.option("--pre", is_flag=True, help="Only whether the control plane can be installed.")
@click.option("--revision", default="default", show_default=True, metavar="NAME", help="The revision to look at.")
@click.option("--kubeconfig", type=click.Path(dir_okay=False, path_type=Path), envvar="KUBECONFIG", metavar="FILE", help="The cluster.")
@click.option("--context", metavar="NAME", help="The context of the kubeconfig to use.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(pre: bool, revision: str, kubeconfig: Path | None, context: str | None, output: str) -> None:
    """Look at the cluster, the control plane and its proxies, and say what to do about what is not as it should be.

    The exit code is 1 where something fails; warnings leave it 0. Nothing is changed: a pod is tried without being stored.

    \b
    Examples:
      xds check --pre        before the installation
      xds check              after it
      xds check -o json      for a script
    """
    import msgspec

    from xds import log

    log.configure(level="error")  # what is wrong is in the findings
    findings = asyncio.run(_diagnose(pre, revision, kubeconfig, context))
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
    else:
        for finding in findings:
            _show(finding)
    if any(finding.status == "failure" for finding in findings):
        sys.exit(EXIT_FAILED)


async def _diagnose(pre: bool, revision: str, kubeconfig: Path | None, context: str | None) -> "list[Finding]":
    from xds.diagnosis import Cluster, diagnose
    from xds.sources.kube_client import KubeClient

    async with KubeClient(kubeconfig, context) as client:
        return await diagnose(Cluster(client, revision, installed=not pre))


def _show(finding: "Finding") -> None:
    mark, color = MARKS[finding.status]
    more = f" ({', '.join(finding.details)})" if finding.status == "ok" and finding.details else ""
    click.echo(f"{click.style(mark, fg=color)} {finding.title}{more}")
    if finding.status == "ok":
        return
    for detail in finding.details[:SHOWN]:
        click.echo(f"    {detail}")
    if len(finding.details) > SHOWN:
        click.echo(f"    and {len(finding.details) - SHOWN} more")
    click.echo(f"    → {finding.hint}")
