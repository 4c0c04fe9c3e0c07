"""Captured DNS: names that only the mesh knows, asked for by an application's own resolver, and calls to what it is told.

Istio: "DNS Proxying" (https://istio.io/latest/docs/ops/configuration/traffic-management/dns-proxy/).
"""

import socket
import struct
import subprocess

import pytest
import yaml
from support.traffic import SECONDS, Mesh, Pod, eventually

from xds.injection.capture import Capture, script

A, PTR, TXT, AAAA = 1, 12, 16, 28
NOERROR, NXDOMAIN, NOTIMP = 0, 3, 4
CAPTURED = script(Capture(dns=True))
NAMES = {"DNS_CAPTURE": "true"}
ALLOCATES = NAMES | {"DNS_AUTO_ALLOCATE": "true"}
PORT = "{number: 9090, name: tcp, protocol: TCP}"


def entry(mesh: Mesh, host: str, more: str) -> None:
    """A ServiceEntry for TCP calls to `host`."""
    spec = yaml.safe_load(f"{{hosts: ['{host}'], ports: [{PORT}], {more}}}")
    mesh.put({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": host.replace("*", "any")}, "spec": spec})


def static(mesh: Mesh, host: str, at: str = "") -> str:
    """A ServiceEntry for an application of its own, with the address `at`, if any; the application's name."""
    application = mesh.application(host.partition(".")[0], ports=[9090])
    addresses = f"addresses: [{at}], " if at else ""
    entry(mesh, host, f"{addresses}resolution: STATIC, endpoints: [{{address: {application.address}}}]")
    return application.name


def addresses(pod: Pod, name: str) -> list[str]:
    """What the C library's resolver in the pod finds, for calls over IPv4."""
    done = subprocess.run(
        ["ip", "netns", "exec", pod.namespace.name, "getent", "ahostsv4", name], capture_output=True, text=True, check=False
    )
    return sorted({line.split()[0] for line in done.stdout.splitlines()})


def question(pod: Pod, name: str, kind: int) -> bytes:
    """The answer to a question to the pod's DNS server."""
    asking = pod.namespace.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with asking:
        asking.settimeout(SECONDS)
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        asking.sendto(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1), (pod.gateway, 53))
        return asking.recv(4096)


def ask(pod: Pod, name: str, kind: int = A) -> tuple[int, int]:
    """The response code, and the number of answers."""
    _, flags, _, answers, _, _ = struct.unpack("!HHHHHH", question(pod, name, kind)[:12])
    return flags & 15, answers


def called(pod: Pod, address: str) -> str:
    """Who answers at an address."""
    call = pod.tcp(address, 9090, b"hello\n")
    return "" if call is None else call.server


@pytest.fixture(scope="module")
def client(shared: Mesh) -> Pod:
    """A pod whose queries are captured, in a mesh with a service."""
    shared.service("reviews")
    return shared.pod("client", capture=CAPTURED, metadata=NAMES)


def test_a_name_that_only_a_service_entry_knows_is_resolved_and_its_address_leads_there(shared: Mesh, client: Pod) -> None:
    server = static(shared, "database.example.com", "192.0.2.7")
    assert eventually(lambda: addresses(client, "database.example.com")) == ["192.0.2.7"]
    assert eventually(lambda: called(client, "192.0.2.7")) == server


def test_ordinary_names_are_resolved_by_the_pods_own_servers(shared: Mesh, client: Pod) -> None:
    shared.name("ordinary.example.org", "198.51.100.3", "198.51.100.4")
    assert addresses(client, "ordinary.example.org") == ["198.51.100.3", "198.51.100.4"]
    assert ask(client, "nobody.example.org") == (NXDOMAIN, 0)


def test_services_are_resolved_without_asking_a_server(shared: Mesh, client: Pod) -> None:
    service = shared.services["reviews"]
    assert eventually(lambda: addresses(client, service.host)) == [service.address]
    assert service.host not in shared.world.questions


def test_every_name_of_a_wildcard_has_its_address(shared: Mesh, client: Pod) -> None:
    static(shared, "*.wild.example.com", "192.0.2.8")
    assert eventually(lambda: addresses(client, "any.wild.example.com")) == ["192.0.2.8"]


def test_what_is_deleted_is_not_known_any_more(shared: Mesh, client: Pod) -> None:
    static(shared, "passing.example.com", "192.0.2.9")
    eventually(lambda: addresses(client, "passing.example.com"))
    shared.delete("ServiceEntry", "passing.example.com")
    eventually(lambda: ask(client, "passing.example.com") == (NXDOMAIN, 0))


def test_a_query_by_tcp_goes_on_to_where_it_was_going(shared: Mesh, client: Pod) -> None:
    server = shared.application("nameserver", ports=[53])
    call = client.tcp(server.address, 53, b"hello\n")
    assert call is not None
    assert call.server == server.name


def test_a_pod_that_does_not_ask_for_it_has_nothing_of_it(mesh: Mesh) -> None:
    static(mesh, "database.example.com", "192.0.2.7")
    pod = mesh.pod("client")
    mesh.name("database.example.com", "198.51.100.5")
    assert addresses(pod, "database.example.com") == ["198.51.100.5"]
    assert not [listener["name"] for listener in pod.config("dynamic_listeners") if listener["name"].startswith("dns")]


class TestAllocation:
    def test_hosts_without_addresses_get_some_by_which_they_are_told_apart(self, mesh: Mesh) -> None:
        servers = {host: static(mesh, host) for host in ("one.example.com", "two.example.com")}
        pod = mesh.pod("client", capture=CAPTURED, metadata=ALLOCATES)
        found = {host: eventually(lambda host=host: addresses(pod, host)) for host in servers}
        assert all(address.startswith("240.240.") for host in found for address in found[host])
        assert {host: called(pod, found[host][0]) for host in found} == servers

    def test_a_host_that_is_resolved_by_dns_gets_one_too(self, mesh: Mesh) -> None:
        application = mesh.application("outside", ports=[9090])
        entry(mesh, "outside.example.com", "resolution: DNS")
        mesh.name("outside.example.com", application.address)
        pod = mesh.pod("client", capture=CAPTURED, metadata=ALLOCATES)
        (address,) = eventually(lambda: addresses(pod, "outside.example.com"))
        assert address.startswith("240.240.")
        assert eventually(lambda: called(pod, address)) == application.name

    def test_addresses_are_the_same_after_a_restart_and_for_every_pod(self, mesh: Mesh) -> None:
        static(mesh, "one.example.com")
        first = mesh.pod("first", capture=CAPTURED, metadata=ALLOCATES)
        before = eventually(lambda: addresses(first, "one.example.com"))
        with mesh.world.abandoned():
            pass
        second = mesh.pod("second", capture=CAPTURED, metadata=ALLOCATES)
        assert eventually(lambda: addresses(second, "one.example.com")) == before

    def test_only_pods_that_ask_for_addresses_see_them(self, mesh: Mesh) -> None:
        static(mesh, "one.example.com")
        pod = mesh.pod("client", capture=CAPTURED, metadata=NAMES)
        eventually(lambda: any(listener["name"] == "dns" for listener in pod.config("dynamic_listeners")))
        assert ask(pod, "one.example.com") == (NXDOMAIN, 0)

    def test_an_address_of_its_own_goes_before_one_that_is_given(self, mesh: Mesh) -> None:
        static(mesh, "one.example.com", "192.0.2.10")
        pod = mesh.pod("client", capture=CAPTURED, metadata=ALLOCATES)
        assert eventually(lambda: addresses(pod, "one.example.com")) == ["192.0.2.10"]


class TestLimits:
    """What docs/dns.md says that stock Envoy cannot do; should it learn to, the document is to be changed."""

    def test_a_name_without_an_address_of_the_family_that_is_asked_for_is_denied(self, shared: Mesh, client: Pod) -> None:
        shared.name("ordinary.example.org", "198.51.100.3")
        assert ask(client, "ordinary.example.org", A) == (NOERROR, 1)
        assert ask(client, "ordinary.example.org", AAAA) == (NXDOMAIN, 0)

    def test_only_questions_for_addresses_are_answered(self, shared: Mesh, client: Pod) -> None:
        shared.name("ordinary.example.org", "198.51.100.3")
        assert ask(client, "ordinary.example.org", TXT) == (NOTIMP, 0)
        assert ask(client, "3.100.51.198.in-addr.arpa", PTR) == (NOTIMP, 0)

    def test_at_most_eight_addresses_are_told(self, shared: Mesh, client: Pod) -> None:
        shared.name("many.example.org", *(f"198.51.100.{n}" for n in range(1, 21)))
        assert ask(client, "many.example.org") == (NOERROR, 8)

    def test_what_another_server_has_answered_is_passed_on_with_a_time_of_envoys_own(self, shared: Mesh, client: Pod) -> None:
        shared.name("ordinary.example.org", "198.51.100.3")  # whose server says: for a second
        ttl, length = struct.unpack("!IH", question(client, "ordinary.example.org", A)[-10:-4])
        assert (ttl, length) == (300, 4)

    def test_names_in_the_table_are_known_in_lower_case(self, shared: Mesh, client: Pod) -> None:
        static(shared, "lower.example.com", "192.0.2.11")
        eventually(lambda: addresses(client, "lower.example.com"))
        assert ask(client, "Lower.example.com") == (NXDOMAIN, 0)
