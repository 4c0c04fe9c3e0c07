"""`xds capture`."""

import subprocess
import sys

import click

from xds.cli import EXIT_FAILED


@click.command()
@click.option(
    "--mode", type=click.Choice(["REDIRECT", "TPROXY"]), default="REDIRECT", show_default=True, help="How inbound calls are taken."
)
@click.option("--inbound-ports", default="*", show_default=True, metavar="PORTS", help="Capture calls to these ports; '' captures none.")
@click.option("--exclude-inbound-ports", default="", metavar="PORTS", help="Leave calls to these ports alone.")
@click.option("--outbound-ports", default="", metavar="PORTS", help="Capture calls to these ports whatever their address.")
@click.option("--exclude-outbound-ports", default="", metavar="PORTS", help="Leave calls to these ports alone.")
@click.option(
    "--outbound-ranges", default="*", show_default=True, metavar="CIDRS", help="Capture calls to these addresses; '' captures none."
)
@click.option("--exclude-outbound-ranges", default="", metavar="CIDRS", help="Leave calls to these addresses alone.")
@click.option(
    "--exclude-interfaces", default="", metavar="NAMES", help="Leave what comes or goes by these interfaces alone; eth+ is all eth*."
)
@click.option(
    "--uid",
    "users",
    multiple=True,
    type=click.IntRange(0),
    default=(1337,),
    show_default=True,
    help="A user whose calls are left alone: the proxy's.",
)
@click.option(
    "--gid", "groups", multiple=True, type=click.IntRange(0), default=(1337,), show_default=True, help="A group whose calls are left alone."
)
@click.option("--dns", is_flag=True, help="Capture DNS queries too, for a listener of the proxy on port 15053.")
@click.option("--dry-run", is_flag=True, help="Print the program that would be run.")
@click.option("--clean-up", is_flag=True, help="Take everything away that an earlier run has installed.")
def command(
    mode: str, inbound_ports: str, exclude_inbound_ports: str, outbound_ports: str, exclude_outbound_ports: str, outbound_ranges: str,
    exclude_outbound_ranges: str, exclude_interfaces: str, users: tuple[int, ...], groups: tuple[int, ...], dns: bool, dry_run: bool,
    clean_up: bool,
) -> None:  # fmt: skip
    """Lead this network namespace's TCP connections through the proxy in it, as a pod's init container does.

    What was installed before is replaced in one step. Needs nft, ip, and root or the capability NET_ADMIN.

    \b
    Examples:
      xds capture --dry-run                                   see the rules
      xds capture --exclude-outbound-ports 3306 --uid 1337    on a virtual machine, with Envoy as user 1337
      xds capture --clean-up
    """
    from xds.injection import capture
    from xds.mesh.model import Mode

    wanted = capture.Capture(
        mode=Mode[mode],
        inbound_ports=capture.parse_ports(inbound_ports, "--inbound-ports"),
        excluded_inbound_ports=capture.parse_some_ports(exclude_inbound_ports, "--exclude-inbound-ports"),
        outbound_ports=capture.parse_some_ports(outbound_ports, "--outbound-ports"),
        excluded_outbound_ports=capture.parse_some_ports(exclude_outbound_ports, "--exclude-outbound-ports"),
        outbound_ranges=capture.parse_ranges(outbound_ranges, "--outbound-ranges"),
        excluded_outbound_ranges=capture.parse_some_ranges(exclude_outbound_ranges, "--exclude-outbound-ranges"),
        excluded_interfaces=capture.parse_interfaces(exclude_interfaces, "--exclude-interfaces"),
        users=users,
        groups=groups,
        dns=dns,
    )
    program = capture.clean_up_script() if clean_up else capture.script(wanted)
    if dry_run:
        click.echo(program, nl=False)
    elif subprocess.run(["/bin/sh"], input=program, text=True, check=False).returncode:
        click.echo("xds: nothing was changed: nft and ip have said why; they need root, or the capability NET_ADMIN", err=True)
        sys.exit(EXIT_FAILED)
