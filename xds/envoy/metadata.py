"""Metadata under the key `istio`: what EnvoyFilters, telemetry and `istioctl` read from clusters and endpoints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xds.objects.meta import Ref

if TYPE_CHECKING:
    from xds.pb import envoy_config_core_v3_Metadata_Init as Metadata
    from xds.pb import google_protobuf_Struct_Init as Struct
    from xds.pb import google_protobuf_Value_Init as StructValue

NETWORKING_API = "/apis/networking.istio.io/v1/namespaces"


def istio(values: "Mapping[str, object]") -> "Metadata":
    """`values` as the metadata that Istio attaches: strings, numbers, lists and mappings."""
    return {"filter_metadata": {"istio": struct(values)}}


def struct(values: Mapping[str, object]) -> "Struct":
    """`values` spelled out as a Struct: protobuf takes a plain mapping for one only where it is not a map's value."""
    return {"fields": {key: _value(value) for key, value in values.items()}}


def _value(value: object) -> "StructValue":
    if isinstance(value, str):
        return {"string_value": value}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int | float):
        return {"number_value": value}
    if isinstance(value, Mapping):
        return {"struct_value": value}
    if isinstance(value, list | tuple):
        return {"list_value": {"values": [_value(item) for item in value]}}
    raise TypeError(f"not a value of a Struct: {value!r}")


def config_path(ref: Ref) -> str:
    """Where the API server has an object: `/apis/networking.istio.io/v1/namespaces/default/destination-rule/reviews`.

    The kind in it is Istio's spelling of it, not the API's plural.
    """
    kind = "".join(f"-{c.lower()}" if c.isupper() else c for c in ref.kind).lstrip("-")
    return f"{NETWORKING_API}/{ref.namespace}/{kind}/{ref.name}"
