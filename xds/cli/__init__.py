"""The `xds` command; one file a subcommand, imported when it is called."""

import importlib
import sys

import click

from xds._version import __version__
from xds.errors import XdsError

COMMANDS = {
    "serve": "Run the control plane.",
    "dump": "Show what a proxy gets, and why.",
    "proxies": "List the connected proxies and how far each has come.",
    "check": "Find out whether cluster, control plane and proxies are as they should be.",
    "bootstrap": "Write the bootstrap of an Envoy, or of a gRPC client.",
    "inject": "Add the proxy to the workloads in a file.",
    "capture": "Lead this network namespace's connections through its proxy.",
    "cni": "Capture the traffic of a node's pods: the agent of the CNI plugin.",
    "demo": "Two minutes with a mesh: no cluster, no root.",
    "completion": "Write the shell completion script.",
}

EXIT_FAILED = 1  # it ran, and the answer is no
EXIT_USAGE = 2  # the command line or a file it names is wrong


class Commands(click.Group):
    """Subcommands by name, so that `xds dump` does not pay for importing `xds serve`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"xds.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="xds")
def cli() -> None:
    """A mesh control plane for stock Envoy: Istio's APIs in, xDS out.

    \b
    Try it:        xds demo
    Run it:        xds serve --files DIR          (or, against a cluster, with KUBECONFIG)
    Ask it:        xds dump --files DIR --as productpage-v1.default routes --why
    """


def main() -> None:
    """The entry point: errors made for people are printed as one, without a traceback."""
    try:
        cli.main(prog_name="xds")
    except XdsError as e:
        click.echo(f"xds: {e}", err=True)
        sys.exit(EXIT_USAGE)
