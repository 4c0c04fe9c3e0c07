"""What the plugin asks the agent, and what it is answered: the CNI specification, without I/O.

CNI specification 1.1.0 (https://www.cni.dev/docs/spec/): operations, `prevResult`, errors and their codes. Kubernetes: container
runtimes say in `CNI_ARGS` which pod they mean.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import msgspec

from xds.errors import XdsError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


class Code(IntEnum):
    """Reasons of errors; those from 100 are our own."""

    INCOMPATIBLE_VERSION = 1
    INVALID_ENVIRONMENT = 4
    UNDECODABLE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    POD_REFUSED = 100
    NOT_CAPTURED = 101


class PluginError(XdsError):
    """What the runtime is told, and the pod's events show."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. `pod` is its namespace and name, empty for containers that are not Kubernetes'; `previous` is JSON."""

    command: str
    version: str
    pod: tuple[str, str] | None = None
    uid: str = ""
    previous: dict[str, Any] | None = None


def call(data: bytes) -> Call:
    """The operation that the plugin hands on: variables, each ended by a zero byte; a zero byte; the configuration."""
    environment, _, configuration = data.partition(b"\0\0")
    variables = dict(part.partition("=")[::2] for part in environment.decode(errors="replace").split("\0"))
    try:
        value = json.loads(configuration)
    except (ValueError, RecursionError) as e:
        raise PluginError(Code.UNDECODABLE, "the configuration is no JSON", str(e)) from e
    if not isinstance(value, dict):
        raise PluginError(Code.INVALID_CONFIGURATION, "the configuration is no JSON object")
    version = value.get("cniVersion", "")
    if version not in VERSIONS:
        raise PluginError(Code.INCOMPATIBLE_VERSION, f"cniVersion {version!r} is not supported", f"supported: {', '.join(VERSIONS)}")
    command, previous = variables.get("CNI_COMMAND", ""), value.get("prevResult")
    if command == "ADD" and not isinstance(previous, dict):
        raise PluginError(Code.INVALID_CONFIGURATION, "there is no prevResult: chain this plugin after one that makes a network")
    arguments = _arguments(variables)
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    return Call(
        command=command,
        version=version,
        pod=(namespace, name) if namespace and name else None,
        uid=arguments.get("K8S_POD_UID", ""),
        previous=previous,
    )


def _arguments(variables: Mapping[str, str]) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in variables.get("CNI_ARGS", "").split(";"))


def success(result: Mapping[str, Any] | None = None) -> bytes:
    """The answer that all is well; a chained plugin's result is what it was given."""
    return b"0" + (b"" if result is None else json.dumps(result).encode() + b"\n")


def failure(error: PluginError, version: str = VERSIONS[-1]) -> bytes:
    """The answer that it is not."""
    shown = {"cniVersion": version, "code": int(error.code), "msg": error.message, "details": error.details}
    return b"1" + json.dumps({key: value for key, value in shown.items() if value != ""}).encode() + b"\n"
