"""What a client holds from an earlier stream, and what it lacks: `initial_resource_versions`.

After a restart, or a broken connection, every proxy tells the name and version of everything it holds, and nearly always these are
just what it is to hold. So they are not decoded: a map field is on the wire a list of entries, and the set of those is compared
with the set that is expected, which is made once for all streams that ask for the same. Only entries of one that are not in the
other are looked at.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, message_factory

from xds import pb
from xds.discovery import wire
from xds.discovery.protocol.knowledge import ABSENT, Groups, Known, everything, offered
from xds.discovery.protocol.subscription import Names, Subscription

_VERSIONS = "initial_resource_versions"
_Entry: Any = pb.DeltaDiscoveryRequest.DESCRIPTOR.fields_by_name[_VERSIONS].message_type


def _request_class() -> Any:
    """DeltaDiscoveryRequest, but that `initial_resource_versions` are bytes, one for each entry. The wire format is the same."""
    original = pb.DeltaDiscoveryRequest.DESCRIPTOR
    message = descriptor_pb2.DescriptorProto()
    original.CopyToProto(message)
    message.name = "DeltaRequest"
    message.ClearField("options")
    for field in message.field:
        if field.name == _VERSIONS:
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
            field.ClearField("type_name")
    kept = [nested for nested in message.nested_type if nested.name != _Entry.name]
    del message.nested_type[:]
    message.nested_type.extend(kept)
    file = descriptor_pb2.FileDescriptorProto(name="xds/discovery/delta_request.proto", package="xds.discovery", syntax="proto3")
    file.dependency.extend(dependency.name for dependency in original.file.dependencies)
    file.dependency.append(original.file.name)
    file.message_type.append(message)
    pb.POOL.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pb.POOL.FindMessageTypeByName("xds.discovery.DeltaRequest"))


DeltaRequest: Any = _request_class()
_EntryMessage: Any = message_factory.GetMessageClass(_Entry)


def holdings(request: Any) -> frozenset[bytes]:
    """The entries of `request`'s `initial_resource_versions`; of a decoded request, as clients write them."""
    versions = request.initial_resource_versions
    if isinstance(request, DeltaRequest):
        return frozenset(versions)
    return frozenset(wire.entry(name, version) for name, version in versions.items())


class Expected(NamedTuple):
    """What a client that is up to date holds of what it subscribes to."""

    entries: frozenset[bytes]
    missing: Names  # names that it asks for and nobody offers


def expected(known: Known, subscription: Subscription) -> Expected:
    """What a client holds that is at `known`, which is the present. Kept there, for the next one that asks for the same."""
    found = known.expected.get(subscription)
    if found is None:
        resources = list(everything(known.groups, subscription))
        names = {resource.name for resource in resources}
        entries = frozenset([resource.entry for resource in resources])
        found = known.expected[subscription] = Expected(entries, subscription.names - names)
    return found


def recalled(groups: Groups, subscription: Subscription, held: frozenset[bytes]) -> tuple[Known, Names]:
    """What a client knows that holds these entries, and the names it asks for and holds nothing of (R12, R13)."""
    present = Known.present(groups)
    entries, missing = expected(present, subscription)
    if held == entries:
        return present, missing
    others = _decoded(held - entries)
    deviations = {name: ABSENT for name in _decoded(entries - held) if name not in others}
    lacking = (missing - others.keys()) | deviations.keys()
    for name, version in others.items():
        resource = offered(groups, name) if subscription.covers(name) else None
        if subscription.covers(name) and (resource is None or resource.version != version):
            deviations[name] = version
    return Known.present(groups, deviations), frozenset(lacking & subscription.names)


def _decoded(entries: frozenset[bytes]) -> Mapping[str, str]:
    return {message.key: message.value for message in map(_EntryMessage.FromString, entries)}
