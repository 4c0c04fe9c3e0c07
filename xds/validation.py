"""Checks messages against the rules in their descriptors, to which Envoy holds every resource it is sent.

Envoy's API carries protoc-gen-validate's options: a field is required, a string has a least length, an enum only its own values. A
resource that breaks one is refused, and in some responses all others with it. The rules of a message type are compiled once, when
its first message is checked. What Envoy checks in its own code, such as references between resources, is not found here.
"""

import operator
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from xds import pb

Check = tuple[Callable[[Any], bool], str]  # whether a value is good, and what to say of one that is not
Checks = tuple[Check, ...]

RULES = pb.POOL.FindExtensionByName("validate.rules")
REQUIRED = pb.POOL.FindExtensionByName("validate.required")

NUMBERS = frozenset(
    f"{prefix}{kind}{bits}"
    for prefix, kind in (("", "int"), ("u", "int"), ("s", "int"), ("", "fixed"), ("s", "fixed"))
    for bits in (32, 64)
) | {"float", "double"}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le, "const": operator.eq,
}  # fmt: skip
SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "const": "="}

# protoc-gen-validate: `well_known_regex`, and what stays of both where `strict` is off.
HTTP_HEADER = {
    "HTTP_HEADER_NAME": re.compile(r":?[0-9a-zA-Z!#$%&'*+\-.^_|~`]+"),
    "HTTP_HEADER_VALUE": re.compile("[^\x00-\x08\n-\x1f\x7f]*"),
}
LENIENT_HTTP_HEADER = re.compile("[^\x00\n\r]*")


class Violation(msgspec.Struct, frozen=True):
    """One broken rule: `$.load_assignment.endpoints[0].priority`, `must be <= 128`. Field names are the proto's."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def check(message: Message, path: str = "$") -> Iterator[Violation]:
    """The rules that `message` breaks, and the messages inside it, packed ones of known types included. None: Envoy decodes it."""
    rules = _rules(message.DESCRIPTOR)
    for oneof in rules.oneofs:
        if message.WhichOneof(oneof) is None:
            yield Violation(path, f"one of the fields of `{oneof}` is required")
    for name in rules.required:
        if not message.HasField(name):
            yield Violation(f"{path}.{name}", "is required")
    for name, checks in rules.always:
        yield from _broken(checks, getattr(message, name), f"{path}.{name}")
    for field, value in message.ListFields():
        rule = rules.fields.get(field.number)
        if rule is not None:
            yield from rule.check(value, f"{path}.{field.name}")
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        yield from _unpacked(message, path)


def _broken(checks: Checks, value: Any, path: str) -> Iterator[Violation]:
    for good, reason in checks:
        if not good(value):
            yield Violation(path, reason)


def _unpacked(packed: Any, path: str) -> Iterator[Violation]:
    name = packed.type_url.rpartition("/")[2]
    try:
        found = pb.message_class(name).FromString(packed.value)
    except KeyError:
        return  # an extension that we do not know may be one that the proxy does
    except DecodeError:
        yield Violation(path, f"is not a {name}")
    else:
        yield from check(found, path)


class FieldRules(msgspec.Struct, frozen=True):
    """The rules of a field that has a value. `entries` are of map keys; the others are of values, items or map values."""

    repeated: bool = False
    mapped: bool = False
    wrapped: bool = False  # the value is a wrapper's, such as UInt32Value's
    nested: bool = False  # the value is a message with rules of its own
    all_of_them: Checks = ()  # of a list or map
    keys: Checks = ()
    values: Checks = ()

    def check(self, value: Any, path: str) -> Iterator[Violation]:
        """The rules that a field's value breaks."""
        yield from _broken(self.all_of_them, value, path)
        if self.mapped:
            for key, item in value.items():
                place = f"{path}[{key!r}]"
                yield from _broken(self.keys, key, place)
                yield from self._one(item, place)
        elif self.repeated:
            for index, item in enumerate(value):
                yield from self._one(item, f"{path}[{index}]")
        else:
            yield from self._one(value, path)

    def _one(self, value: Any, path: str) -> Iterator[Violation]:
        yield from _broken(self.values, value.value if self.wrapped else value, path)
        if self.nested:
            yield from check(value, path)


class MessageRules(msgspec.Struct, frozen=True):
    """The rules of a message type."""

    oneofs: tuple[str, ...]  # one field of each is required
    required: tuple[str, ...]  # fields that must be there
    always: tuple[tuple[str, Checks], ...]  # of fields whose absence is their zero
    fields: Mapping[int, FieldRules]  # of fields that are there, by number


@cache
def _rules(descriptor: Descriptor) -> MessageRules:
    required, always, fields = [], [], {}
    for field in descriptor.fields:
        options = pb.FieldOptions.FromString(field.GetOptions().SerializeToString())
        rules = options.Extensions[RULES] if options.HasExtension(RULES) else None
        kind = None if rules is None else rules.WhichOneof("type")
        own = None if rules is None or kind is None else getattr(rules, kind)
        if rules is not None and (rules.message.required or getattr(own, "required", False)):
            required.append(field.name)
        compiled = _field(field, rules, kind, own)
        if field.is_repeated or not field.has_presence:
            checks = compiled.all_of_them if field.is_repeated else compiled.values
            if checks:
                always.append((field.name, checks))
            compiled = msgspec.structs.replace(compiled, **{"all_of_them" if field.is_repeated else "values": ()})
    ...
