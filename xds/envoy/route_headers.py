"""Changes to headers, as VirtualServices ask for them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

import msgspec

from xds.objects import HeaderOperations, Headers

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_HeaderValueOption_Init as HeaderValueOption


class Mutations(TypedDict, total=False):
    """The fields for headers that Envoy's routes and weighted clusters have in common."""

    request_headers_to_add: "Iterable[HeaderValueOption]"
    request_headers_to_remove: Iterable[str]
    response_headers_to_add: "Iterable[HeaderValueOption]"
    response_headers_to_remove: Iterable[str]


class HeaderChanges(msgspec.Struct, frozen=True):
    """What to add to and remove from requests and responses; `authority` replaces the Host header where it is not empty."""

    request_add: "tuple[HeaderValueOption, ...]" = ()
    request_remove: tuple[str, ...] = ()
    response_add: "tuple[HeaderValueOption, ...]" = ()
    response_remove: tuple[str, ...] = ()
    authority: str = ""

    def fields(self) -> "Mutations":
        """Envoy's fields, those with something in them."""
        fields: Mutations = {}
        if self.request_add:
            fields["request_headers_to_add"] = self.request_add
        if self.request_remove:
            fields["request_headers_to_remove"] = self.request_remove
        if self.response_add:
            fields["response_headers_to_add"] = self.response_add
        if self.response_remove:
            fields["response_headers_to_remove"] = self.response_remove
        return fields

    def then(self, later: "HeaderChanges") -> "HeaderChanges":
        """These changes followed by `later`, whose header values win. Of the authorities the first wins (Istio)."""
        return HeaderChanges(
            self.request_add + later.request_add,
            self.request_remove + later.request_remove,
            self.response_add + later.response_add,
            self.response_remove + later.response_remove,
            self.authority or later.authority,
        )


NO_CHANGES = HeaderChanges()


def header_changes(headers: Headers | None) -> HeaderChanges:
    """Envoy's form of `headers`. `Host` and `:authority` become the authority; other pseudo-headers can't be changed."""
    if headers is None:
        return NO_CHANGES
    request, response = headers.request or HeaderOperations(), headers.response or HeaderOperations()
    return HeaderChanges(
        _add(request),
        _remove(request),
        _add(response),
        _remove(response),
        _authority(request.set) or _authority(request.add),
    )


def _authority(values: dict[str, str]) -> str:
    return next((value for name, value in values.items() if name.lower() in ("host", ":authority")), "")


def _internal(name: str) -> bool:
    return name.startswith(":") or name.lower() == "host"


def _remove(operations: HeaderOperations) -> tuple[str, ...]:
    return tuple(name for name in operations.remove if not _internal(name))


def _add(operations: HeaderOperations) -> "tuple[HeaderValueOption, ...]":
    options: list[HeaderValueOption] = []
    for name, value in sorted(operations.set.items()):
        if not _internal(name):
            options.append(_option(name, value, "OVERWRITE_IF_EXISTS_OR_ADD"))
    for name, value in sorted(operations.add.items()):
        if not _internal(name):
            options.append(_option(name, value, "APPEND_IF_EXISTS_OR_ADD"))
    return tuple(options)


def _option(name: str, value: str, action: str) -> "HeaderValueOption":
    return {
        "header": {"key": name, "value": value},
        "append_action": action,  # type: ignore[typeddict-item]
        "keep_empty_value": not value,
    }
