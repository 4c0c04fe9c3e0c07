"""Which kinds the cluster has, and by which versions of their API."""

import asyncio

import msgspec

from xds.errors import KubeError
from xds.objects import Kind
from xds.sources.kube_client import KubeClient

POLL_SECONDS = 2.0  # an answer is good for so long: a CRD installed later is seen within
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"  # all groups in one answer (Kubernetes 1.30)


class _Resource(msgspec.Struct):
    resource: str


class _Version(msgspec.Struct):
    version: str
    resources: list[_Resource] = []


class _Meta(msgspec.Struct):
    name: str


class _Group(msgspec.Struct):
    metadata: _Meta
    versions: list[_Version] = []


class _Groups(msgspec.Struct):
    items: list[_Group]


_groups = msgspec.json.Decoder(_Groups)


class Discovery:
    """The server's own account of what it serves, asked for no more than every two seconds, and only when somebody needs it."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._asking = asyncio.Lock()
        self._asked_at = -POLL_SECONDS
        self._etag = ""
        self._served: frozenset[tuple[str, str, str]] = frozenset()  # group, version, plural

    async def version(self, kind: Kind) -> str | None:
        """The first of `kind.versions` that the server has, None where it has none of them. KubeError when it can't say."""
        if not kind.group:
            return kind.versions[0]
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now >= self._asked_at + POLL_SECONDS:
                await self._ask()
                self._asked_at = now
        return next((version for version in kind.versions if (kind.group, version, kind.plural) in self._served), None)

    async def _ask(self) -> None:
        # For about a second after it starts, an API server answers as if there were no CRDs; it is not ready then.
        await self._client.request("GET", "/readyz")
        headers = {"Accept": AGGREGATED}
        if self._etag:
            headers["If-None-Match"] = self._etag
        async with self._client.open("GET", "/apis", headers=headers) as response:
            if response.status == 304:
                return
            try:
                groups = _groups.decode(await response.read())
            except msgspec.DecodeError as e:
                raise KubeError(0, f"/apis answered with no list of API groups: {e}") from e
            self._etag = response.headers.get("ETag", "")
        self._served = frozenset(
            (group.metadata.name, version.version, resource.resource)
            for group in groups.items
            for version in group.versions
            for resource in version.resources
        )
