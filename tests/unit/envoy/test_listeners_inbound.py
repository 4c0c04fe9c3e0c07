"""What inbound listeners are made of."""

from typing import Any

import msgspec
import pytest
from support.chains import clusters, inspectors, is_http, last_filter, matched, unpacked
from support.seen import service

from xds.envoy.filters.listener import port_inspectors
from xds.envoy.inbound_listeners import inbound_listeners
from xds.mesh.model import Client, Inbound, Mode, Protocol
from xds.objects import MeshConfig
from xds.objects.meta import decode_hook

HTTP, TCP, AUTO, HTTPS = Protocol.HTTP, Protocol.TCP, Protocol.AUTO, Protocol.HTTPS
CLIENT = Client("default", addresses=("10.244.0.9",))
WEB = service("web.x", (80, HTTP))
PLAIN_HTTP = {"transport": "raw_buffer", "applications": ["http/1.0", "http/1.1", "h2c"]}
RAW = {"transport": "raw_buffer"}


def built(*inbounds: Inbound, client: Client = CLIENT, config: MeshConfig | None = None) -> dict[str, Any]:
    return {listener.name: listener for listener in inbound_listeners(client, inbounds, config or MeshConfig())}


def virtual(*inbounds: Inbound, client: Client = CLIENT, config: MeshConfig | None = None) -> Any:
    return built(*inbounds, client=client, config=config)["virtualInbound"]


def chains(listener: Any, name: str) -> list[tuple[dict[str, Any], bool]]:
    """The matches of the chains with this name, and whether each is HTTP."""
    return [(matched(chain), is_http(chain)) for chain in listener.filter_chains if chain.name == name]


def disabled_at(listener: Any, inspector: str) -> list[int] | str:
    """The ports where an inspector does not run, or the only ones where it does (`only …`)."""
    (found,) = (f for f in listener.listener_filters if f.name.endswith(inspector))
    predicate = found.filter_disabled
    only = "only " if predicate.WhichOneof("rule") == "not_match" else ""
    if only:
        predicate = predicate.not_match
    rules = predicate.or_match.rules if predicate.WhichOneof("rule") == "or_match" else [predicate]
    ports = [r.destination_port_range.start for r in rules if r.WhichOneof("rule") is not None]
    assert all(r.destination_port_range.end == r.destination_port_range.start + 1 for r in rules if r.WhichOneof("rule"))
    return only + ",".join(map(str, ports)) if only else ports


class TestVirtualInbound:
    def test_it_keeps_what_it_gets_and_knows_where_that_was_going(self) -> None:
        listener = virtual()
        assert (listener.address.socket_address.address, listener.address.socket_address.port_value) == ("0.0.0.0", 15006)
        assert not listener.HasField("use_original_dst")
        assert inspectors(listener)[0] == "original_dst"
        assert listener.traffic_direction == 1

    def test_what_comes_to_its_own_port_ends_there(self) -> None:
        (chain,) = (c for c in virtual().filter_chains if c.name == "virtualInbound-blackhole")
        assert (matched(chain), clusters(chain)) == ({"port": 15006}, [("BlackHoleCluster", 1)])

    def test_undeclared_ports_pass_through_as_what_they_turn_out_to_be(self) -> None:
        listener = virtual()
        assert chains(listener, "virtualInbound-catchall-http") == [(PLAIN_HTTP, True)]
        assert chains(listener, "virtualInbound") == [(RAW, False), ({}, False)]
        (raw, _) = (c for c in listener.filter_chains if c.name == "virtualInbound")
        assert clusters(raw) == [("InboundPassthroughCluster", 1)]

    def test_the_first_of_two_inbounds_has_the_port(self) -> None:
        listener = virtual(Inbound(8080, HTTP, WEB, 80), Inbound(8080, TCP, WEB, 81))
        assert chains(listener, "0.0.0.0_8080") == [({"port": 8080}, True)]

    def test_a_transparent_proxy_keeps_the_callers_address(self) -> None:
        listener = virtual(client=msgspec.structs.replace(CLIENT, mode=Mode.TPROXY))
        assert listener.transparent.value
        assert inspectors(listener)[:2] == ["original_dst", "original_src"]
        assert unpacked(listener.listener_filters[1].typed_config).mark == 1337

    def test_there_is_none_without_capture(self) -> None:
        assert built(client=msgspec.structs.replace(CLIENT, mode=Mode.NONE)) == {}

    def test_its_port_is_the_meshs(self) -> None:
        listener = virtual(config=MeshConfig(proxy_inbound_listen_port=16006))
        assert listener.address.socket_address.port_value == 16006
        assert chains(listener, "virtualInbound-blackhole") == [({"port": 16006}, False)]

    def test_an_ipv6_workload_has_it_on_ipv6(self) -> None:
        listener = virtual(Inbound(8080, HTTP, WEB, 80), client=Client("default", addresses=("fd00::9",)))
        assert listener.address.socket_address.address == "::"
        assert chains(listener, "::_8080") == [({"port": 8080}, True)]

    def test_a_dual_stack_workload_has_it_on_both(self) -> None:
        listener = virtual(client=Client("default", addresses=("10.244.0.9", "fd00::9")))
        assert [a.address.socket_address.address for a in listener.additional_addresses] == ["::"]


class TestPorts:
    @pytest.mark.parametrize("protocol", [HTTP, Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB])
    def test_http_takes_everything_as_http(self, protocol: Protocol) -> None:
        assert chains(virtual(Inbound(8080, protocol, WEB, 80)), "0.0.0.0_8080") == [({"port": 8080}, True)]

    @pytest.mark.parametrize("protocol", [TCP, HTTPS, Protocol.TLS, Protocol.MONGO, Protocol.MYSQL])
    def test_tcp_takes_everything_as_bytes(self, protocol: Protocol) -> None:
        listener = virtual(Inbound(8080, protocol, WEB, 80))
        assert chains(listener, "0.0.0.0_8080") == [({"port": 8080}, False)]
        (chain,) = (c for c in listener.filter_chains if c.name == "0.0.0.0_8080")
        assert clusters(chain) == [("inbound|8080||", 1)]

    def test_an_undeclared_protocol_is_found_out_and_tls_passes_as_bytes(self) -> None:
        port = {"port": 8080}
        found = chains(virtual(Inbound(8080, AUTO, WEB, 80)), "0.0.0.0_8080")
        assert found == [(port | PLAIN_HTTP, True), (port | RAW, False), (port, False)]

    def test_http_has_its_routes_with_it(self) -> None:
        listener = virtual(Inbound(8080, HTTP, WEB, 80))
        (chain,) = (c for c in listener.filter_chains if c.name == "0.0.0.0_8080")
        manager = last_filter(chain)
        assert manager.route_config.name == "inbound|8080||"
        assert manager.stat_prefix == "inbound_0.0.0.0_8080"

    def test_the_server_is_the_application_or_else_the_mesh(self) -> None:
        (chain,) = (c for c in virtual(Inbound(8080, HTTP, WEB, 80)).filter_chains if c.name == "0.0.0.0_8080")
        manager = last_filter(chain)
        assert (manager.server_name, manager.server_header_transformation) == ("istio-envoy", 2)

    def test_settings_for_headers_change_what_proxies_add(self) -> None:
        headers = {"server": {"value": "me"}, "requestId": {"disabled": True}, "forwardedClientCert": "SANITIZE"}
        more = {"preserveHttp1HeaderCase": True, "envoyDebugHeaders": {"disabled": True}, "xForwardedPort": {"enabled": True}}
        settings = {"defaultConfig": {"proxyHeaders": headers | more}}
        config = msgspec.convert(settings, MeshConfig, dec_hook=decode_hook)
        (chain,) = (c for c in virtual(Inbound(8080, HTTP, WEB, 80), config=config).filter_chains if c.name == "0.0.0.0_8080")
        manager = last_filter(chain)
        assert manager.server_name == "me"
        assert not manager.generate_request_id.value
        assert manager.HasField("generate_request_id")
        assert manager.forward_client_cert_details == 0
        assert manager.append_x_forwarded_port
        assert manager.http_protocol_options.header_key_format.stateful_formatter.name == "preserve_case"
        assert unpacked(manager.http_filters[-1].typed_config).suppress_envoy_headers

    def test_connections_are_counted_under_the_meshs_pattern(self) -> None:
        config = msgspec.convert({"inboundClusterStatName": "%SERVICE%_%SERVICE_PORT%"}, MeshConfig)
        (chain,) = (c for c in virtual(Inbound(3306, TCP, WEB, 80), config=config).filter_chains if c.name == "0.0.0.0_3306")
        assert last_filter(chain).stat_prefix == "web.default_80"

    def test_the_proxys_own_port_is_nobodys(self) -> None:
        listener = virtual(Inbound(15006, HTTP, WEB, 80))
        assert [c.name for c in listener.filter_chains if c.filter_chain_match.destination_port.value == 15006] == [
            "virtualInbound-blackhole"
        ]


class TestInspectors:
    def test_declared_ports_wait_for_no_first_bytes(self) -> None:
        listener = virtual(Inbound(3306, TCP, WEB, 80), Inbound(8080, HTTP, WEB, 81), Inbound(9000, AUTO, WEB, 82))
        assert disabled_at(listener, "tls_inspector") == [3306, 8080, 15006]
        assert disabled_at(listener, "http_inspector") == [3306, 8080, 15006]

    def test_tls_is_looked_for_before_http(self) -> None:
        assert inspectors(virtual()) == ["original_dst", "tls_inspector", "http_inspector"]

    def test_one_that_few_ports_need_runs_only_there(self) -> None:
        (tls,) = port_inspectors([(0, False, False), (443, True, False), (80, False, False)])
        assert tls["filter_disabled"] == {"not_match": {"destination_port_range": {"start": 443, "end": 444}}}

    def test_one_that_no_port_needs_is_not_there(self) -> None:
        assert port_inspectors([(0, False, False), (80, False, False)]) == []


class TestBound:
    def test_an_inbound_with_an_address_has_a_listener_there(self) -> None:
        found = built(Inbound(9080, HTTP, WEB, 80, bind="127.0.0.1"), client=msgspec.structs.replace(CLIENT, mode=Mode.NONE))
        listener = found["127.0.0.1_9080"]
        assert [(matched(c), is_http(c)) for c in listener.filter_chains] == [({}, True)]
        assert inspectors(listener) == []
        assert not listener.HasField("bind_to_port")

    def test_it_has_no_chain_in_the_shared_listener(self) -> None:
        found = built(Inbound(9080, TCP, WEB, 80, bind="10.244.0.9"))
        assert set(found) == {"virtualInbound", "10.244.0.9_9080"}
        assert chains(found["virtualInbound"], "0.0.0.0_9080") == []

    def test_it_finds_out_what_is_not_declared(self) -> None:
        listener = built(Inbound(9080, AUTO, WEB, 80, bind="10.244.0.9"))["10.244.0.9_9080"]
        assert inspectors(listener) == ["tls_inspector", "http_inspector"]
        assert [matched(c) for c in listener.filter_chains] == [PLAIN_HTTP, RAW, {}]

    def test_a_unix_socket_is_a_pipe(self) -> None:
        listener = built(Inbound(0, HTTP, None, bind="unix:///run/in.sock"))["unix:///run/in.sock_0"]
        assert listener.address.pipe.path == "/run/in.sock"
