"""`xds bootstrap`."""

import json

import click

from xds.cli.addresses import HOST_PORT


@click.command()
@click.argument("workload", metavar="POD.NAMESPACE")
@click.option("--address", default="127.0.0.1", show_default=True, metavar="IP", help="The workload's own IP address.")
@click.option("--server", default="127.0.0.1:15010", type=HOST_PORT, show_default=True, help="The control plane.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the workload. May be given more than once."
)
@click.option("--service-account", default="default", show_default=True)
@click.option(
    "--interception",
    type=click.Choice(["REDIRECT", "TPROXY", "NONE"]),
    default="REDIRECT",
    show_default=True,
    help="How traffic gets into the proxy.",
)
@click.option("--admin-port", default=15000, show_default=True)
@click.option("--sotw", is_flag=True, help="Ask for the state of the world instead of differences.")
@click.option(
    "--grpc", "for_grpc", is_flag=True, help="Write the bootstrap of a proxyless gRPC client instead (GRPC_XDS_BOOTSTRAP)."
)
@click.option("-o", "output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def command(
    workload: str, address: str, server: str, labels: tuple[str, ...], service_account: str, interception: str, admin_port: int,
    sotw: bool, for_grpc: bool, output: str,
) -> None:  # fmt: skip
    """Write the bootstrap with which a stock Envoy joins the mesh as POD.NAMESPACE.

    \b
    Examples:
      xds bootstrap productpage-v1.default --address 10.0.0.7 > envoy.yaml && envoy -c envoy.yaml
      xds bootstrap client.default --grpc > grpc.json && GRPC_XDS_BOOTSTRAP=grpc.json ./client
    """
    from xds.envoy.bootstrap import Node, Ports, bootstrap, bootstrap_json, bootstrap_yaml, grpc_bootstrap
    from xds.mesh.model import Mode

    name, _, namespace = workload.rpartition(".")
    if not name:
        raise click.BadParameter(f"{workload!r} names no namespace: write pod.namespace", param_hint="POD.NAMESPACE")
    node = Node(
        name=name,
        namespace=namespace,
        addresses=(address,),
        labels=_labels(labels),
        service_account=service_account,
        mode=Mode[interception],
    )
    if for_grpc:
        click.echo(json.dumps(grpc_bootstrap(node.id, namespace, server), indent=2))
        return
    message = bootstrap(node, server, delta=not sotw, ports=Ports(admin=admin_port))
    click.echo(bootstrap_json(message) if output == "json" else bootstrap_yaml(message))


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--label")
        found[key] = value
    return found
