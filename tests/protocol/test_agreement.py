"""Any interleaving of changes, subscriptions, answers, losses and time ends with every client holding what it should."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.clients import Client, DeltaClient, SotwClient, resource

from xds.discovery.protocol import Responses
from xds.discovery.protocol import types as t
from xds.discovery.resources import Assignment, Group, Resource

NAMES = ("a", "b", "c", "d")
TYPES = (t.CLUSTER, t.ENDPOINTS, t.ROUTE)
names = st.sets(st.sampled_from(NAMES), min_size=1)
types = st.sampled_from(TYPES)
indexes = st.integers(0, 2)
contents = st.sampled_from(["good", "good", "good", "bad", "odd"])


class Agreement(RuleBasedStateMachine):
    """Three clients, the second one plain, the last one picky, of a class whose resources come from two groups each."""

    client: type[Client]

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.count = 0
        self.responses = Responses("test", "nonce")
        self.groups = {url: (Group(url, "own"), Group(url, "shared")) for url in TYPES}
        self.other = {url: (Group(url, "other"), self.groups[url][1]) for url in TYPES}
        self.assignments = (Assignment("one", self.groups), Assignment("two", self.other))
        one = self.assignments[0]
        self.clients: list[Any] = [
            self.client(self.responses, one), self.client(self.responses, one, plain=True), self.client(self.responses, one, picky=True),
        ]  # fmt: skip
        for client in self.clients:
            client.watch(t.CLUSTER)
            client.watch(t.ENDPOINTS, "ab")
            client.watch(t.ROUTE, "c")

    @rule(type_url=types, which=st.integers(0, 2), changed=st.dictionaries(st.sampled_from(NAMES), contents, min_size=1))
    def put(self, type_url: str, which: int, changed: dict[str, str]) -> None:
        group = (*self.groups[type_url], self.other[type_url][0])[which]
        changes: dict[str, Resource | None] = {}
        for name, content in changed.items():
            self.count += 1
            changes[name] = resource(type_url, name, f"{content}|{name}|{self.count % 3}".encode())
        group.update(changes)

    @rule(type_url=types, which=st.integers(0, 2), gone=names)
    def remove(self, type_url: str, which: int, gone: set[str]) -> None:
        group = (*self.groups[type_url], self.other[type_url][0])[which]
        group.update(dict.fromkeys(gone))

    @rule(index=indexes, assignment=st.integers(0, 1))
    def assign(self, index: int, assignment: int) -> None:
        client = self.clients[index]
        client.assignment = self.assignments[assignment]
        client.session.assign(client.assignment)

    @rule(index=indexes, type_url=st.sampled_from((t.ENDPOINTS, t.ROUTE)), some=names)
    def subscribe(self, index: int, type_url: str, some: set[str]) -> None:
        self.clients[index].subscribe(type_url, some)

    @rule(index=indexes, type_url=st.sampled_from((t.ENDPOINTS, t.ROUTE)), some=names)
    def unsubscribe(self, index: int, type_url: str, some: set[str]) -> None:
        self.clients[index].unsubscribe(type_url, some)

    @rule(index=indexes)
    def to_server(self, index: int) -> None:
        self.clients[index].to_server()

    @rule(index=indexes)
    def from_server(self, index: int) -> None:
        self.clients[index].from_server(self.now)

    @rule(index=indexes)
    def to_client(self, index: int) -> None:
        self.clients[index].to_client()

    @rule(seconds=st.sampled_from((0.1, 1.0, 10.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(index=indexes)
    def reconnect(self, index: int) -> None:
        self.clients[index].reconnect()

    @rule()
    def settle(self) -> None:
        self.check()

    @invariant()
    def nobody_holds_what_it_rejects(self) -> None:
        for client in getattr(self, "clients", ()):
            for held in client.held.values():
                assert all(client.likes(body) for body in held.values())

    def teardown(self) -> None:
        if hasattr(self, "clients"):
            self.check()

    def check(self) -> None:
        """Let everything arrive, with time passing, and compare."""
        for _ in range(60):
            self.now += 2.0
            if not sum([client.settle(self.now) for client in self.clients]):
                break
        else:
            raise AssertionError("it goes on and on")
        for index, client in enumerate(self.clients):
            for type_url in TYPES:
                for name in NAMES:
                    self.compare(index, client, type_url, name)

    def compare(self, index: int, client: Any, type_url: str, name: str) -> None:
        wanted = client.wanted[type_url]
        body = client.held.get(type_url, {}).get(name)
        if name not in wanted and "*" not in wanted:
            assert body is None
            return
        groups = client.assignment.groups[type_url]
        newest = next((group.resources[name] for group in groups if name in group.resources), None)
        offered = next((group.get(name) for group in groups if group.get(name) is not None), None)
        where = f"client {index} {type_url} {name}"
        if newest is None:
            deletes = issubclass(self.client, DeltaClient) or t.rules_of(type_url).full_state
            assert body is None or not deletes, where
        elif offered is newest and client.likes(newest.body):
            assert body == newest.body, where
        elif not client.likes(newest.body):
            assert body != newest.body, where


class DeltaAgreement(Agreement):
    client = DeltaClient


class SotwAgreement(Agreement):
    client = SotwClient

    @rule(index=indexes, type_url=types)
    def ask_again(self, index: int, type_url: str) -> None:
        self.clients[index].ask_again(type_url)


@pytest.mark.parametrize("machine", [DeltaAgreement, SotwAgreement])
def test_any_interleaving_ends_in_agreement(machine: type[Agreement]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    checks = list(HealthCheck)
    run_state_machine_as_test(
        machine,
        settings=settings(suppress_health_check=checks, max_examples=150, phases=[Phase.generate], stateful_step_count=40, deadline=None),
    )
