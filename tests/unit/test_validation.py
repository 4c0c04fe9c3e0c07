"""Messages are held to the rules in their descriptors."""

from collections.abc import Iterator
from datetime import timedelta
from importlib.resources import files
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor
from support.destinations import Destination, at

from xds import pb
from xds.validation import Violation, check


def found(message: Any) -> dict[str, str]:
    """What is wrong, by path."""
    return {violation.path: violation.reason for violation in check(message)}


def of(name: str, **fields: Any) -> Any:
    """A message of Envoy's API by its full name."""
    return pb.message_class(name)(**fields)


HEADER = "envoy.config.core.v3.HeaderValue"
UNMATCHED: Any = {"direct_response": {"status": 200}}


class TestGood:
    @pytest.mark.parametrize("policy", [None, {"outlierDetection": {}, "tls": {"mode": "SIMPLE"}}])
    def test_our_own_clusters(self, policy: dict[str, Any] | None) -> None:
        assert found(Destination(policy=policy).cluster()) == {}

    def test_our_own_assignments(self) -> None:
        assert found(Destination(endpoints=[at("10.0.0.1", place="r/z", workload="a")]).assignment()) == {}

    def test_what_is_required_of_one_of_several_is_so_where_it_is_given(self) -> None:
        assert found(of("envoy.config.route.v3.Route", match={"prefix": "/"}, **UNMATCHED)) == {}

    def test_an_extension_that_we_do_not_know(self) -> None:
        socket: Any = {"name": "x", "typed_config": {"type_url": "type.googleapis.com/example.Unknown", "value": b"\xff"}}
        assert found(pb.Cluster(name="a", transport_socket=socket)) == {}


class TestRules:
    """One of each kind."""

    @pytest.mark.parametrize(
        ("message", "path", "reason"),
        [
            (pb.Cluster(), "$.name", "must have at least 1 characters"),
            (pb.Cluster(name="a", connect_timeout=timedelta()), "$.connect_timeout", "must be greater than 0s"),
            (pb.Cluster(name="a", type=77), "$.type", "must be a value of its enum"),
            (
                pb.Cluster(name="a", outlier_detection={"max_ejection_percent": {"value": 101}}),
                "$.outlier_detection.max_ejection_percent",
                "must be at most 100",
            ),
            (pb.LocalityLbEndpoints(priority=129), "$.priority", "must be at most 128"),
            (pb.LbEndpoint(load_balancing_weight={"value": 0}), "$.load_balancing_weight", "must be at least 1"),
            (pb.Address(), "$", "needs one of the fields of address"),
            (pb.Address(socket_address={"address": "a"}), "$.socket_address", "needs one of the fields of port_specifier"),
            (
                pb.Address(socket_address={"address": "a", "port_value": 65536}),
                "$.socket_address.port_value",
                "must be at most 65535",
            ),
            (pb.VirtualHost(name="a"), "$.domains", "must have at least 1 items"),
            (pb.VirtualHost(name="a", domains=["a\n"]), "$.domains[0]", "must be an HTTP header's value"),
            (pb.VirtualHost(name="a", domains=["a"], routes=[UNMATCHED]), "$.routes[0].match", "is required"),
            (of(HEADER, key=""), "$.key", "must have at least 1 characters"),
            (of(HEADER, key="a\n"), "$.key", "must be an HTTP header's name"),
            (of(HEADER, key="a", value="b\0"), "$.value", "must be an HTTP header's value"),
            (of(HEADER, key="a", value="b" * 16385), "$.value", "must have at most 16384 bytes"),
            (of("envoy.type.v3.Percent", value=100.5), "$.value", "must be at most 100.0"),
            (of("envoy.config.core.v3.DataSource", filename=""), "$.filename", "must have at least 1 characters"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_broken(self, message: Any, path: str, reason: str) -> None:
        assert found(message)[path] == reason

    def test_absent_is_not_zero_where_that_is_something_else(self) -> None:
        assert found(pb.LbEndpoint()) == {}
        assert found(pb.Cluster(name="a", outlier_detection={})) == {}

    def test_lengths_are_of_characters_or_bytes_as_the_rule_says(self) -> None:
        assert found(of(HEADER, key="a", value="é" * 8192)) == {}
        assert set(found(of(HEADER, key="a", value="é" * 8193))) == {"$.value"}


class TestPlaces:
    def test_inside_what_is_packed(self) -> None:
        tls = pb.UpstreamTlsContext(common_tls_context={"validation_context": {"verify_certificate_hash": ["x"]}})
        message = pb.Cluster(name="a", transport_socket={"name": "tls", "typed_config": pb.any(tls)})
        path = "$.transport_socket.typed_config.common_tls_context.validation_context.verify_certificate_hash[0]"
        assert found(message) == {path: "must have at least 64 characters"}

    def test_what_cannot_be_unpacked(self) -> None:
        socket: Any = {"name": "tls", "typed_config": {"type_url": pb.type_url(pb.RawBuffer), "value": b"\xff"}}
        (violation,) = check(pb.Cluster(name="a", transport_socket=socket))
        assert str(violation) == f"$.transport_socket.typed_config: is not a {pb.RawBuffer.DESCRIPTOR.full_name}"

    def test_inside_maps(self) -> None:
        options = pb.HttpProtocolOptions(explicit_http_config={})
        message = pb.Cluster(name="a", typed_extension_protocol_options={"b": pb.any(options)})
        path = "$.typed_extension_protocol_options['b'].explicit_http_config"
        assert found(message) == {path: "needs one of the fields of protocol_config"}

    def test_all_of_them(self) -> None:
        bad = pb.ClusterLoadAssignment(endpoints=[{"priority": 200}, {"priority": 1}, {"priority": 300}])
        assert list(found(bad)) == ["$.cluster_name", "$.endpoints[0].priority", "$.endpoints[2].priority"]

    def test_a_path_to_start_from(self) -> None:
        assert next(check(pb.Cluster(), "$.resource")) == Violation("$.resource.name", "must have at least 1 characters")


def messages(descriptors: Any) -> Iterator[Descriptor]:
    for descriptor in descriptors:
        yield descriptor
        yield from messages(descriptor.nested_types)


def test_every_rule_of_envoys_api_is_known() -> None:
    described = descriptor_pb2.FileDescriptorSet.FromString((files("xds.pb") / "envoy.binpb").read_bytes())
    known = [pb.POOL.FindFileByName(file.name).message_types_by_name.values() for file in described.file]
    checked = [list(check(pb.message_class(d.full_name)())) for types in known for d in messages(types) if not d.GetOptions().map_entry]
    assert len(checked) > 1000
    assert sum(map(bool, checked)) > 100


def test_a_rule_that_is_not_known_is_not_passed_over() -> None:
    rules = pb.message_class("validate.FieldRules")(string={"email": True})
    options: Any = pb.FieldOptions()
    options.Extensions[pb.POOL.FindExtensionByName("validate.rules")].CopyFrom(rules)
    file = descriptor_pb2.FileDescriptorProto(name="a.proto", syntax="proto3")
    field = file.message_type.add(name="Mail").field.add(name="to", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    field.options.ParseFromString(options.SerializeToString())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    mail = message_factory.GetMessageClass(pool.FindMessageTypeByName("Mail"))
    with pytest.raises(ValueError, match=r"Mail\.to has the rule StringRules\.email"):
        list(check(mail()))
