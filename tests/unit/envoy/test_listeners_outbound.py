"""What outbound listeners are made of."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from support.chains import clusters, http_filters, inspectors, is_http, last_filter, matched, unpacked
from support.seen import Seen, entry, service

from xds.envoy.clusters import outbound_clusters
from xds.envoy.listeners import http_proxy, outbound_listener, plan, virtual_outbound
from xds.mesh.model import Client, Egress, Mode, Protocol, Resolution
from xds.objects import MeshConfig, OutboundTrafficPolicy, TrafficPolicy, VirtualService
from xds.objects.meta import decode_hook

HTTP, TCP, AUTO, TLS = Protocol.HTTP, Protocol.TCP, Protocol.AUTO, Protocol.TLS
CLIENT = Client("default", labels=(("app", "web"),), addresses=("10.244.0.9",))
V6 = Client("default", addresses=("fd00::9",))
DUAL = Client("default", addresses=("10.244.0.9", "fd00::9"))
ANY = OutboundTrafficPolicy(mode="ALLOW_ANY")
REGISTRY = OutboundTrafficPolicy(mode="REGISTRY_ONLY")
PLAIN_HTTP = {"transport": "raw_buffer", "applications": ["http/1.0", "http/1.1", "h2c"]}


def rule(host: str, **spec: Any) -> VirtualService:
    value = {"metadata": {"name": "r", "namespace": "default"}, "spec": {"hosts": [host], **spec}}
    return msgspec.convert(value, VirtualService, dec_hook=decode_hook)


def policy(**value: Any) -> TrafficPolicy:
    return msgspec.convert(value, TrafficPolicy, dec_hook=decode_hook)


def to(host: str, port: int | None = None, weight: int | None = None, subset: str | None = None) -> dict[str, Any]:
    """A route destination."""
    destination = {"host": host} | ({"port": {"number": port}} if port else {}) | ({"subset": subset} if subset else {})
    return {"destination": destination} | ({} if weight is None else {"weight": weight})


def built(view: Seen, client: Client = CLIENT, policy: OutboundTrafficPolicy = ANY, egress: Iterable[Egress] = ()) -> dict[str, Any]:
    binds = plan(view, tuple(egress) or view.all_egress(), client).binds
    return {name: outbound_listener(view, client, bind, policy) for name, bind in binds.items()}


def only(view: Seen, client: Client = CLIENT, **kwargs: Any) -> Any:
    (listener,) = built(view, client, **kwargs).values()
    return listener


class TestHttp:
    def test_what_is_not_http_goes_where_it_was_going(self) -> None:
        listener = only(Seen(service("web.x", (80, HTTP))))
        (chain,) = listener.filter_chains
        assert matched(chain) == PLAIN_HTTP
        assert clusters(listener.default_filter_chain) == [("PassthroughCluster", 1)]
        assert listener.default_filter_chain.name == "PassthroughFilterChain"
        assert inspectors(listener) == ["tls_inspector", "http_inspector"]

    def test_registry_only_lets_nothing_else_through(self) -> None:
        listener = only(Seen(service("web.x", (80, HTTP))), policy=REGISTRY)
        assert clusters(listener.default_filter_chain) == [("BlackHoleCluster", 1)]

    def test_routes_are_asked_for_by_port_and_for_a_limited_time(self) -> None:
        manager = last_filter(only(Seen(service("web.x", (80, HTTP)))).filter_chains[0])
        assert manager.rds.route_config_name == "80"
        assert manager.rds.config_source.HasField("ads")
        assert manager.rds.config_source.initial_fetch_timeout.ToTimedelta() > timedelta()
        assert manager.stat_prefix == "outbound_0.0.0.0_80"

    def test_it_is_not_bound_to_its_port(self) -> None:
        listener = only(Seen(service("web.x", (80, HTTP))))
        assert listener.bind_to_port.value is False
        assert listener.HasField("bind_to_port")
        assert listener.traffic_direction == 2

    def test_timeouts_are_the_applications(self) -> None:
        manager = last_filter(only(Seen(service("web.x", (80, HTTP)))).filter_chains[0])
        assert manager.stream_idle_timeout.ToTimedelta() == timedelta()
        assert manager.HasField("stream_idle_timeout")
        assert [u.upgrade_type for u in manager.upgrade_configs] == ["websocket"]

    def test_filters_are_in_istios_order(self) -> None:
        chain = only(Seen(service("web.x", (80, HTTP)))).filter_chains[0]
        assert http_filters(chain) == ["grpc_stats", "fault", "cors", "header_mutation", "router"]
        chain = only(Seen(service("web.x", (80, Protocol.GRPC_WEB)))).filter_chains[0]
        assert http_filters(chain) == ["grpc_web", "grpc_stats", "fault", "cors", "header_mutation", "router"]

    def test_http_1_0_is_served_to_clients_that_say_so(self) -> None:
        old = msgspec.structs.replace(CLIENT, http10=True)
        view = Seen(service("web.x", (80, HTTP)))
        assert last_filter(only(view, old).filter_chains[0]).http_protocol_options.accept_http_10
        assert not last_filter(only(view).filter_chains[0]).HasField("http_protocol_options")

    @pytest.mark.parametrize(
        ("normalization", "expected"),
        [
            ("NONE", (False, False, 1)),
            ("BASE", (True, False, 1)),
            ("DEFAULT", (True, False, 1)),
            ("MERGE_SLASHES", (True, True, 1)),
            ("DECODE_AND_MERGE_SLASHES", (True, True, 4)),
        ],
    )
    def test_paths_are_normalized_as_the_mesh_says(self, normalization: str, expected: tuple[bool, bool, int]) -> None:
        config = msgspec.convert({"pathNormalization": {"normalization": normalization}}, MeshConfig)
        manager = last_filter(only(Seen(service("web.x", (80, HTTP)), config=config)).filter_chains[0])
        escaped = manager.path_with_escaped_slashes_action
        assert (manager.normalize_path.value, manager.merge_slashes, escaped) == expected

    def test_a_listener_of_its_own_takes_all_as_http(self) -> None:
        own = Egress(hosts=(("web.x", "default"),), port=80, protocol=HTTP, bind="127.0.0.5", captured=False)
        listener = only(Seen(service("web.x", (80, HTTP))), egress=[own])
        assert matched(listener.filter_chains[0]) == {}
        assert inspectors(listener) == []
        assert not listener.HasField("default_filter_chain")
        assert not listener.HasField("bind_to_port")

    def test_a_unix_socket_is_a_pipe(self) -> None:
        own = Egress(hosts=(("web.x", "default"),), protocol=HTTP, bind="unix:///run/out.sock")
        assert only(Seen(service("web.x", (80, HTTP))), egress=[own]).address.pipe.path == "/run/out.sock"


class TestTcp:
    view = Seen(service("db.x", (3306, TCP)))

    def test_a_declared_port_waits_for_no_first_bytes(self) -> None:
        listener = only(self.view)
        assert listener.name == "10.96.0.1_3306"
        assert inspectors(listener) == []
        assert not listener.continue_on_listener_filters_timeout
        (chain,) = listener.filter_chains
        assert matched(chain) == {}
        assert clusters(chain) == [("outbound|3306||db.x", 1)]
        assert last_filter(chain).stat_prefix == "outbound|3306||db.x"
        assert not listener.HasField("default_filter_chain")

    def test_a_detected_port_has_http_by_route_table_and_the_rest_by_default(self) -> None:
        listener = only(Seen(service("a.x", (9000, AUTO))))
        (http,) = listener.filter_chains
        assert (matched(http), last_filter(http).rds.route_config_name) == (PLAIN_HTTP, "a.x:9000")
        assert clusters(listener.default_filter_chain) == [("outbound|9000||a.x", 1)]

    def test_detection_gives_up_after_the_meshs_timeout(self) -> None:
        config = msgspec.convert({"protocolDetectionTimeout": "5s"}, MeshConfig, dec_hook=decode_hook)
        listener = only(Seen(service("a.x", (9000, AUTO)), config=config))
        assert listener.listener_filters_timeout.ToTimedelta() == timedelta(seconds=5)
        assert listener.continue_on_listener_filters_timeout

    def test_a_network_takes_its_addresses_only(self) -> None:
        listener = only(Seen(entry("net.x", (6379, TCP), at=("192.0.2.0/24", "198.51.100.0/25"))))
        assert matched(listener.filter_chains[0]) == {"subnets": ["192.0.2.0/24", "198.51.100.0/25"]}
        assert clusters(listener.default_filter_chain) == [("PassthroughCluster", 1)]

    def test_http_to_a_detected_network_is_found_as_elsewhere(self) -> None:
        listener = only(Seen(entry("net.x", (80, AUTO), at="192.0.2.0/24")))
        here = {"subnets": ["192.0.2.0/24"]}
        found = [(matched(chain), is_http(chain)) for chain in listener.filter_chains]
        assert (here | PLAIN_HTTP, True) in found
        assert (here | {"transport": "raw_buffer"}, False) in found
        assert (here, False) in found

    def test_the_destinations_policy_bounds_connections(self) -> None:
        tcp = {"idleTimeout": "30s", "maxConnectionDuration": "1h"}
        view = Seen(service("db.x", (3306, TCP)), policies={"db.x": policy(connectionPool={"tcp": tcp})})
        proxy = last_filter(only(view).filter_chains[0])
        assert proxy.idle_timeout.ToTimedelta() == timedelta(seconds=30)
        assert proxy.max_downstream_connection_duration.ToTimedelta() == timedelta(hours=1)

    def test_connections_stay_with_the_endpoint_of_their_source_address(self) -> None:
        sticky = policy(loadBalancer={"consistentHash": {"useSourceIp": True}})
        proxy = last_filter(only(Seen(service("db.x", (3306, TCP)), policies={"db.x": sticky})).filter_chains[0])
        assert [h.HasField("source_ip") for h in proxy.hash_policy] == [True]

    @pytest.mark.parametrize(("protocol", "post"), [(None, False), ("CONNECT", False), ("POST", True)])
    def test_connections_can_be_tunnelled(self, protocol: str | None, post: bool) -> None:
        tunnel = {"targetHost": "fd00::1", "targetPort": 443} | ({"protocol": protocol} if protocol else {})
        view = Seen(service("proxy.x", (3128, TCP)), policies={"proxy.x": policy(tunnel=tunnel)})
        tunneling = last_filter(only(view).filter_chains[0]).tunneling_config
        assert (tunneling.hostname, tunneling.use_post) == ("[fd00::1]:443", post)


class TestTcpRules:
    def routed(self, *tcp: dict[str, Any], client: Client = CLIENT) -> Any:
        return only(Seen(service("db.x", (3306, TCP)), rules=[rule("db.x", tcp=list(tcp))]), client)

    def test_weights_split_connections(self) -> None:
        listener = self.routed({"route": [to("db.x", weight=80, subset="v1"), to("db.x", weight=20, subset="v2")]})
        (chain,) = listener.filter_chains
        assert clusters(chain) == [("outbound|3306|v1|db.x", 80), ("outbound|3306|v2|db.x", 20)]
        assert last_filter(chain).stat_prefix == "r.default"
        assert "virtual-service/r" in str(chain.metadata)

    def test_destinations_without_weight_get_nothing(self) -> None:
        listener = self.routed({"route": [to("db.x", weight=100, subset="v1"), to("db.x", weight=0, subset="v2")]})
        assert clusters(listener.filter_chains[0]) == [("outbound|3306|v1|db.x", 1)]

    def test_a_single_destination_needs_no_weight(self) -> None:
        assert clusters(self.routed({"route": [to("db.x", subset="v2")]}).filter_chains[0]) == [("outbound|3306|v2|db.x", 1)]

    def test_a_destination_without_port_means_its_only_one(self) -> None:
        moved = rule("db.x", tcp=[{"route": [to("new.x")]}])
        view = Seen(service("db.x", (3306, TCP)), service("new.x", (5432, TCP), at=()), rules=[moved])
        listener = built(view)["10.96.0.1_3306"]
        assert clusters(listener.filter_chains[0]) == [("outbound|5432||new.x", 1)]

    def test_a_destination_nobody_knows_is_asked_for_at_the_callers_port(self) -> None:
        assert clusters(self.routed({"route": [to("gone.x")]}).filter_chains[0]) == [("outbound|3306||gone.x", 1)]

    def test_the_policy_is_the_first_destinations(self) -> None:
        view = Seen(
            service("db.x", (3306, TCP)),
            rules=[rule("db.x", tcp=[{"route": [to("db.x", weight=1, subset="v1"), to("db.x", weight=1)]}])],
            policies={("db.x", "v1"): policy(connectionPool={"tcp": {"idleTimeout": "7s"}})},
        )
        assert last_filter(only(view).filter_chains[0]).idle_timeout.ToTimedelta() == timedelta(seconds=7)

    def test_subnets_take_their_part_and_the_service_the_rest(self) -> None:
        listener = self.routed({"match": [{"destinationSubnets": ["10.96.0.77/24"]}], "route": [to("db.x", subset="v1")]})
        assert [(matched(c), clusters(c)) for c in listener.filter_chains] == [
            ({"subnets": ["10.96.0.0/24"]}, [("outbound|3306|v1|db.x", 1)])
        ]
        assert clusters(listener.default_filter_chain) == [("outbound|3306||db.x", 1)]

    def test_the_first_rule_that_takes_all_ends_the_list(self) -> None:
        listener = self.routed({"route": [to("db.x", subset="v1")]}, {"route": [to("db.x", subset="v2")]})
        assert [clusters(c) for c in listener.filter_chains] == [[("outbound|3306|v1|db.x", 1)]]

    @pytest.mark.parametrize(
        ("match", "takes"),
        [
            ({"port": 3306}, True),
            ({"port": 3307}, False),
            ({"sourceLabels": {"app": "web"}}, True),
            ({"sourceLabels": {"app": "api"}}, False),
            ({"sourceNamespace": "default"}, True),
            ({"sourceNamespace": "other"}, False),
            ({"gateways": ["mesh"]}, True),
            ({"gateways": ["default/edge"]}, False),
            ({"destinationSubnets": ["no network"]}, False),
        ],
    )
    def test_conditions_on_the_client_are_decided_here(self, match: dict[str, Any], takes: bool) -> None:
        listener = self.routed({"match": [match], "route": [to("db.x", subset="v1")]})
        (chain,) = listener.filter_chains
        assert clusters(chain) == [("outbound|3306|v1|db.x" if takes else "outbound|3306||db.x", 1)]


class TestTls:
    def test_a_service_with_an_address_needs_no_name(self) -> None:
        listener = only(Seen(service("secure.x", (443, TLS))))
        assert [matched(c) for c in listener.filter_chains] == [{}]
        assert inspectors(listener) == []

    def test_services_without_address_are_told_apart_by_name(self) -> None:
        listener = only(Seen(entry("a.example.com", (443, TLS)), entry("*.example.org", (443, Protocol.HTTPS))))
        assert [(matched(c), clusters(c)) for c in listener.filter_chains] == [
            ({"sni": ["a.example.com"]}, [("outbound|443||a.example.com", 1)]),
            ({"sni": ["*.example.org"]}, [("outbound|443||*.example.org", 1)]),
        ]
        assert clusters(listener.default_filter_chain) == [("PassthroughCluster", 1)]
        assert inspectors(listener) == ["tls_inspector"]

    def test_a_younger_service_at_the_same_address_is_found_by_its_name(self) -> None:
        listener = only(Seen(entry("a.x", (443, TLS), at="192.0.2.1"), entry("b.x", (443, TLS), at="192.0.2.1")))
        assert [(matched(c), clusters(c)) for c in listener.filter_chains] == [({"sni": ["b.x"]}, [("outbound|443||b.x", 1)])]
        assert clusters(listener.default_filter_chain) == [("outbound|443||a.x", 1)]

    def test_names_in_rules_lead_to_their_routes(self) -> None:
        tls = [
            {"match": [{"sniHosts": ["a.x", "*.a.x"]}], "route": [to("secure.x", subset="a")]},
            {"match": [{"sniHosts": ["b.x"]}], "route": [to("secure.x", weight=1, subset="b"), to("secure.x", weight=3)]},
        ]
        listener = only(Seen(service("secure.x", (443, TLS)), rules=[rule("secure.x", tls=tls)]))
        assert [(matched(c), clusters(c)) for c in listener.filter_chains] == [
            ({"sni": ["a.x", "*.a.x"]}, [("outbound|443|a|secure.x", 1)]),
            ({"sni": ["b.x"]}, [("outbound|443|b|secure.x", 1), ("outbound|443||secure.x", 3)]),
        ]

    def test_a_name_taken_by_an_earlier_match_is_left_out_of_later_ones(self) -> None:
        tls = [
            {"match": [{"sniHosts": ["a.x", "b.x"]}], "route": [to("secure.x", subset="a")]},
            {"match": [{"sniHosts": ["B.x", "c.x"]}, {"sniHosts": ["a.x"]}], "route": [to("secure.x", subset="b")]},
        ]
        listener = only(Seen(service("secure.x", (443, TLS)), rules=[rule("secure.x", tls=tls)]))
        assert [matched(c) for c in listener.filter_chains] == [{"sni": ["a.x", "b.x"]}, {"sni": ["c.x"]}]

    def test_any_name_is_no_match(self) -> None:
        tls = [{"match": [{"sniHosts": ["*"]}], "route": [to("secure.x", subset="a")]}]
        listener = only(Seen(service("secure.x", (443, TLS)), rules=[rule("secure.x", tls=tls)]))
        assert [matched(c) for c in listener.filter_chains] == [{}]

    def test_subnets_of_a_match_replace_the_services(self) -> None:
        tls = [{"match": [{"sniHosts": ["a.x"], "destinationSubnets": ["198.51.100.0/24"]}], "route": [to("secure.x")]}]
        listener = only(Seen(entry("secure.x", (443, TLS), at="192.0.2.0/24"), rules=[rule("secure.x", tls=tls)]))
        assert [matched(c) for c in listener.filter_chains] == [{"subnets": ["198.51.100.0/24"], "sni": ["a.x"]}]

    def test_where_no_match_fits_the_client_the_service_takes_all(self) -> None:
        tls = [{"match": [{"sniHosts": ["a.x"], "sourceLabels": {"app": "api"}}], "route": [to("secure.x", subset="a")]}]
        listener = only(Seen(service("secure.x", (443, TLS)), rules=[rule("secure.x", tls=tls)]))
        assert [clusters(c) for c in listener.filter_chains] == [[("outbound|443||secure.x", 1)]]


class TestNamesResolvedWhenCalled:
    view = Seen(
        entry("*.example.com", (80, HTTP), (443, TLS), resolution=Resolution.DYNAMIC_DNS),
        service("web.x", (81, HTTP)),
        entry("a.example.org", (443, TLS)),
    )

    def test_http_listeners_of_such_services_resolve_hosts(self) -> None:
        listeners = built(self.view)
        assert http_filters(listeners["0.0.0.0_80"].filter_chains[0])[-3:] == ["dynamic_forward_proxy", "header_mutation", "router"]
        assert "dynamic_forward_proxy" not in http_filters(listeners["0.0.0.0_81"].filter_chains[0])

    def test_tls_chains_of_such_services_resolve_server_names(self) -> None:
        chains = built(self.view)["0.0.0.0_443"].filter_chains
        assert [[f.name.rpartition(".")[2] for f in chain.filters] for chain in chains] == [
            ["sni_dynamic_forward_proxy", "tcp_proxy"],
            ["tcp_proxy"],
        ]
        assert unpacked(chains[0].filters[0].typed_config).port_value == 443

    def test_filters_and_clusters_share_a_cache_of_names(self) -> None:
        listeners = built(self.view)
        http = unpacked(last_filter(listeners["0.0.0.0_80"].filter_chains[0]).http_filters[-3].typed_config)
        tls = unpacked(listeners["0.0.0.0_443"].filter_chains[0].filters[0].typed_config)
        (cluster, _) = outbound_clusters(self.view, self.view.services["*.example.com"], CLIENT)
        cached = unpacked(cluster.cluster_type.typed_config)
        assert http.dns_cache_config == tls.dns_cache_config == cached.dns_cache_config


class TestStatistics:
    config = msgspec.convert({"outboundClusterStatName": "%SERVICE%_%SERVICE_PORT%_%SUBSET_NAME%"}, MeshConfig)

    def test_connections_are_counted_under_the_meshs_pattern(self) -> None:
        view = Seen(service("db.x", (3306, TCP)), config=self.config)
        assert last_filter(only(view).filter_chains[0]).stat_prefix == "db.default_3306_"

    def test_so_are_those_to_the_one_destination_of_a_rule(self) -> None:
        rules = [rule("db.x", tcp=[{"route": [to("db.x", subset="v1")]}])]
        view = Seen(service("db.x", (3306, TCP)), rules=rules, config=self.config)
        assert last_filter(only(view).filter_chains[0]).stat_prefix == "db.default_3306_v1"


class TestVirtualOutbound:
    def test_it_hands_connections_to_the_listener_of_their_address(self) -> None:
        listener: Any = virtual_outbound(MeshConfig(), CLIENT, ANY)
        assert listener.use_original_dst.value
        assert (listener.name, listener.address.socket_address.port_value) == ("virtualOutbound", 15001)
        assert not listener.HasField("transparent")

    def test_what_comes_to_its_own_port_ends_there(self) -> None:
        listener: Any = virtual_outbound(MeshConfig(), CLIENT, ANY)
        found = [(chain.name, matched(chain), clusters(chain)) for chain in listener.filter_chains]
        assert found == [
            ("virtualOutbound-blackhole", {"port": 15001}, [("BlackHoleCluster", 1)]),
            ("virtualOutbound-catchall-tcp", {}, [("PassthroughCluster", 1)]),
        ]

    def test_registry_only_lets_nothing_through(self) -> None:
        listener: Any = virtual_outbound(MeshConfig(), CLIENT, REGISTRY)
        assert clusters(listener.filter_chains[1]) == [("BlackHoleCluster", 1)]

    def test_an_egress_proxy_takes_it_all(self) -> None:
        proxy = {"host": "egress.x", "port": {"number": 8443}, "subset": "v1"}
        proxied = msgspec.convert({"mode": "ALLOW_ANY", "egressProxy": proxy}, OutboundTrafficPolicy)
        listener: Any = virtual_outbound(MeshConfig(), CLIENT, proxied)
        assert clusters(listener.filter_chains[1]) == [("outbound|8443|v1|egress.x", 1)]

    def test_there_is_none_without_capture(self) -> None:
        assert virtual_outbound(MeshConfig(), msgspec.structs.replace(CLIENT, mode=Mode.NONE), ANY) is None

    def test_a_transparent_proxy_has_a_transparent_one(self) -> None:
        listener: Any = virtual_outbound(MeshConfig(), msgspec.structs.replace(CLIENT, mode=Mode.TPROXY), ANY)
        assert listener.transparent.value

    def test_its_addresses_are_of_the_workloads_families(self) -> None:
        six: Any = virtual_outbound(MeshConfig(), V6, ANY)
        both: Any = virtual_outbound(MeshConfig(), DUAL, ANY)
        assert six.address.socket_address.address == "::"
        assert [a.address.socket_address.address for a in (both, *both.additional_addresses)] == ["0.0.0.0", "::"]


class TestHttpProxy:
    def test_it_takes_absolute_urls_on_loopback(self) -> None:
        listener: Any = http_proxy(MeshConfig(proxy_http_port=15002), CLIENT)
        assert listener.name == "127.0.0.1_15002"
        manager = last_filter(listener.filter_chains[0])
        assert manager.http_protocol_options.allow_absolute_url.value
        assert manager.rds.route_config_name == "http_proxy"

    def test_there_is_none_without_a_port_for_it(self) -> None:
        assert http_proxy(MeshConfig(), CLIENT) is None


class TestAccessLogs:
    view = (service("web.x", (80, HTTP)), service("db.x", (3306, TCP), at="10.96.0.2"))

    def logged(self, **settings: Any) -> list[Any]:
        """The access logs of an HTTP chain, a TCP chain and their listener."""
        config = msgspec.convert(settings, MeshConfig)
        listeners = built(Seen(*self.view, config=config))
        http, tcp = listeners["0.0.0.0_80"], listeners["10.96.0.2_3306"]
        return [last_filter(http.filter_chains[0]).access_log, last_filter(tcp.filter_chains[0]).access_log, http.access_log]

    def test_there_are_none_without_a_file(self) -> None:
        assert [list(logs) for logs in self.logged()] == [[], [], []]

    def test_lines_end_where_the_format_does_not_say_so(self) -> None:
        for (log,) in self.logged(accessLogFile="/dev/stdout", accessLogFormat="%DURATION%"):
            written = unpacked(log.typed_config)
            assert (written.path, written.log_format.text_format_source.inline_string) == ("/dev/stdout", "%DURATION%\n")

    def test_listeners_log_only_what_no_chain_took(self) -> None:
        _, _, (log,) = self.logged(accessLogFile="/dev/stdout")
        assert list(log.filter.response_flag_filter.flags) == ["NR"]
        assert [len(logs) for logs in self.logged(accessLogFile="/dev/stdout", disableEnvoyListenerLog=True)] == [1, 1, 0]

    def test_json_keys_are_the_formats_or_istios(self) -> None:
        own = {"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON", "accessLogFormat": '{"took": "%DURATION%"}'}
        assert list(unpacked(self.logged(**own)[0][0].typed_config).log_format.json_format.keys()) == ["took"]
        del own["accessLogFormat"]
        assert "upstream_cluster" in unpacked(self.logged(**own)[0][0].typed_config).log_format.json_format

    def test_formatters_come_with_their_commands(self) -> None:
        logs = self.logged(accessLogFile="/dev/stdout", accessLogFormat="%REQ_WITHOUT_QUERY(:PATH)%")
        assert [f.name for f in unpacked(logs[0][0].typed_config).log_format.formatters] == ["envoy.formatter.req_without_query"]
