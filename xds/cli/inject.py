"""`xds inject`."""

import sys
from pathlib import Path
from typing import TextIO

import click


@click.command()
@click.option("-f", "file", type=click.File(), default="-", metavar="FILE", help="Workloads in YAML or JSON; - is the standard input.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Settings, as the chart gives them to the webhook."
)
@click.option(
    "--mesh-config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The MeshConfig; its defaultConfig applies."
)
@click.option("--image", metavar="NAME", help="The proxy's image.")
@click.option("--server", metavar="HOST:PORT", help="The control plane, as pods reach it.")
@click.option("--revision", metavar="NAME", help="The revision that the pods belong to.")
@click.option("--native/--classic", default=None, help="Native sidecars (the default; Kubernetes 1.29 and later), or ordinary containers.")
def command(
    file: TextIO, config: Path | None, mesh_config: Path | None, image: str | None, server: str | None, revision: str | None,
    native: bool | None,
) -> None:  # fmt: skip
    """Add the proxy to the workloads in FILE, as the webhook would, and print the result.

    What has no pods is printed as it is. Workloads that are left alone, and annotations without effect, are named on the standard error.

    \b
    Examples:
      xds inject -f bookinfo.yaml --image registry.example/xds-proxy:1.0 | kubectl apply -f -
      kubectl get deploy web -o yaml | xds inject | kubectl apply -f -
    """
    import msgspec
    import yaml

    from xds.injection import settings as injection
    from xds.injection.manifests import Dumper, inject_documents
    from xds.objects import ProxyConfig

    settings = injection.read(config) if config else injection.Settings()
    changes = {"image": image, "discovery_address": server, "revision": revision, "native": native}
    settings = msgspec.structs.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    defaults = injection.read_mesh_config(mesh_config).default_config if mesh_config else ProxyConfig()
    documents = []
    for document, notes in inject_documents(file.read(), file.name, settings, defaults, native=True):
        documents.append(document)
        for note in notes:
            click.echo(f"xds: {note}", err=True)
    yaml.dump_all(documents, sys.stdout, Dumper=Dumper, sort_keys=False, width=130)
