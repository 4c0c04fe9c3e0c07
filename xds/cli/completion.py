"""`xds completion`."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Write the completion script for SHELL.

    \b
    Examples:
      source <(xds completion bash)
      xds completion fish > ~/.config/fish/completions/xds.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "xds", "_XDS_COMPLETE").source())
