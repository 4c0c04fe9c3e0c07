"""A conversation with a session: requests in, responses out, and nothing between."""

from collections.abc import Iterable
from typing import Any

from xds import pb
from xds.discovery.protocol import DeltaSession, Responses, Session, SotwSession
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignment, Group, Resource, content_hash


def resource(name: str, content: str = "", kind: str = t.ENDPOINTS, **fields: Any) -> Resource:
    """A resource with a body of any bytes, which names itself."""
    body = f"{name}|{content}".encode()
    return Resource(name, kind, content_hash(body), body, **fields)


class Talk:
    """The client's side. A clock that only the test moves; what is due is taken, and acknowledged, as the test says."""

    variant: type[Session]

    def __init__(self, *resources: Resource, only: str = "", responses: Responses | None = None, groups: Any = None) -> None:
        self.now = 100.0
        self.groups: dict[str, Group] = groups or {url: Group(url, "test") for url in t.TYPES}
        for each in resources:
            self.groups[each.type_url].update({each.name: each})
        self.session = self.variant(responses or Responses("test", "n"), lambda: None, only)
        self.session.assign(Assignment("test", {url: (group,) for url, group in self.groups.items()}))

    def put(self, *resources: Resource) -> None:
        for each in resources:
            self.groups[each.type_url].update({each.name: each})

    def remove(self, *names: str, kind: str = t.ENDPOINTS) -> None:
        self.groups[kind].update(dict.fromkeys(names))

    def take(self) -> Any:
        """The next response; None where none is due."""
        response = self.session.due(self.now)
        if response is None:
            return None
        self.session.sent(response, self.now)
        parser = pb.DeltaDiscoveryResponse if self.variant is DeltaSession else pb.DiscoveryResponse
        return parser.FromString(response.data)

    def all(self) -> list[Any]:
        """All responses that are due, each acknowledged."""
        found = []
        while (response := self.take()) is not None:
            found.append(response)
            self.ack(response)
        return found

    def ack(self, response: Any) -> None:
        raise NotImplementedError


class DeltaTalk(Talk):
    variant = DeltaSession

    def say(self, kind: str = t.ENDPOINTS, subscribe: Iterable[str] = (), unsubscribe: Iterable[str] = (), **fields: Any) -> Any:
        request = pb.DeltaDiscoveryRequest(
            type_url=kind, resource_names_subscribe=subscribe, resource_names_unsubscribe=unsubscribe, **fields
        )
        return self.session.receive(request)

    def ack(self, response: Any) -> None:
        self.say(response.type_url, response_nonce=response.nonce)

    def nack(self, response: Any, message: str = "no") -> Any:
        return self.say(response.type_url, response_nonce=response.nonce, error_detail={"code": 13, "message": message})


class SotwTalk(Talk):
    variant = SotwSession

    def __init__(self, *resources: Resource, **fields: Any) -> None:
        super().__init__(*resources, **fields)
        self.names: dict[str, tuple[str, ...]] = {}

    def say(self, kind: str = t.ENDPOINTS, names: Iterable[str] = (), **fields: Any) -> Any:
        self.names[kind] = tuple(names)
        return self.session.receive(pb.DiscoveryRequest(type_url=kind, resource_names=self.names[kind], **fields))

    def ack(self, response: Any) -> None:
        self.say(response.type_url, self.names[response.type_url], response_nonce=response.nonce, version_info=response.version_info)

    def nack(self, response: Any, message: str = "no") -> Any:
        kind = response.type_url
        return self.say(kind, self.names[kind], response_nonce=response.nonce, error_detail={"code": 13, "message": message})


def names_of(response: Any) -> set[str]:
    """The names in a response, as the bodies say them."""
    bodies = [getattr(each, "resource", each).value for each in response.resources]
    return {body.split(b"|")[0].decode() for body in bodies}
