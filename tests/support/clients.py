"""Models of xDS clients, as Envoy behaves: they hold resources, acknowledge and reject, forget what they unsubscribe, and come back.

They see only bytes, as a client does. A body that starts with `bad` is rejected by all clients, one that starts with `odd` by
those that are picky. Clusters and listeners are rejected one by one, and named, while removals in the same response count;
everything else is rejected as a whole response. A client that is `plain` rejects clusters and listeners as a whole too.
"""

from collections.abc import Iterable
from typing import Any

from xds import pb
from xds.discovery.protocol import DeltaSession, Response, Responses, Session, SotwSession
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignment, Resource, content_hash

ONE_BY_ONE = {t.CLUSTER, t.LISTENER}


def resource(type_url: str, name: str, body: bytes) -> Resource:
    """A resource of any bytes."""
    return Resource(name, type_url, content_hash(body), body)


class Client:
    """One client: what it holds outlives its streams."""

    variant: type[Session]

    def __init__(self, responses: Responses, assignment: Assignment, picky: bool = False, plain: bool = False) -> None:
        self.responses = responses
        self.assignment = assignment
        self.picky = picky
        self.one_by_one = set() if plain else ONE_BY_ONE
        self.held: dict[str, dict[str, bytes]] = {}  # type -> name -> body
        self.wanted: dict[str, set[str]] = {}  # type -> names; {"*"}: all, asked for as Envoy does, by no name
        self.received: list[tuple[str, str, str]] = []  # type, name, version, of this stream
        self.nonces: set[str] = set()
        self.connect()

    def connect(self) -> None:
        """Open a stream, and ask on it for all that is wanted."""
        self.session = self.variant(self.responses, lambda: None)
        self.session.assign(self.assignment)
        self.down: list[tuple[str, bytes]] = []  # type and bytes of responses under way
        self.up: list[Any] = []  # requests under way
        self.nonces = set()
        self.received = []
        for type_url in sorted(self.wanted):
            self.up.append(self.first(type_url))

    def reconnect(self) -> None:
        """Lose the stream, and what was under way on it."""
        self.session.close()
        self.connect()

    def watch(self, type_url: str, names: Iterable[str] = ("*",)) -> None:
        """Begin to ask for a type."""
        self.wanted[type_url] = set(names)
        self.up.append(self.first(type_url))

    # The network moves one message at a time

    def to_server(self) -> bool:
        """One request arrives; whether there was one."""
        if self.up:
            request = self.up.pop(0)
            self.session.receive(type(request).FromString(request.SerializeToString()))
            return True
        return False

    def from_server(self, now: float) -> Response | None:
        """The server sends one response if one is due."""
        response = self.session.due(now)
        if response is not None:
            self.session.sent(response, now)
            self.down.append((response.rules.type_url, response.data))
        return response

    def to_client(self) -> bool:
        """One response arrives, and is answered; whether there was one."""
        if self.down:
            self.take(*self.down.pop(0))
            return True
        return False

    def settle(self, now: float, limit: int = 500) -> int:
        """Let everything arrive until nothing is due; the number of responses. AssertionError where it does not end."""
        sent = 0
        for _ in range(limit):
            moved = self.to_server() or self.from_server(now) is not None
            if moved or self.to_client():
                sent += 1
            else:
                return sent
        raise AssertionError("it goes on and on")

    # What variants differ in

    def first(self, type_url: str) -> Any:
        raise NotImplementedError

    def take(self, type_url: str, data: bytes) -> None:
        raise NotImplementedError

    # What they share

    def likes(self, body: bytes) -> bool:
        return not body.startswith(b"bad") and not (self.picky and body.startswith(b"odd"))

    def note(self, nonce: str) -> None:
        assert nonce, "an empty nonce"
        assert nonce not in self.nonces, "a nonce came twice on one stream"
        self.nonces.add(nonce)

    def judge(self, type_url: str, resources: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
        """Those of `resources` that are applied, and what to complain about."""
        disliked = [name for name, body in resources.items() if not self.likes(body)]
        if not disliked:
            return resources, ""
        if type_url in self.one_by_one:
            good = {name: body for name, body in resources.items() if name not in disliked}
            return good, "Error adding/updating cluster(s) " + ", ".join(f"{name}: it is bad" for name in disliked)
        return {}, "something is wrong with it"


class DeltaClient(Client):
    variant = DeltaSession

    def first(self, type_url: str) -> Any:
        wanted, held = self.wanted[type_url], self.held.get(type_url, {})
        return pb.DeltaDiscoveryRequest(
            node={"id": "client"},
            type_url=type_url,
            resource_names_subscribe=() if wanted == {"*"} else sorted(wanted),
            initial_resource_versions={name: content_hash(body) for name, body in held.items()},
        )

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        names = set(names)
        self.wanted[type_url] |= names
        self.up.append(pb.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=sorted(names)))

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        names = set(names)
        self.wanted[type_url] -= names
        for name in names:
            self.held.get(type_url, {}).pop(name, None)
        self.up.append(pb.DeltaDiscoveryRequest(type_url=type_url, resource_names_unsubscribe=sorted(names)))

    def take(self, type_url: str, data: bytes) -> None:
        response = pb.DeltaDiscoveryResponse.FromString(data)
        assert response.type_url == type_url
        self.note(response.nonce)
        names = [entry.name for entry in response.resources]
        assert len(set(names)) == len(names), "one name twice in a response"
        self.received += [(type_url, entry.name, entry.version) for entry in response.resources]
        wanted = self.wanted[type_url]
        came = {entry.name: bytes(entry.resource.value) for entry in response.resources}
        good, complaint = self.judge(type_url, came)
        held = self.held.setdefault(type_url, {})
        for name, body in good.items():
            if name in wanted or "*" in wanted:
                held[name] = body
        if type_url in self.one_by_one or not complaint:
            for name in response.removed_resources:
                held.pop(name, None)
        answer = pb.DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
        if complaint:
            answer.error_detail.code = 13
            answer.error_detail.message = complaint
        self.up.append(answer)


class SotwClient(Client):
    variant = SotwSession

    def __init__(self, responses: Responses, assignment: Assignment, picky: bool = False, plain: bool = False) -> None:
        self.accepted: dict[str, str] = {}  # type -> version
        super().__init__(responses, assignment, picky, plain)

    def connect(self) -> None:
        self.last_nonce: dict[str, str] = {}
        super().connect()

    def _request(self, type_url: str) -> Any:
        wanted = self.wanted[type_url]
        return pb.DiscoveryRequest(
            node={"id": "client"},
            type_url=type_url,
            resource_names=() if wanted == {"*"} else sorted(wanted),
            version_info=self.accepted.get(type_url, ""),
            response_nonce=self.last_nonce.get(type_url, ""),
        )

    def first(self, type_url: str) -> Any:
        return self._request(type_url)

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        self.wanted[type_url] |= set(names)
        self.up.append(self._request(type_url))

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        self.wanted[type_url] -= set(names)
        for name in names:
            self.held.get(type_url, {}).pop(name, None)
        self.up.append(self._request(type_url))

    def ask_again(self, type_url: str) -> None:
        """The same request as the last, as Envoy sends it when a cluster warms again."""
        self.up.append(self._request(type_url))

    def take(self, type_url: str, data: bytes) -> None:
        response = pb.DiscoveryResponse.FromString(data)
        assert response.type_url == type_url
        self.note(response.nonce)
        wanted = self.wanted[type_url]
        came = {}
        for entry in response.resources:
            assert entry.type_url == type_url
            name = bytes(entry.value).split(b"|")[1].decode()  # a body names itself: `good|name|content`
            assert name not in came, "one name twice in a response"
            came[name] = bytes(entry.value)
            self.received.append((type_url, name, content_hash(entry.value)))
        good, complaint = self.judge(type_url, came)
        held = self.held.setdefault(type_url, {})
        for name, body in good.items():
            if name in wanted or "*" in wanted:
                held[name] = body
        if t.rules_of(type_url).full_state and (type_url in self.one_by_one or not complaint):
            for name in held.keys() - came.keys():
                del held[name]
        self.last_nonce[type_url] = response.nonce
        if not complaint:
            self.accepted[type_url] = response.version_info
        answer = self._request(type_url)
        if complaint:
            answer.error_detail.code = 13
            answer.error_detail.message = complaint
        self.up.append(answer)
