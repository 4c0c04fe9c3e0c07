"""Checks messages against the rules in their descriptors, to which Envoy holds every resource it is sent.

Envoy's API carries protoc-gen-validate's options: a field is required, a string has a least length, an enum just its own values. A
resource that breaks one is refused, and in some responses all others with it. The rules of a message type are compiled when its
first message is checked. What Envoy checks in code of its own, such as references between resources, is not found here.
"""

import operator
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from xds import pb

Predicate = Callable[[Any], bool]
Check = tuple[Predicate, str]  # whether a value is good, and what to say of one that is not

RULES = pb.POOL.FindExtensionByName("validate.rules")
REQUIRED = pb.POOL.FindExtensionByName("validate.required")
ANY = "google.protobuf.Any"

COMPARISONS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "const": (operator.eq, "must be"),
    "gt": (operator.gt, "must be greater than"),
    "gte": (operator.ge, "must be at least"),
    "lt": (operator.lt, "must be less than"),
    "lte": (operator.le, "must be at most"),
}
LENGTHS: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any], int], str]] = {
    "min_len": (operator.ge, len, "must have at least {} characters"),
    "max_len": (operator.le, len, "must have at most {} characters"),
    "min_bytes": (operator.ge, lambda text: len(text.encode()), "must have at least {} bytes"),
    "max_bytes": (operator.le, lambda text: len(text.encode()), "must have at most {} bytes"),
    "min_items": (operator.ge, len, "must have at least {} items"),
    "max_items": (operator.le, len, "must have at most {} items"),
    "min_pairs": (operator.ge, len, "must have at least {} entries"),
}
# protoc-gen-validate, `well_known_regex`: what HTTP allows, and what remains of it where `strict` is off.
STRICT_HEADER = {
    "HTTP_HEADER_NAME": (re.compile(r":?[0-9a-zA-Z!#$%&'*+\-.^_|~`]+"), "must be an HTTP header's name"),
    "HTTP_HEADER_VALUE": (re.compile("[^\x00-\x08\n-\x1f\x7f]*"), "must be an HTTP header's value"),
}
LENIENT_HEADER = re.compile("[^\x00\n\r]*")
# Options that say how others apply; each is read where it does.
MODIFIERS = frozenset({"required", "skip", "strict", "ignore_empty", "items", "keys", "values"})


class Violation(msgspec.Struct, frozen=True):
    """One broken rule: `$.load_assignment.endpoints[0].priority`, `must be at most 128`. Fields have their names in the proto."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def check(message: Message, path: str = "$") -> Iterator[Violation]:
    """The rules that `message` breaks, and the messages in it, those packed in an Any included where we know their type."""
    rules = _rules(message.DESCRIPTOR)
    for oneof in rules.oneofs:
        if message.WhichOneof(oneof) is None:
            yield Violation(path, f"needs one of the fields of {oneof}")
    for field in rules.fields:
        if not field.presence or message.HasField(field.name):
            yield from field.violations(getattr(message, field.name), f"{path}.{field.name}")
        elif field.required:
            yield Violation(f"{path}.{field.name}", "is required")
    if rules.is_any:
        yield from _unpacked(message, path)


def _unpacked(packed: Any, path: str) -> Iterator[Violation]:
    name = packed.type_url.rpartition("/")[2]
    try:
        message = pb.message_class(name).FromString(packed.value)
    except KeyError:
        return  # a type that we do not know may be one that the proxy does
    except DecodeError:
        yield Violation(path, f"is not a {name}")
    else:
        yield from check(message, path)


class Rules(msgspec.Struct, frozen=True):
    """The rules of a message type. `oneofs` are those of which one field is required."""

    oneofs: tuple[str, ...]
    fields: tuple["FieldRules", ...]
    is_any: bool


class FieldRules(msgspec.Struct, frozen=True):
    """The rules of a field: of the `whole` list or map, of the `keys` of a map, of each value."""

    name: str
    presence: bool  # absent is something else than zero
    required: bool
    repeated: bool
    mapped: bool
    wrapped: bool  # its values are wrappers, such as UInt32Value, and the rules are of what they hold
    nested: bool  # its values are messages, with rules of their own
    whole: tuple[Check, ...]
    keys: tuple[Check, ...]
    values: tuple[Check, ...]

    def violations(self, value: Any, path: str) -> Iterator[Violation]:
        """The rules that the field's value breaks."""
        yield from _broken(self.whole, value, path)
        if self.mapped:
            for key, item in sorted(value.items()):
                yield from _broken(self.keys, key, f"{path}[{key!r}]")
                yield from self._of_one(item, f"{path}[{key!r}]")
        elif self.repeated:
            for index, item in enumerate(value):
                yield from self._of_one(item, f"{path}[{index}]")
        else:
            yield from self._of_one(value, path)

    def _of_one(self, value: Any, path: str) -> Iterator[Violation]:
        yield from _broken(self.values, value.value if self.wrapped else value, path)
        if self.nested:
            yield from check(value, path)


def _broken(checks: tuple[Check, ...], value: Any, path: str) -> Iterator[Violation]:
    for good, reason in checks:
        if not good(value):
            yield Violation(path, reason)


@cache
def _rules(descriptor: Descriptor) -> Rules:
    oneofs = (oneof.name for oneof in descriptor.oneofs if _option(pb.OneofOptions, oneof, REQUIRED))
    fields = (_field(field) for field in descriptor.fields)
    matter = (f for f in fields if f.required or f.nested or f.whole or f.keys or f.values)
    return Rules(tuple(oneofs), tuple(matter), descriptor.full_name == ANY)


@cache
def _has_rules(descriptor: Descriptor) -> bool:
    """Whether anything in a message of this type may break a rule: a Struct, for one, can't."""
    seen, todo = {descriptor}, [descriptor]
    while todo:
        message = todo.pop()
        if message.full_name == ANY or any(_option(pb.OneofOptions, oneof, REQUIRED) for oneof in message.oneofs):
            return True
        for field in message.fields:
            if _option(pb.FieldOptions, field, RULES) is not None:
                return True
            if field.message_type is not None and field.message_type not in seen:
                seen.add(field.message_type)
                todo.append(field.message_type)
    return False


def _option(options_class: Any, of: Any, extension: Any) -> Any:
    """The value of an extension in the options of a field or oneof, None where it has none. Their classes are in our own pool."""
    options = options_class.FromString(of.GetOptions().SerializeToString())
    return options.Extensions[extension] if options.HasExtension(extension) else None


def _field(field: FieldDescriptor) -> FieldRules:
    rules = _option(pb.FieldOptions, field, RULES)
    own = None if rules is None else _typed(rules)
    message = None if rules is None else rules.message
    is_map = field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry
    key, value = field.message_type.fields if is_map and field.message_type is not None else (field, field)
    kind = value.message_type
    wrapped = kind is not None and kind.file.name == "google/protobuf/wrappers.proto"
    whole: tuple[Check, ...] = ()
    keys: tuple[Check, ...] = ()
    if is_map:
        whole, keys, values = _checks(own, field), _checks(_part(own, "keys"), key), _checks(_part(own, "values"), value)
    elif field.is_repeated:
        whole, values = _checks(own, field), _checks(_part(own, "items"), field)
    else:
        values = _checks(own, field)
    return FieldRules(
        name=field.name,
        presence=field.has_presence and not field.is_repeated,
        # One of several that may be given is required where it is the one that is.
        required=field.containing_oneof is None and ((message is not None and message.required) or getattr(own, "required", False)),
        repeated=field.is_repeated,
        mapped=is_map,
        wrapped=wrapped,
        nested=kind is not None and not wrapped and (message is None or not message.skip) and _has_rules(kind),
        whole=whole,
        keys=keys,
        values=values,
    )


def _typed(rules: Any) -> Any:
    """The rules of a field's type; those of any message where there are none."""
    return getattr(rules, rules.WhichOneof("type") or "message")


def _part(rules: Any, part: str) -> Any:
    """The rules of a list's items, or of a map's keys or values; None where they have none."""
    return _typed(getattr(rules, part)) if rules is not None and hasattr(rules, part) else None


def _checks(rules: Any, field: FieldDescriptor) -> tuple[Check, ...]:
    """The checks of one type's rules. ValueError for a rule that we do not know: it must not seem to be kept."""
    if rules is None:
        return ()
    given = [(option.name, wanted) for option, wanted in rules.ListFields() if option.name not in MODIFIERS and wanted is not False]
    checks = [_check(name, wanted, rules, field) for name, wanted in given]
    if getattr(rules, "ignore_empty", False):
        return tuple((lambda value, good=good: not value or good(value), reason) for good, reason in checks)
    return tuple(checks)


def _check(rule: str, wanted: Any, rules: Any, field: FieldDescriptor) -> Check:
    if rule in COMPARISONS:
        compare, words = COMPARISONS[rule]
        if rules.DESCRIPTOR.name == "DurationRules":
            limit = _nanoseconds(wanted)
            return lambda value: compare(_nanoseconds(value), limit), f"{words} {limit / 1e9:g}s"
        return lambda value: compare(value, wanted), f"{words} {wanted}"
    if rule in LENGTHS:
        compare_length, length, words = LENGTHS[rule]
        return lambda value: compare_length(length(value), wanted), words.format(wanted)
    match rule:
        case "in" | "not_in":
            known, text = frozenset(wanted), ", ".join(map(str, wanted))
            if rule == "in":
                return lambda value: value in known, f"must be one of {text}"
            return lambda value: value not in known, f"must not be {text}"
        case "pattern":
            pattern = re.compile(wanted)
            return lambda value: pattern.search(value) is not None, f"must match {wanted}"
        case "prefix":
            return lambda value: value.startswith(wanted), f"must start with {wanted}"
        case "suffix":
            return lambda value: value.endswith(wanted), f"must end with {wanted}"
        case "well_known_regex":
            header, reason = STRICT_HEADER[rules.DESCRIPTOR.fields_by_name[rule].enum_type.values_by_number[wanted].name]
            header = header if rules.strict else LENIENT_HEADER
            return lambda value: header.fullmatch(value) is not None, reason
        case "defined_only" if field.enum_type is not None:
            numbers = frozenset(v.number for v in field.enum_type.values)
            return lambda value: value in numbers, "must be a value of its enum"
        case "unique":
            return lambda value: len(set(value)) == len(value), "must not repeat a value"
    raise ValueError(f"{field.full_name} has the rule {rules.DESCRIPTOR.name}.{rule}, which is not known here")


def _nanoseconds(duration: Any) -> int:
    nanoseconds: int = duration.seconds * 1_000_000_000 + duration.nanos
    return nanoseconds
