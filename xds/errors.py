"""The errors that cross rooms. Each says what is wrong, where, and what to do."""

from dataclasses import dataclass


class XdsError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigError(XdsError):
    """A file, flag or setting of the operator's is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a user's object.

    `field` is a JSON path (`$.spec.http[0].timeout`), `where` is `file:line` for objects from files, else empty.
    A `warning` leaves the object in use; an error quarantines it.
    """

    field: str
    reason: str
    where: str = ""
    warning: bool = False

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.field}: {self.reason}"


class ProtocolError(XdsError):
    """The peer broke the protocol: its stream ends with `status`, a gRPC status code name, and `reason`."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class KubeError(XdsError):
    """The API server refused; `status` is the HTTP code. It may ask not to be asked again for `retry_after` seconds."""

    retry_after = 0.0

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class Gone(KubeError):  # noqa: N818
    """410: the resourceVersion is too old; list again."""


class Conflict(KubeError):  # noqa: N818
    """409: the object changed meanwhile; read it again."""


class Forbidden(KubeError):  # noqa: N818
    """401 or 403: our service account lacks a permission, which the message names."""
