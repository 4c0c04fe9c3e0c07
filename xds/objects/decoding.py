"""From JSON and YAML to objects that can be trusted: decoded, validated, and their problems named by field.

The API server's JSON takes the fast path: msgspec makes the struct straight from the bytes. Istio's messages refuse unknown
fields, so that path finds them too; only what it refuses is decoded again without types, for a full report.
"""

import dataclasses
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from xds.errors import Problem
from xds.objects.documents import Document, documents
from xds.objects.kinds import KINDS, Kind, Object
from xds.objects.kubernetes import EndpointSlice, Namespace, Node, Pod, Service
from xds.objects.meta import Ref, decode_hook
from xds.objects.schema import fit, stray_fields
from xds.objects.validation import validate

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


_TRUSTED = (Service, EndpointSlice, Pod, Node, Namespace)


class Decoded(msgspec.Struct, frozen=True):
    """What was made of one document. `object` is None where one of the problems is an error; `ref` where the object has no name.

    `where` is `file:line` of the document, empty for what came from the API server.
    """

    ref: Ref | None = None
    object: Object | None = None
    problems: tuple[Problem, ...] = ()
    where: str = ""


def from_json(raw: bytes | msgspec.Raw, kind: Kind) -> Decoded:
    """An object of `kind` as the API server has sent it. Its own kinds the server has validated itself."""
    try:
        object_: Object = _decoder(kind).decode(raw)
    except msgspec.ValidationError:
        return _from_value(msgspec.json.decode(raw), kind)
    except msgspec.DecodeError as e:
        return Decoded(problems=(Problem("$", f"not JSON: {e}"),))
    return _judged(object_, [] if isinstance(object_, _TRUSTED) else validate(object_))


def from_yaml(text: str, path: str, line: int = 0) -> list[Decoded]:
    """The objects in a file of YAML or JSON documents, or in its part behind `line` lines. Problems say at which line they are."""
    return [_from_document(document) for document in documents(text, path, line)]


def _from_document(document: Document) -> Decoded:
    value = document.value
    if document.node is None:
        return Decoded(problems=document.problems, where=document.where())
    if not isinstance(value, dict):
        decoded = Decoded(problems=(Problem("$", "not an object: apiVersion, kind and metadata are needed"),))
    else:
        kind, problem = _kind(value)
        decoded = _from_value(value, kind) if kind is not None else Decoded(problems=(problem,) if problem is not None else ())
    located = (dataclasses.replace(problem, where=document.where(problem.field)) for problem in decoded.problems)
    return msgspec.structs.replace(decoded, problems=(*document.problems, *located), where=document.where())


def _kind(value: dict[str, Any]) -> "tuple[Kind, None] | tuple[None, Problem]":
    """The kind of a document, or the problem with it: a warning for one that we have no use for."""
    api_version, name = value.get("apiVersion"), value.get("kind")
    if not isinstance(api_version, str) or not isinstance(name, str):
        missing = "kind" if isinstance(api_version, str) else "apiVersion"
        return None, Problem(f"$.{missing}", "is required: a string")
    kind = KINDS.get(name)
    group = api_version.rpartition("/")[0]
    if kind is None or kind.group != group:
        return None, Problem("$.kind", f"{name} of {api_version} is not used here: ignored", warning=True)
    if api_version not in kind.api_versions:
        return None, Problem("$.apiVersion", f"must be one of {', '.join(kind.api_versions)} for {name}; it is `{api_version}`")
    return kind, None


def _from_value(value: dict[str, Any], kind: Kind) -> Decoded:
    """The object that this JSON value describes, with a full report."""
    problems = [*_misnamed(value, kind), *stray_fields(kind.struct, value)]
    try:
        object_ = msgspec.convert(value, kind.struct, dec_hook=decode_hook)
    except msgspec.ValidationError:
        fitted, misfits = fit(kind.struct, value)
        problems += misfits
        if not all(problem.warning for problem in problems):
            return Decoded(_ref(value, kind), None, tuple(problems))
        object_ = msgspec.convert(fitted, kind.struct, dec_hook=decode_hook)
    return _judged(object_, problems + validate(object_))


def _judged(object_: Object, problems: list[Problem]) -> Decoded:
    """`object_`, if none of its problems is an error, in the namespace that it is in."""
    ref = object_.ref
    if not all(problem.warning for problem in problems):
        return Decoded(ref, None, tuple(problems))
    if object_.meta.namespace != ref.namespace:
        meta = msgspec.structs.replace(object_.meta, namespace=ref.namespace)
        object_ = msgspec.structs.replace(object_, meta=meta)
    return Decoded(ref, object_, tuple(problems))


def _ref(value: dict[str, Any], kind: Kind) -> Ref | None:
    """What names an object that cannot be decoded, as far as that can be told."""
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str):
        return None
    namespace = metadata.get("namespace")
    if not kind.namespaced:
        namespace = ""
    return Ref(kind.kind, namespace if isinstance(namespace, str) else "default", name)


def _misnamed(value: dict[str, Any], kind: Kind) -> Iterable[Problem]:
    """What is wrong with the name and the namespace, which Envoy's resources are named after."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if isinstance(name, str) and not _NAME.fullmatch(name):
        yield Problem("$.metadata.name", "must be lower case letters, digits, `-` and `.`, beginning and ending with one of the first two")
    if isinstance(namespace, str) and kind.namespaced and not _NAMESPACE.fullmatch(namespace or "default"):
        yield Problem("$.metadata.namespace", "must be up to 63 lower case letters, digits and `-`, beginning and ending with no `-`")


@cache
def _decoder(kind: Kind) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind.struct, dec_hook=decode_hook)
