"""Which outbound listeners a scope needs, and who shares them."""

import pytest
from support.seen import Seen, entry, headless, service

from xds.envoy.listeners import Bind, Plan, RouteNeed, Target, plan, pod_binds
from xds.mesh.model import Client, Egress, Mode, Protocol, Resolution
from xds.objects import MeshConfig

HTTP, TCP, AUTO, TLS = Protocol.HTTP, Protocol.TCP, Protocol.AUTO, Protocol.TLS
V4 = Client("default", addresses=("10.244.0.9",))
V6 = Client("default", addresses=("fd00::9",))
DUAL = Client("default", addresses=("10.244.0.9", "fd00::9"))


def planned(view: Seen, client: Client = V4, *egress: Egress) -> Plan:
    return plan(view, egress or view.all_egress(), client)


def names(plan: Plan) -> set[str]:
    return set(plan.binds)


def pods(view: Seen, client: Client = V4) -> dict[str, Bind]:
    """The listeners for the pods of the plan's services."""
    (target,) = planned(view, client).pods
    return pod_binds(view, client, target)


def hosts(bind: Bind) -> list[str]:
    return [target.hostname for target in bind.targets]


class TestHttp:
    def test_services_share_the_wildcard_listener_of_their_port_and_its_route_table(self) -> None:
        found = planned(Seen(service("a.x", (80, HTTP), at="10.96.0.1"), service("b.x", (80, Protocol.GRPC), at="10.96.0.2")))
        assert found.binds == {"0.0.0.0_80": Bind("0.0.0.0_80", ("0.0.0.0",), 80, route="80", wildcard=True)}
        assert found.routes == {"80": RouteNeed(80, (("a.x", "default", 80), ("b.x", "default", 80)))}

    def test_one_more_service_on_a_port_does_not_change_its_bind(self) -> None:
        one, two = service("a.x", (80, HTTP), at="10.96.0.1"), service("b.x", (80, HTTP), at="10.96.0.2")
        assert planned(Seen(one)).binds == planned(Seen(one, two)).binds

    def test_grpc_web_of_any_service_shows_on_the_listener(self) -> None:
        found = planned(Seen(service("a.x", (80, HTTP)), service("b.x", (80, Protocol.GRPC_WEB), at="10.96.0.2")))
        assert found.binds["0.0.0.0_80"].grpc_web

    def test_headless_services_share_it_too(self) -> None:
        view = Seen(headless("h.x", (80, HTTP)), endpoints={"h.x": ["10.244.0.3"]})
        assert names(planned(view)) == {"0.0.0.0_80"}


class TestTcp:
    def test_a_service_has_a_listener_on_each_of_its_addresses(self) -> None:
        found = planned(Seen(service("db.x", (3306, Protocol.MYSQL), at=("10.96.0.4", "10.96.0.5"))))
        assert names(found) == {"10.96.0.4_3306", "10.96.0.5_3306"}
        assert found.binds["10.96.0.4_3306"].targets == (Target("db.x", "default", 3306, Protocol.MYSQL),)
        assert found.routes == {}

    def test_udp_ports_have_no_listener(self) -> None:
        assert names(planned(Seen(service("dns.x", (53, Protocol.UDP))))) == set()

    def test_a_cidr_joins_the_wildcard_listener_of_its_port(self) -> None:
        found = planned(Seen(entry("net.x", (6379, TCP), at="192.0.2.77/24")))
        bind = found.binds["0.0.0.0_6379"]
        assert bind.targets == (Target("net.x", "default", 6379, TCP, ("192.0.2.0/24",)),)
        assert bind.route == ""

    def test_a_cidr_of_one_address_is_that_address(self) -> None:
        assert names(planned(Seen(entry("net.x", (6379, TCP), at="192.0.2.7/32")))) == {"192.0.2.7_6379"}

    def test_an_entry_without_addresses_takes_its_port_on_any_address(self) -> None:
        found = planned(Seen(entry("mongo.example.com", (27017, TCP))))
        assert hosts(found.binds["0.0.0.0_27017"]) == ["mongo.example.com"]

    def test_a_headless_service_has_a_listener_for_each_of_its_pods(self) -> None:
        view = Seen(headless("h.x", (9042, TCP)), endpoints={"h.x": ["10.244.0.3", "10.244.0.4", "fd00::4"]})
        assert pods(view) == {
            "10.244.0.3_9042": Bind("10.244.0.3_9042", ("10.244.0.3",), 9042, targets=(Target("h.x", "default", 9042, TCP),)),
            "10.244.0.4_9042": Bind("10.244.0.4_9042", ("10.244.0.4",), 9042, targets=(Target("h.x", "default", 9042, TCP),)),
        }
        assert set(pods(view, V6)) == {"fd00::4_9042"}

    def test_a_pod_that_comes_or_goes_leaves_the_plan_as_it_is(self) -> None:
        service = headless("h.x", (9042, TCP), (7000, AUTO))
        one = Seen(service, endpoints={"h.x": ["10.244.0.3"]})
        assert planned(one) == planned(Seen(service)) == planned(Seen(service, endpoints={"h.x": ["10.244.0.3", "10.244.0.4"]}))

    def test_a_headless_service_without_pods_has_no_listener(self) -> None:
        view = Seen(headless("h.x", (9042, TCP)))
        assert names(planned(view)) == set()
        assert pods(view) == {}

    def test_a_service_that_left_the_view_has_no_pods(self) -> None:
        assert pod_binds(Seen(), V4, Target("h.x", "default", 9042, TCP)) == {}

    def test_an_entry_without_resolution_or_endpoints_takes_its_port_on_any_address(self) -> None:
        view = Seen(entry("any.example.com", (9000, TCP), resolution=Resolution.PASSTHROUGH))
        assert names(planned(view)) == {"0.0.0.0_9000"}

    def test_an_entry_without_resolution_has_a_listener_for_each_endpoint_with_an_ip(self) -> None:
        view = Seen(
            entry("some.example.com", (9000, TCP), resolution=Resolution.PASSTHROUGH),
            endpoints={"some.example.com": ["192.0.2.1", "name.example.com"]},
        )
        assert names(planned(view)) == set()
        assert set(pods(view)) == {"192.0.2.1_9000"}


class TestAuto:
    def test_a_service_has_its_own_listener_with_a_route_table_for_its_http(self) -> None:
        found = planned(Seen(service("a.x", (9000, AUTO))))
        bind = found.binds["10.96.0.1_9000"]
        assert (bind.route, hosts(bind), bind.detects) == ("a.x:9000", ["a.x"], True)
        assert found.routes == {"a.x:9000": RouteNeed(9000, (("a.x", "default", 9000),), sniffed=True)}

    def test_its_http_is_also_in_the_table_that_other_http_of_the_port_shares(self) -> None:
        found = planned(Seen(service("web.x", (80, HTTP)), service("a.x", (80, AUTO), at="10.96.0.2")))
        assert [host for host, _, _ in found.routes["80"].services] == ["web.x", "a.x"]

    def test_pods_of_a_headless_service_share_its_route_table(self) -> None:
        view = Seen(headless("h.x", (7000, AUTO)), endpoints={"h.x": ["10.244.0.3", "10.244.0.4"]})
        assert {bind.route for bind in pods(view).values()} == {"h.x:7000"}
        assert planned(view).routes["h.x:7000"].services == (("h.x", "default", 7000),)

    def test_without_an_address_it_shares_the_wildcard_listener_and_table(self) -> None:
        found = planned(Seen(service("web.x", (80, HTTP)), entry("auto.example.com", (80, AUTO))))
        bind = found.binds["0.0.0.0_80"]
        assert (bind.route, hosts(bind)) == ("80", ["auto.example.com"])
        assert names(found) == {"0.0.0.0_80"}


class TestConflicts:
    def test_the_older_of_two_tcp_services_has_the_address(self) -> None:
        found = planned(Seen(entry("old.example.com", (443, TCP)), entry("new.example.com", (443, TCP))))
        assert hosts(found.binds["0.0.0.0_443"]) == ["old.example.com"]
        (conflict,) = found.conflicts
        assert (conflict.listener, conflict.winner) == ("0.0.0.0_443", ("old.example.com", "default", 443))
        assert conflict.loser == ("new.example.com", "default", 443)

    def test_different_networks_do_not_conflict(self) -> None:
        found = planned(Seen(entry("a.x", (1, TCP), at="192.0.2.0/24"), entry("b.x", (1, TCP), at="198.51.100.0/24")))
        assert hosts(found.binds["0.0.0.0_1"]) == ["a.x", "b.x"]
        assert found.conflicts == ()

    def test_services_that_speak_tls_do_not_conflict(self) -> None:
        found = planned(Seen(entry("a.x", (443, TLS)), entry("b.x", (443, Protocol.HTTPS)), entry("c.x", (443, TCP))))
        assert hosts(found.binds["0.0.0.0_443"]) == ["a.x", "b.x", "c.x"]
        assert found.conflicts == ()

    @pytest.mark.parametrize("order", [0, 1])
    def test_http_and_tcp_on_one_wildcard_are_told_apart(self, order: int) -> None:
        services = [service("web.x", (80, HTTP)), entry("raw.example.com", (80, TCP))]
        found = planned(Seen(*(reversed(services) if order else services)))
        bind = found.binds["0.0.0.0_80"]
        assert (bind.route, hosts(bind), bind.detects) == ("80", ["raw.example.com"], True)
        assert found.conflicts == ()

    def test_the_http_of_two_auto_services_on_one_wildcard_still_goes_to_both(self) -> None:
        found = planned(Seen(entry("a.x", (80, AUTO)), entry("b.x", (80, AUTO))))
        assert [host for host, _, _ in found.routes["80"].services] == ["a.x", "b.x"]
        assert [c.loser[0] for c in found.conflicts] == ["b.x"]

    def test_two_auto_services_with_one_address_keep_the_older_ones_routes(self) -> None:
        found = planned(Seen(entry("a.x", (80, AUTO), at="192.0.2.1"), entry("b.x", (80, AUTO), at="192.0.2.1")))
        assert found.binds["192.0.2.1_80"].route == "a.x:80"
        assert set(found.routes) == {"a.x:80"}

    @pytest.mark.parametrize("port", [15001, 15006, 15021, 15090])
    def test_addresses_of_the_proxys_own_listeners_are_not_for_services(self, port: int) -> None:
        found = planned(Seen(service("web.x", (port, HTTP)), entry("any.example.com", (port, TCP))))
        assert names(found) == set()
        assert [(c.winner, c.loser[0]) for c in found.conflicts] == [(None, "web.x"), (None, "any.example.com")]
        assert found.routes == {}

    def test_services_at_addresses_of_their_own_may_use_those_ports(self) -> None:
        assert names(planned(Seen(service("gateway.x", (15021, TCP))))) == {"10.96.0.1_15021"}

    def test_the_http_proxys_address_is_not_for_services(self) -> None:
        view = Seen(service("web.x", (15002, HTTP)), config=MeshConfig(proxy_http_port=15002))
        assert names(planned(view, Client("default", mode=Mode.NONE))) == set()


class TestSidecar:
    view = Seen(
        service("web.x", (80, HTTP), (8080, HTTP), at="10.96.0.1"),
        service("api.x", (80, HTTP), at="10.96.0.2"),
        service("db.x", (3306, TCP), at="10.96.0.3"),
        config=MeshConfig(),
    )
    everything = view.all_egress()[0]

    def test_a_port_of_its_own_shows_only_the_services_it_lists(self) -> None:
        own = Egress(hosts=(("api.x", "default"),), port=80, protocol=HTTP)
        found = planned(self.view, V4, own, self.everything)
        assert [host for host, _, _ in found.routes["80"].services] == ["api.x"]
        assert found.routes["80"].egress == 0
        assert found.routes["8080"].egress == 1

    def test_a_service_without_that_port_is_not_on_it(self) -> None:
        found = planned(self.view, V4, Egress(hosts=self.everything.hosts, port=8080, protocol=HTTP))
        assert names(found) == {"0.0.0.0_8080"}
        assert [host for host, _, _ in found.routes["8080"].services] == ["web.x"]

    def test_its_protocol_replaces_that_of_the_services_port(self) -> None:
        found = planned(self.view, V4, Egress(hosts=(("web.x", "default"),), port=80, protocol=TCP))
        assert found.binds["10.96.0.1_80"].targets == (Target("web.x", "default", 80, TCP),)

    def test_a_bind_names_listener_and_route_table(self) -> None:
        own = Egress(hosts=self.everything.hosts, port=80, protocol=HTTP, bind="127.0.0.5", captured=False)
        found = planned(self.view, V4, own)
        assert found.binds["127.0.0.5_80"] == Bind("127.0.0.5_80", ("127.0.0.5",), 80, captured=False, route="127.0.0.5:80")
        assert set(found.routes) == {"127.0.0.5:80"}

    def test_without_capture_or_bind_it_listens_on_loopback(self) -> None:
        found = planned(self.view, V4, Egress(hosts=(("db.x", "default"),), port=3306, protocol=TCP, captured=False))
        assert found.binds["127.0.0.1_3306"].captured is False

    def test_a_unix_socket_takes_all_ports_of_its_services(self) -> None:
        own = Egress(hosts=self.everything.hosts, protocol=HTTP, bind="unix:///run/out.sock")
        found = planned(self.view, V4, own)
        bind = found.binds["unix:///run/out.sock_0"]
        assert (bind.addresses, bind.port, bind.captured) == (("unix:///run/out.sock",), 0, False)
        assert [port for _, _, port in found.routes["unix:///run/out.sock"].services] == [80, 8080, 80]

    def test_services_of_another_namespace_with_the_same_name_are_left_out(self) -> None:
        assert names(planned(self.view, V4, Egress(hosts=(("web.x", "elsewhere"),)))) == set()


class TestModeNone:
    none = Client("default", addresses=("10.244.0.9",), mode=Mode.NONE)
    view = Seen(service("web.x", (80, HTTP)), service("a.x", (80, AUTO), at="10.96.0.2"), service("db.x", (3306, TCP)))

    def test_all_listeners_are_bound_to_loopback(self) -> None:
        found = planned(self.view, self.none)
        assert names(found) == {"127.0.0.1_80", "127.0.0.1_3306"}
        assert not any(bind.captured for bind in found.binds.values())

    def test_http_of_a_port_shares_one_route_table(self) -> None:
        assert planned(self.view, self.none).routes == {"80": RouteNeed(80, (("web.x", "default", 80), ("a.x", "default", 80)))}


class TestFamilies:
    def test_an_ipv6_proxy_has_ipv6_wildcards_and_addresses(self) -> None:
        view = Seen(service("web.x", (80, HTTP)), service("db.x", (3306, TCP), at=("10.96.0.4", "fd00:1::4")))
        assert names(planned(view, V6)) == {"::_80", "fd00:1::4_3306"}

    def test_a_dual_stack_proxy_has_both(self) -> None:
        view = Seen(service("web.x", (80, HTTP)), service("db.x", (3306, TCP), at=("10.96.0.4", "fd00:1::4")))
        found = planned(view, DUAL)
        assert names(found) == {"0.0.0.0_80", "10.96.0.4_3306", "fd00:1::4_3306"}
        assert found.binds["0.0.0.0_80"].addresses == ("0.0.0.0", "::")

    def test_a_service_with_addresses_of_another_family_only_is_not_taken_for_one_without(self) -> None:
        assert names(planned(Seen(service("db.x", (3306, TCP), at="fd00:1::4")))) == set()


class TestHttpProxy:
    def test_its_table_has_the_http_of_all_ports(self) -> None:
        view = Seen(service("web.x", (80, HTTP), (81, AUTO), (82, TCP)), config=MeshConfig(proxy_http_port=15002))
        assert planned(view).routes["http_proxy"] == RouteNeed(0, (("web.x", "default", 80), ("web.x", "default", 81)))

    def test_it_has_a_table_where_a_sidecar_shows_no_catch_all(self) -> None:
        view = Seen(service("web.x", (80, HTTP)), config=MeshConfig(proxy_http_port=15002))
        found = planned(view, V4, Egress(hosts=(("web.x", "default"),), port=80, protocol=HTTP))
        assert found.routes["http_proxy"].services == ()

    def test_there_is_none_without_a_port_for_it(self) -> None:
        assert "http_proxy" not in planned(Seen(service("web.x", (80, HTTP)))).routes
