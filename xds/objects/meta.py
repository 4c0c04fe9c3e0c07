"""What every object has: its reference and its metadata."""

from datetime import datetime

import msgspec


class Ref(msgspec.Struct, frozen=True, order=True):
    """Names one object: `VirtualService reviews.default`. `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}.{self.namespace}" if self.namespace else f"{self.kind} {self.name}"


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    """The part of Kubernetes metadata that configuration depends on.

    What changes at every write (resourceVersion, managedFields, generation) is left out, so that a write that changes nothing
    for us compares equal and costs nothing.
    """

    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: datetime | None = None
    uid: str = ""
    deletion_timestamp: datetime | None = None
