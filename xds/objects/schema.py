"""Finds everything about a JSON value that does not fit a struct, where msgspec would stop at the first.

Only values that msgspec has refused come here, so the good ones pay nothing for it.
"""

import difflib
import re
import types
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from xds.errors import Problem
from xds.objects.meta import Duration, KubernetesObject, Message, duration
from xds.objects.paths import below

_MISFIT: Any = object()
_TOP_LEVEL = {"apiVersion", "kind", "metadata", "spec", "status"}
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", re.ASCII)


def fit(type_: Any, value: Any) -> tuple[Any, list[Problem]]:
    """What of `value` fits the struct `type_`, ready for `msgspec.convert`, and a problem for each part that does not fit.

    As in protobuf's JSON, null is an unset field and numbers may be quoted. An unknown field of an Istio message is left out with
    a warning, as Istio does; whatever is unknown to a Kubernetes struct was left out of it on purpose. The rest are errors.
    """
    problems: list[Problem] = []
    fitted = _fit(type_, value, "$", problems)
    return (None if fitted is _MISFIT else fitted), problems


def stray_fields(type_: type[KubernetesObject], value: dict[str, Any]) -> list[Problem]:
    """Warnings of unknown fields at the top of an Istio object, which `fit` and msgspec pass over."""
    if "spec" not in _fields(type_) or not issubclass(options(_fields(type_)["spec"].type)[0], Message):
        return []
    return [_unknown(key, _TOP_LEVEL, "$") for key in value if key not in _TOP_LEVEL]


def _unknown(key: str, known: "set[str]", path: str) -> Problem:
    folded = {name.replace("_", "").lower(): name for name in sorted(known)}
    close = folded.get(key.replace("_", "").replace("-", "").lower())
    if close is None:
        close = next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.65)), None)
    advice = f"; did you mean `{close}`?" if close else "; it has no effect"
    return Problem(below(path, key), f"unknown field{advice}", warning=True)


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def options(type_: Any) -> tuple[Any, ...]:
    """What `type_` allows but for None, without the limits that it is annotated with."""
    if get_origin(type_) in (Union, types.UnionType):
        return tuple(bare for option in get_args(type_) if option is not types.NoneType for bare in options(option))
    return (get_args(type_)[0],) if get_origin(type_) is Annotated else (type_,)


def _limits(type_: Any) -> msgspec.Meta | None:
    if get_origin(type_) is Annotated:
        meta: msgspec.Meta = get_args(type_)[1]
        return meta
    return next((found for option in get_args(type_) if (found := _limits(option)) is not None), None)


def _fit(type_: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    allowed = options(type_)
    bare = allowed[0]
    origin = get_origin(bare)
    if bare is Any:
        return value
    if value is None:
        return _misfit(path, "must not be null", problems)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _fit_struct(bare, value, path, problems)
    if origin is tuple:
        return _fit_list(get_args(bare)[0], value, path, problems)
    if origin is dict:
        return _fit_map(get_args(bare)[1], value, path, problems)
    if origin is Literal:
        if value in get_args(bare):
            return value
        return _misfit(path, f"must be one of {', '.join(map(str, get_args(bare)))}; it is {_show(value)}", problems)
    if type(value) in allowed:  # noqa: SIM108 - it would not fit a line
        fitted = value
    else:
        fitted = next((f for option in allowed if (f := _SCALARS[option](value)) is not _MISFIT), _MISFIT)
    if fitted is _MISFIT:
        expected = " or ".join(_EXPECTED[option] for option in allowed)
        hint = "; quote it" if bare is str and isinstance(value, bool | int | float) else ""
        return _misfit(path, f"must be {expected}; it is {_show(value)}{hint}", problems)
    limits = _limits(type_)
    if limits is not None and limits.ge is not None and limits.le is not None and not limits.ge <= fitted <= limits.le:
        return _misfit(path, f"must be from {limits.ge} to {limits.le}; it is {value}", problems)
    return fitted


def _fit_struct(struct: type[msgspec.Struct], value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        return _misfit(path, f"must be an object; it is {_show(value)}", problems)
    fields = _fields(struct)
    fitted: dict[str, Any] = {}
    misfit = False
    for key, part in value.items():
        field = fields.get(key)
        if field is None:
            if issubclass(struct, Message):
                problems.append(_unknown(key, set(fields), path))
        elif part is not None:
            fitted[key] = _fit(field.type, part, below(path, key), problems)
            if fitted[key] is _MISFIT:
                del fitted[key]
                misfit |= field.required
    for name, field in fields.items():
        if field.required and value.get(name) is None:
            _misfit(below(path, name), "is required", problems)
            misfit = True
    return _MISFIT if misfit else fitted


def _fit_list(type_: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, list):
        return _misfit(path, f"must be a list; it is {_show(value)}", problems)
    fitted = [_fit(type_, part, below(path, i), problems) for i, part in enumerate(value)]
    return [part for part in fitted if part is not _MISFIT]


def _fit_map(type_: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        return _misfit(path, f"must be an object; it is {_show(value)}", problems)
    fitted = {key: _fit(type_, part, below(path, key), problems) for key, part in value.items()}
    return {key: part for key, part in fitted.items() if part is not _MISFIT}


def _misfit(path: str, reason: str, problems: list[Problem]) -> Any:
    problems.append(Problem(path, reason))
    return _MISFIT


def _show(value: Any) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return f"`{value}`" if len(value) <= 60 else f"`{value[:57]}...`"
        case bool():
            return str(value).lower()
    return str(value)


def _integer(value: Any) -> Any:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else _MISFIT


def _float(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value if type(value) in (int, float) else _MISFIT


def _duration(value: Any) -> Any:
    try:
        duration(value)
    except (TypeError, ValueError):
        return _MISFIT
    return value


def _timestamp(value: Any) -> Any:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return _MISFIT
    return value if moment.tzinfo is not None and len(value) > len("2006-01-02") else _MISFIT


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    str: lambda value: value if isinstance(value, str) else _MISFIT,
    bool: lambda value: value if isinstance(value, bool) else _MISFIT,
    int: _integer,
    float: _float,
    Duration: _duration,
    datetime: _timestamp,
}
_EXPECTED = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Duration: "a duration such as 5s, 100ms or 1h30m",
    datetime: "a time such as 2006-01-02T15:04:05Z",
}
