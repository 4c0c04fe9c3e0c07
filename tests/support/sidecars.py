"""What tests of Istio's Sidecar have in common."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.traffic import Mesh


def sidecar(mesh: Mesh, spec: str, name: str = "default", namespace: str | None = None) -> None:
    """Write a Sidecar; `spec` is YAML whose first level is not indented."""
    meta = f"{{name: {name}, namespace: {namespace or mesh.namespace}}}"
    indented = "".join(f"  {line}\n" for line in spec.strip().splitlines())
    mesh.apply(f"apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {meta}\nspec:\n{indented}")


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory in which every user makes files."""
    directory = Path(tempfile.mkdtemp(prefix="sockets"))
    directory.chmod(0o777)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
