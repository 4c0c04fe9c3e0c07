"""Traffic capture, call by call: who calls from where, and who answers.

The pod has an application on all its ports, and in place of a proxy servers that say which of its ports was reached: `outbound`
(15001), `inbound` (15006). The world answers as `world` wherever it is called. All of it over IPv4 and over IPv6.
"""

import functools
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support import pod
from support.pod import LIBC, POD_IP, POD_IP6, SECONDS, WORLD_IP, WORLD_IP6, Namespace, Pod, Server

from xds.injection.capture import NOT_CAPTURED, PROXY_ID, Capture, clean_up_script, script, validation_script
from xds.mesh.model import Mode

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not pod.available(), reason="needs root, nft and network namespaces"),
]

SERVICE = {POD_IP: "10.96.0.1", POD_IP6: "fd96::1"}  # somewhere in the world
WORLD = {POD_IP: WORLD_IP, POD_IP6: WORLD_IP6}
LOOPBACK = {POD_IP: "127.0.0.1", POD_IP6: "::1"}
SOURCE = {POD_IP: "127.0.0.6", POD_IP6: "::6"}
APPLICATION, MYSQL, STATUS = 8080, 3306, 15021
IP_TRANSPARENT, IPV6_TRANSPARENT, SO_MARK = 19, 75, 36

both_families = pytest.mark.parametrize("address", [POD_IP, POD_IP6], ids=["IPv4", "IPv6"])


@functools.cache
def opened(stack: ExitStack, capture: Capture) -> Pod:
    """A pod with these rules; one serves all tests of the module that want the same."""
    running = stack.enter_context(pod.running(script(capture)))
    for name, port in (("outbound", 15001), ("inbound", 15006)):
        listening = running.pod.enter(functools.partial(_listener, port, capture.mode is Mode.TPROXY))
        running.servers.append(Server(listening, name))
    for port in (APPLICATION, MYSQL, STATUS):
        running.serve(running.pod, "::", port, "application")
        running.serve(running.world, "::", port, "world")
    return running


def _listener(port: int, transparent: bool) -> socket.socket:
    listening = socket.socket(socket.AF_INET6)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if transparent:
        listening.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        listening.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    listening.bind(("::", port))
    listening.listen()
    return listening


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def captured(stack: ExitStack) -> Callable[..., Pod]:
    """Makes a pod whose capture has these settings."""
    return lambda **settings: opened(stack, Capture(**settings))


def answer(connection: socket.socket) -> str:
    """Who is at the other end."""
    with connection:
        connection.sendall(b"hello")
        return connection.recv(100).decode().partition(":")[0]


def call(
    namespace: Namespace,
    address: str,
    port: int,
    *,
    user: int = 0,
    group: int = 0,
    source: str = "",
    prepare: Callable[[socket.socket], None] | None = None,
) -> str:
    """Who answers a process of `user` and `group` in `namespace`."""

    def connect() -> socket.socket:
        LIBC.setfsgid(group)  # of this thread alone, and whose a socket is goes by it
        LIBC.setfsuid(user)
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        connection.settimeout(SECONDS)
        if prepare is not None:
            prepare(connection)
        if source:
            connection.bind((source, 0))
        connection.connect((address, port))
        return connection

    return answer(namespace.enter(connect))


@both_families
class TestOutbound:
    def test_an_applications_calls_go_through_the_proxy(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured()
        assert call(running.pod, SERVICE[address], MYSQL) == "outbound"
        assert call(running.pod, WORLD[address], 9999) == "outbound"  # where nobody listens, too: the proxy finds out

    def test_the_proxys_own_calls_do_not(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured()
        assert call(running.pod, SERVICE[address], MYSQL, user=1337, group=1337) == "world"
        assert call(running.pod, SERVICE[address], MYSQL, user=1337) == "world"
        assert call(running.pod, SERVICE[address], MYSQL, group=1337) == "world"

    def test_other_users_and_groups_can_be_the_proxys(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(users=(1000, 1001), groups=(2000,))
        assert call(running.pod, SERVICE[address], MYSQL, user=1001) == "world"
        assert call(running.pod, SERVICE[address], MYSQL, group=2000) == "world"
        assert call(running.pod, SERVICE[address], MYSQL, user=1337, group=1337) == "outbound"

    def test_excluded_ports_are_called_directly(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(excluded_outbound_ports=(MYSQL,))
        assert call(running.pod, SERVICE[address], MYSQL) == "world"
        assert call(running.pod, SERVICE[address], APPLICATION) == "outbound"

    def test_excluded_ranges_are_called_directly(self, captured: Callable[..., Pod], address: str) -> None:
        # Overlapping ranges, which nft would refuse to have in one set.
        running = captured(excluded_outbound_ranges=("10.96.0.0/16", "10.96.0.0/24", "fd96::/64", "fd96::1/128"))
        assert call(running.pod, SERVICE[address], MYSQL) == "world"
        assert call(running.pod, WORLD[address], MYSQL) == "outbound"

    def test_only_included_ranges_and_ports_are_captured(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(outbound_ranges=("10.96.0.0/16", "fd96::/64"), outbound_ports=(APPLICATION,))
        assert call(running.pod, SERVICE[address], MYSQL) == "outbound"
        assert call(running.pod, WORLD[address], MYSQL) == "world"
        assert call(running.pod, WORLD[address], APPLICATION) == "outbound"

    def test_an_excluded_range_wins_over_an_included_one(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(
            outbound_ranges=("10.96.0.0/16", "fd96::/64"), excluded_outbound_ranges=("10.96.0.0/24", "fd96::1/128"), outbound_ports=(MYSQL,)
        )
        assert call(running.pod, SERVICE[address], MYSQL) == "world"

    def test_nothing_is_captured_where_no_range_is_included(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(outbound_ranges=())
        assert call(running.pod, SERVICE[address], MYSQL) == "world"

    def test_excluded_interfaces_are_left_alone(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(excluded_interfaces=("eth+",))
        assert call(running.pod, SERVICE[address], MYSQL) == "world"
        assert call(running.world, address, APPLICATION) == "application"


@both_families
@pytest.mark.parametrize("mode", [Mode.REDIRECT, Mode.TPROXY])
class TestWithinThePod:
    def test_an_application_calls_itself_directly(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        running = captured(mode=mode)
        assert call(running.pod, LOOPBACK[address], APPLICATION) == "application"
        assert call(running.pod, address, APPLICATION) == "application"

    def test_the_proxys_call_to_a_service_that_is_its_own_pod_comes_in_as_all_calls_do(
        self, captured: Callable[..., Pod], mode: Mode, address: str
    ) -> None:
        assert call(captured(mode=mode).pod, address, APPLICATION, user=1337, group=1337) == "inbound"
        assert call(captured(mode=mode).pod, address, APPLICATION, group=1337) == "inbound"

    def test_the_proxy_reaches_its_application(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        running = captured(mode=mode)
        assert call(running.pod, address, APPLICATION, user=1337, group=1337, source=SOURCE[address]) == "application"
        assert call(running.pod, LOOPBACK[address], APPLICATION, user=1337, group=1337) == "application"


@both_families
@pytest.mark.parametrize("mode", [Mode.REDIRECT, Mode.TPROXY])
class TestInbound:
    def test_every_port_leads_to_the_proxy(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        running = captured(mode=mode)
        assert call(running.world, address, APPLICATION) == "inbound"
        assert call(running.world, address, 9999) == "inbound"  # also one that nobody has declared or opened

    def test_the_proxys_own_ports_are_called_directly(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        assert call(captured(mode=mode).world, address, STATUS) == "application"

    def test_excluded_ports_are_called_directly(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        running = captured(mode=mode, excluded_inbound_ports=(MYSQL,))
        assert call(running.world, address, MYSQL) == "application"
        assert call(running.pod, address, MYSQL, user=1337, group=1337) == "application"
        assert call(running.world, address, APPLICATION) == "inbound"

    def test_only_included_ports_are_captured(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        running = captured(mode=mode, inbound_ports=(APPLICATION,))
        assert call(running.world, address, APPLICATION) == "inbound"
        assert call(running.world, address, MYSQL) == "application"

    def test_nothing_is_captured_where_no_port_is_included(self, captured: Callable[..., Pod], mode: Mode, address: str) -> None:
        running = captured(mode=mode, inbound_ports=())
        assert call(running.world, address, APPLICATION) == "application"
        assert call(running.pod, address, APPLICATION, user=1337, group=1337) == "application"
        assert call(running.pod, SERVICE[address], MYSQL) == "outbound"


@both_families
class TestTransparent:
    def test_the_proxy_sees_the_address_that_was_called(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(mode=Mode.TPROXY)
        proxy = next(server for server in running.servers if server.name == "inbound")
        assert call(running.world, address, 7070) == "inbound"
        assert proxy.called[-1] == (address, 7070)
        assert proxy.peers[-1] == WORLD[address]

    def test_the_application_sees_its_caller_and_answers_by_way_of_the_proxy(self, captured: Callable[..., Pod], address: str) -> None:
        def transparent(connection: socket.socket) -> None:
            level, option = (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if ":" in address else (socket.SOL_IP, IP_TRANSPARENT)
            connection.setsockopt(level, option, 1)
            connection.setsockopt(socket.SOL_SOCKET, SO_MARK, 1337)

        running = captured(mode=Mode.TPROXY)
        source = WORLD[address]
        application = next(server for server in running.servers if server.listening.getsockname()[1] == APPLICATION)
        assert call(running.pod, address, APPLICATION, group=1337, source=source, prepare=transparent) == "application"
        assert application.peers[-1] == source

    def test_outbound_calls_are_captured_and_answers_come_back(self, captured: Callable[..., Pod], address: str) -> None:
        running = captured(mode=Mode.TPROXY)
        assert call(running.pod, SERVICE[address], MYSQL) == "outbound"
        assert call(running.pod, SERVICE[address], MYSQL, group=1337) == "world"


@both_families
class TestNames:
    def answering(self, running: Pod, address: str, user: int = 0) -> str:
        """Who gets a query that a process of `user` in the pod sends to the world's DNS server, and answers it."""

        def listen(at: str, port: int) -> socket.socket:
            listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            listening.bind((at, port))
            return listening

        def ask() -> socket.socket:
            LIBC.setfsuid(user)
            asking = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            asking.settimeout(SECONDS)
            asking.connect((WORLD[address], 53))
            asking.send(b"query")
            return asking

        with ExitStack() as sockets:
            proxy = sockets.enter_context(running.pod.enter(lambda: listen(LOOPBACK[address], 15053)))
            world = sockets.enter_context(running.world.enter(lambda: listen(WORLD[address], 53)))
            asking = sockets.enter_context(running.pod.enter(ask))
            ((called,), _, _) = select.select([proxy, world], [], [], SECONDS)
            query, peer = called.recvfrom(100)
            assert query == b"query"
            called.sendto(b"answer", peer)
            assert asking.recv(100) == b"answer"  # from the address it has asked: it is connected to that
            return "proxy" if called is proxy else "world"

    def test_queries_go_where_they_go_unless_they_are_captured(self, captured: Callable[..., Pod], address: str) -> None:
        assert self.answering(captured(), address) == "world"

    def test_captured_queries_go_to_the_proxy_and_its_own_go_on(self, captured: Callable[..., Pod], address: str) -> None:
        assert self.answering(captured(dns=True), address) == "proxy"
        assert self.answering(captured(dns=True), address, user=1337) == "world"


ROUTES = "ip rule; ip -6 rule; ip route show table 133 2> /dev/null || true; ip -6 route show table 133 2> /dev/null || true"
STATE = f"nft list ruleset; {ROUTES}; ip address show dev lo"


@pytest.mark.parametrize("mode", [Mode.REDIRECT, Mode.TPROXY])
def test_running_it_again_changes_nothing(mode: Mode) -> None:
    program = script(Capture(mode=mode, excluded_outbound_ports=(MYSQL,), excluded_outbound_ranges=("192.0.2.0/24",)))
    with pod.running(program) as running:
        before = running.pod.sh(STATE)
        running.pod.sh(program)
        assert running.pod.sh(STATE) == before


@pytest.mark.parametrize("mode", [Mode.REDIRECT, Mode.TPROXY])
def test_clean_up_leaves_nothing_of_it(mode: Mode) -> None:
    with pod.running("") as running:
        before = running.pod.sh(STATE)
        running.pod.sh(script(Capture(mode=mode)))
        assert running.pod.sh(STATE) != before
        running.pod.sh(clean_up_script())
        assert running.pod.sh(STATE) == before
        running.pod.sh(clean_up_script())  # nothing there is no error


def test_another_mode_takes_the_place_of_the_first() -> None:
    with pod.running(script(Capture(mode=Mode.TPROXY))) as running:
        running.pod.sh(script(Capture()))
        with pod.running(script(Capture())) as fresh:
            rules = f"nft list ruleset; {ROUTES}"
            assert running.pod.sh(rules) == fresh.pod.sh(rules)


@pytest.mark.parametrize(
    "capture",
    [
        Capture(),
        Capture(mode=Mode.TPROXY),
        Capture(inbound_ports=(), outbound_ranges=(), excluded_outbound_ports=(15002,), excluded_interfaces=("lo",)),
    ],
    ids=["REDIRECT", "TPROXY", "nothing"],
)
def test_whoever_wants_can_find_out_that_the_rules_are_there(capture: Capture) -> None:
    with pod.running(script(capture)) as running:
        assert validated(running.pod) == 0


def test_whoever_wants_can_find_out_that_they_are_not() -> None:
    with pod.running("") as running:
        assert validated(running.pod) == NOT_CAPTURED


def validated(namespace: Namespace) -> int:
    """The exit status of the program that validates, run as the proxy's user and with nothing but busybox, as in its image."""
    user = f"setpriv --reuid={PROXY_ID} --regid={PROXY_ID} --clear-groups --inh-caps=-all"
    command = f"ip netns exec {namespace.name} {user} busybox sh -c"
    done = subprocess.run([*command.split(), validation_script()], capture_output=True, check=False, start_new_session=True)
    return done.returncode


class TestCommand:
    @staticmethod
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "xds", "capture", *arguments], capture_output=True, text=True, check=False)

    def test_a_dry_run_prints_the_program_and_changes_nothing(self) -> None:
        before = subprocess.check_output(["nft", "list", "ruleset"], text=True)
        done = self.run("--dry-run", "--mode", "TPROXY", "--exclude-outbound-ports", "25,3306", "--uid", "1000")
        expected = Capture(mode=Mode.TPROXY, excluded_outbound_ports=(25, 3306), users=(1000,))
        assert (done.returncode, done.stdout, done.stderr) == (0, script(expected), "")
        assert subprocess.check_output(["nft", "list", "ruleset"], text=True) == before

    def test_it_installs_and_cleans_up_in_the_namespace_it_runs_in(self) -> None:
        with pod.running("") as running:
            command = ["ip", "netns", "exec", running.pod.name, sys.executable, "-m", "xds", "capture"]
            before = running.pod.sh(STATE)
            subprocess.run(command, check=True)
            with pod.running(script(Capture())) as other:
                assert running.pod.sh("nft list ruleset") == other.pod.sh("nft list ruleset")
            subprocess.run([*command, "--clean-up"], check=True)
            assert running.pod.sh(STATE) == before

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("--inbound-ports", "http"), "--inbound-ports: 'http' is no port: write numbers from 1 to 65535, or * for all"),
            (("--exclude-outbound-ports", "*"), "--exclude-outbound-ports: all ports cannot be meant here: list them, as in 80,443"),
            (("--outbound-ranges", "10.0.0.0/40"), "--outbound-ranges: '10.0.0.0/40' is no range of addresses: write 10.96.0.0/12"),
            (("--exclude-interfaces", 'eth0"; drop'), "--exclude-interfaces: 'eth0\"; drop' is no name of a network interface"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_before_anything_is_done(self, arguments: tuple[str, ...], reason: str) -> None:
        done = self.run(*arguments, "--dry-run")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"xds: {reason}\n")
