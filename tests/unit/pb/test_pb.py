"""Envoy's messages from a pool of their own."""

import ast
import subprocess
import sys
from datetime import timedelta
from importlib.resources import files
from typing import Any

import pytest
from google.protobuf import descriptor_pool, json_format

from xds import pb


def test_every_name_is_a_message() -> None:
    assert {getattr(pb, short).DESCRIPTOR.full_name for short in pb.NAMES} == set(pb.NAMES.values())


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Clutser"):
        _ = pb.Clutser  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        pb.message_class("envoy.config.cluster.v3.Clutser")


def test_the_stub_has_every_name() -> None:
    tree = ast.parse((files("xds.pb") / "__init__.pyi").read_text())
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
    assert set(pb.NAMES) <= assigned


def test_nothing_is_put_into_the_pool_that_others_share() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(pb.NAMES["Cluster"])


def test_it_is_not_by_way_of_packages_of_the_same_name() -> None:
    program = "import sys, xds.pb; sys.exit(bool({'envoy', 'envoy_data_plane', 'validate', 'udpa'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestAny:
    def test_type_and_content(self) -> None:
        packed = pb.any(pb.Router(suppress_envoy_headers=True))
        assert packed["type_url"] == pb.type_url(pb.Router)
        assert packed["value"] == pb.Router(suppress_envoy_headers=True).SerializeToString()

    def test_equal_messages_are_equal_bytes(self) -> None:
        names = [f"key-{i}" for i in range(50)]
        one, other = (pb.Cluster(metadata={"filter_metadata": {n: {} for n in order}}) for order in (names, names[::-1]))
        assert pb.any(one) == pb.any(other)


class TestPlain:
    def test_any_fields_are_expanded(self) -> None:
        message = pb.Listener(filter_chains=[{"filters": [{"name": "a", "typed_config": pb.any(pb.TcpProxy(cluster="c"))}]}])
        (found,) = pb.plain(message)["filter_chains"][0]["filters"]
        assert found == {"name": "a", "typed_config": {"@type": pb.type_url(pb.TcpProxy), "cluster": "c"}}

    def test_equal_messages_look_the_same(self) -> None:
        def looks(names: list[str]) -> str:
            metadata = {"metadata": {"filter_metadata": {n: dict.fromkeys(names, 1) for n in names}}}
            packed = pb.any(json_format.ParseDict(metadata, pb.Cluster(), descriptor_pool=pb.POOL))
            return str(pb.plain(pb.Cluster(typed_extension_protocol_options=dict.fromkeys(names, packed))))

        names = [f"key-{i}" for i in range(20)]
        assert looks(names) == looks(names[::-1])

    def test_fields_are_in_their_order_and_types_have_their_own_forms(self) -> None:
        outliers: Any = {"consecutive_5xx": {"value": 0}}
        found = pb.plain(pb.Cluster(name="a", type="EDS", connect_timeout=timedelta(seconds=1.5), outlier_detection=outliers))
        assert list(found) == ["name", "type", "connect_timeout", "outlier_detection"]
        assert (found["type"], found["connect_timeout"], found["outlier_detection"]) == ("EDS", "1.500s", {"consecutive_5xx": 0})
