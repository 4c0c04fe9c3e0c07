"""Virtual hosts that are sent one by one: which, and when, as what Envoy has of them depends on the route tables that it has.

What Envoy does is proven in tests/traffic/test_virtual_hosts.py; these are the rules that follow from it.
"""

from typing import Any

from support.clients import resource

from xds import pb
from xds.discovery.protocol import DeltaSession, Responses
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignment, Group


class Client:
    """An Envoy: takes all it is sent, and keeps what it was sent last of each type."""

    def __init__(self, *, empty: bool = False) -> None:
        self.tables = Group(t.ROUTE, "routes", [resource(t.ROUTE, name, b"table") for name in ("80", "90")])
        self.hosts = {
            name: Group(t.VIRTUAL_HOST, name, [] if empty else [resource(t.VIRTUAL_HOST, f"{name}/{host}", b"host") for host in "ab"], name)
            for name in ("80", "90")
        }
        self.assignment = Assignment("test", {t.ROUTE: (self.tables,), t.VIRTUAL_HOST: tuple(self.hosts.values())})
        self.connect()

    def connect(self) -> None:
        self.session = DeltaSession(Responses("test", "nonce"), lambda: None)
        self.session.assign(self.assignment)

    def send(self, type_url: str, **fields: Any) -> list[tuple[str, list[str], list[str]]]:
        """Send a request, and take what comes: for each response its type, and the names of what it brings and takes."""
        self.session.receive(pb.DeltaDiscoveryRequest(type_url=type_url, **fields))
        return self.take()

    def take(self) -> list[tuple[str, list[str], list[str]]]:
        got = []
        while (response := self.session.due(0.0)) is not None:
            self.session.sent(response, 0.0)
            data = pb.DeltaDiscoveryResponse.FromString(response.data)
            got.append((response.rules.short, sorted(r.name for r in data.resources), sorted(data.removed_resources)))
            self.session.receive(pb.DeltaDiscoveryRequest(type_url=response.rules.type_url, response_nonce=response.nonce))
        return got


def test_those_of_the_tables_it_has_are_sent_and_no_others() -> None:
    client = Client()
    assert client.send(t.ROUTE, resource_names_subscribe=["80"]) == [("rds", ["80"], [])]
    assert client.send(t.VIRTUAL_HOST) == [("vhds", ["80/a", "80/b"], [])]


def test_those_of_a_later_table_follow_it_unasked() -> None:
    client = Client()
    client.send(t.ROUTE, resource_names_subscribe=["80"])
    client.send(t.VIRTUAL_HOST)
    assert client.send(t.ROUTE, resource_names_subscribe=["90"]) == [("rds", ["90"], []), ("vhds", ["90/a", "90/b"], [])]


def test_those_of_a_table_that_is_let_go_are_removed_and_sent_again_with_it() -> None:
    client = Client()
    client.send(t.ROUTE, resource_names_subscribe=["80", "90"])
    client.send(t.VIRTUAL_HOST)
    assert client.send(t.ROUTE, resource_names_unsubscribe=["90"]) == [("vhds", [], ["90/a", "90/b"])]
    assert client.send(t.ROUTE, resource_names_subscribe=["90"]) == [("rds", ["90"], []), ("vhds", ["90/a", "90/b"], [])]


def test_a_table_that_is_let_go_and_wanted_again_at_once_gets_all_of_its_own_again() -> None:
    client = Client()
    client.send(t.ROUTE, resource_names_subscribe=["80", "90"])
    client.send(t.VIRTUAL_HOST)
    client.session.receive(pb.DeltaDiscoveryRequest(type_url=t.ROUTE, resource_names_unsubscribe=["90"]))
    assert client.send(t.ROUTE, resource_names_subscribe=["90"]) == [("rds", ["90"], []), ("vhds", ["90/a", "90/b"], [])]


def test_a_table_without_any_gets_a_word_too() -> None:
    client = Client(empty=True)
    client.send(t.ROUTE, resource_names_subscribe=["80"])
    assert client.send(t.VIRTUAL_HOST) == [("vhds", ["80/_"], [])]
    assert client.send(t.ROUTE, resource_names_subscribe=["90"]) == [("rds", ["90"], []), ("vhds", ["90/_"], [])]


def test_an_edit_of_one_sends_one() -> None:
    client = Client()
    client.send(t.ROUTE, resource_names_subscribe=["80", "90"])
    client.send(t.VIRTUAL_HOST)
    client.hosts["80"].update({"80/a": resource(t.VIRTUAL_HOST, "80/a", b"edited")})
    assert client.take() == [("vhds", ["80/a"], [])]


def test_one_that_comes_back_is_sent_what_differs_and_loses_those_of_tables_it_does_not_have() -> None:
    client = Client()
    client.send(t.ROUTE, resource_names_subscribe=["80", "90"])
    client.send(t.VIRTUAL_HOST)
    held = {r.name: r.version for group in client.hosts.values() for r in group.offered()}
    tables = {"80": client.tables.resources["80"].version}
    client.connect()
    client.hosts["80"].update({"80/a": resource(t.VIRTUAL_HOST, "80/a", b"edited")})
    assert client.send(t.ROUTE, resource_names_subscribe=["80"], initial_resource_versions=tables) == []
    assert client.send(t.VIRTUAL_HOST, initial_resource_versions=held) == [("vhds", ["80/a"], ["90/a", "90/b"])]
