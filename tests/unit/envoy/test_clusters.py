"""What clusters are made of: DestinationRule's fields as Envoy's."""

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from support.chains import unpacked
from support.destinations import HOST, SIDECAR, Destination, at, cluster, decoded, entry, http_options, reviews

from xds import pb
from xds.envoy.clusters import (
    black_hole_cluster,
    inbound_cluster,
    inbound_passthrough_cluster,
    outbound_clusters,
    passthrough_cluster,
    stat_name,
)
from xds.envoy.dns import dns_cache
from xds.mesh.model import Client, Inbound, Mode, Port, Protocol, Resolution
from xds.objects import ConnectionPoolSettings, MeshConfig

HTTP, HTTP2, GRPC, TCP, AUTO, UDP = (Protocol[p] for p in ("HTTP", "HTTP2", "GRPC", "TCP", "AUTO", "UDP"))
GATEWAY = Client("default", addresses=("10.0.0.1",), kind="router")
UNCAPTURED = Client("default", addresses=("10.0.0.1",), mode=Mode.NONE)
V6 = Client("default", addresses=("fd00::1",))
DUAL = Client("default", addresses=("10.0.0.1", "fd00::1"))
UNLIMITED = 2**32 - 1


def plain(message: Any) -> dict[str, Any]:
    """A message as JSON has it, with proto names."""
    return MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pb.POOL)


def lb_policy(cluster: Any) -> str:
    return str(plain(cluster).get("lb_policy", "ROUND_ROBIN"))


def thresholds(cluster: Any) -> dict[str, Any]:
    (found,) = cluster.circuit_breakers.thresholds
    return plain(found)


def of_protocol(protocol: Protocol, policy: dict[str, Any] | None = None, client: Client = SIDECAR, **config: Any) -> Any:
    """The HTTP options of a port that declares `protocol`."""
    return http_options(cluster(policy, client, service=reviews(Port(9080, "p", protocol)), config=config))


def pool(**http: Any) -> dict[str, Any]:
    return {"connectionPool": {"http": http}}


def headless(*ports: Port) -> Any:
    return reviews(*ports, headless=True, resolution=Resolution.PASSTHROUGH)


class TestWhichClusters:
    def test_each_port_has_a_cluster_of_all_endpoints_and_one_of_each_subset(self) -> None:
        service = reviews(Port(80, "http", HTTP), Port(90, "tcp", TCP))
        view = Destination(service, subsets=[{"name": "v1"}, {"name": "v2"}])
        assert list(view.clusters()) == [f"outbound|{port}|{subset}|{HOST}" for port in (80, 90) for subset in ("", "v1", "v2")]

    def test_udp_ports_have_none(self) -> None:
        assert Destination(reviews(Port(53, "dns", UDP))).clusters() == {}

    def test_a_subset_has_its_own_policy_over_the_rules(self) -> None:
        view = Destination(
            policy={"loadBalancer": {"simple": "RANDOM"}},
            subsets=[{"name": "v1", "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}}}, {"name": "v2"}],
        )
        policies = [lb_policy(c) for c in view.clusters().values()]
        assert policies == ["RANDOM", "ROUND_ROBIN", "RANDOM"]

    def test_a_port_has_its_own_policy_over_the_rules(self) -> None:
        policy = {
            "loadBalancer": {"simple": "RANDOM"},
            "portLevelSettings": [{"port": {"number": 90}, "loadBalancer": {"simple": "ROUND_ROBIN"}}],
        }
        view = Destination(reviews(Port(80, "a", HTTP), Port(90, "b", HTTP)), policy)
        assert [lb_policy(c) for c in view.clusters().values()] == ["RANDOM", "ROUND_ROBIN"]


class TestMetadata:
    def test_it_names_service_port_rule_and_subset(self) -> None:
        view = Destination(subsets=[{"name": "v1"}])
        assert plain(view.clusters()[f"outbound|9080|v1|{HOST}"].metadata)["filter_metadata"]["istio"] == {
            "services": [{"host": HOST, "name": "reviews", "namespace": "default"}],
            "default_original_port": 9080.0,
            "config": "/apis/networking.istio.io/v1/namespaces/default/destination-rule/reviews",
            "subset": "v1",
        }

    def test_without_a_rule_it_names_none(self) -> None:
        assert set(plain(cluster().metadata)["filter_metadata"]["istio"]) == {"services", "default_original_port"}


class TestStatNames:
    def test_without_a_pattern_statistics_have_the_clusters_name(self) -> None:
        assert cluster().alt_stat_name == ""

    def test_a_pattern_is_filled_in(self) -> None:
        pattern = "%SERVICE%_%SERVICE_FQDN%_%SERVICE_PORT%_%SERVICE_PORT_NAME%_%TARGET_PORT%_%SUBSET_NAME%"
        port = Port(9080, "http", HTTP, 8080)
        assert stat_name(pattern, reviews(port), port, "v1") == f"reviews.default_{HOST}_9080_http_8080_v1"

    def test_the_meshs_pattern_is_the_clusters(self) -> None:
        assert cluster(config={"outboundClusterStatName": "%SERVICE%"}).alt_stat_name == "reviews.default"

    def test_a_host_of_a_service_entry_is_not_shortened(self) -> None:
        assert stat_name("%SERVICE%", entry("a.example.com"), Port(80)) == "a.example.com"


class TestLoadBalancer:
    @pytest.mark.parametrize(
        ("simple", "expected"),
        [
            (None, "LEAST_REQUEST"),
            ("UNSPECIFIED", "LEAST_REQUEST"),
            ("LEAST_CONN", "LEAST_REQUEST"),
            ("LEAST_REQUEST", "LEAST_REQUEST"),
            ("ROUND_ROBIN", "ROUND_ROBIN"),
            ("RANDOM", "RANDOM"),
        ],
    )
    def test_simple_ones(self, simple: str | None, expected: str) -> None:
        policy = None if simple is None else {"loadBalancer": {"simple": simple}}
        assert lb_policy(cluster(policy)) == expected

    def test_passthrough_goes_where_the_caller_was_going(self) -> None:
        found = cluster({"loadBalancer": {"simple": "PASSTHROUGH"}}, service=reviews(Port(9080, "http", HTTP, 8080)))
        assert (found.type, found.lb_policy) == (pb.Cluster.ORIGINAL_DST, pb.Cluster.CLUSTER_PROVIDED)
        # The call was for the service's own address, where its port is.
        assert not found.HasField("original_dst_lb_config")
        assert not found.HasField("eds_cluster_config")

    def test_consistent_hash_is_a_ring_of_at_least_1024(self) -> None:
        found = cluster({"loadBalancer": {"consistentHash": {"httpHeaderName": "x"}}})
        assert found.lb_policy == pb.Cluster.RING_HASH
        assert found.ring_hash_lb_config.minimum_ring_size.value == 1024

    @pytest.mark.parametrize("size", [{"ringHash": {"minimumRingSize": 2048}}, {"minimumRingSize": 2048}])
    def test_the_rings_size_may_be_given_in_both_places(self, size: dict[str, Any]) -> None:
        found = cluster({"loadBalancer": {"consistentHash": {"httpHeaderName": "x", **size}}})
        assert found.ring_hash_lb_config.minimum_ring_size.value == 2048

    @pytest.mark.parametrize(("maglev", "size"), [({}, 0), ({"tableSize": 1009}, 1009)])
    def test_maglev(self, maglev: dict[str, Any], size: int) -> None:
        found = cluster({"loadBalancer": {"consistentHash": {"httpHeaderName": "x", "maglev": maglev}}})
        assert found.lb_policy == pb.Cluster.MAGLEV
        assert found.maglev_lb_config.table_size.value == size

    @pytest.mark.parametrize("simple", ["ROUND_ROBIN", "LEAST_REQUEST"])
    def test_warmup_is_a_slow_start(self, simple: str) -> None:
        warmup = {"duration": "30s", "minimumPercent": 20, "aggression": 1.5}
        found = cluster({"loadBalancer": {"simple": simple, "warmup": warmup}})
        slow_start = plain(getattr(found, f"{simple.lower()}_lb_config").slow_start_config)
        assert slow_start["slow_start_window"] == "30s"
        assert slow_start["min_weight_percent"] == {"value": 20.0}
        assert slow_start["aggression"]["default_value"] == 1.5

    def test_the_deprecated_warmup_too(self) -> None:
        found = cluster({"loadBalancer": {"warmupDurationSecs": "10s"}})
        assert plain(found.least_request_lb_config.slow_start_config) == {"slow_start_window": "10s"}


class TestPanic:
    def test_endpoints_that_are_not_ready_are_never_a_last_resort(self) -> None:
        assert plain(cluster().common_lb_config) == {"healthy_panic_threshold": {}}

    def test_unless_the_rule_wants_it(self) -> None:
        found = cluster({"outlierDetection": {"minHealthPercent": 30}})
        assert found.common_lb_config.healthy_panic_threshold.value == 30

    def test_names_that_dns_resolves_have_no_readiness(self) -> None:
        assert not cluster(service=entry("a.example.com"), endpoints=[at("a.example.com")]).HasField("common_lb_config")


class TestLocality:
    def test_shares_need_locality_weights(self) -> None:
        settings = {"distribute": [{"from": "r/*", "to": {"r/*": 100}}]}
        found = cluster({"loadBalancer": {"localityLbSetting": settings}})
        assert found.common_lb_config.HasField("locality_weighted_lb_config")

    def test_shares_that_are_turned_off_do_not(self) -> None:
        settings = {"enabled": False, "distribute": [{"from": "r/*", "to": {"r/*": 100}}]}
        found = cluster({"loadBalancer": {"localityLbSetting": settings}})
        assert not found.common_lb_config.HasField("locality_weighted_lb_config")

    def test_zone_aware(self) -> None:
        found = cluster({"loadBalancer": {"zoneAwareLbSetting": {"enabled": True, "minClusterSize": 3}}})
        assert found.common_lb_config.zone_aware_lb_config.min_cluster_size.value == 3

    def test_the_services_traffic_distribution_stands_over_the_meshs_zone_awareness(self) -> None:
        config = {"zoneAwareLbSetting": {"enabled": True}}
        assert cluster(config=config).common_lb_config.HasField("zone_aware_lb_config")
        close = cluster(config=config, service=reviews(traffic_distribution="PreferClose"))
        assert not close.common_lb_config.HasField("zone_aware_lb_config")


class TestConnectionPool:
    def test_nothing_is_limited_by_default(self) -> None:
        assert thresholds(cluster()) == dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), UNLIMITED)

    def test_limits(self) -> None:
        http = {"http1MaxPendingRequests": 2, "http2MaxRequests": 3, "maxRetries": 4}
        assert thresholds(cluster({"connectionPool": {"tcp": {"maxConnections": 1}, "http": http}})) == {
            "max_connections": 1,
            "max_pending_requests": 2,
            "max_requests": 3,
            "max_retries": 4,
        }

    def test_a_retry_budget(self) -> None:
        budget = thresholds(cluster({"retryBudget": {"percent": 30, "minRetryConcurrency": 5}}))["retry_budget"]
        assert budget == {"budget_percent": {"value": 30.0}, "min_retry_concurrency": 5}

    def test_connecting_takes_as_long_as_the_mesh_allows(self) -> None:
        assert cluster(config={"connectTimeout": "3s"}).connect_timeout.ToTimedelta() == timedelta(seconds=3)

    def test_or_the_rule(self) -> None:
        found = cluster({"connectionPool": {"tcp": {"connectTimeout": "1.5s"}}}, config={"connectTimeout": "3s"})
        assert found.connect_timeout.ToTimedelta() == timedelta(seconds=1.5)

    def test_tcp_keepalive_is_off_by_default(self) -> None:
        assert not cluster().HasField("upstream_connection_options")

    def test_tcp_keepalive_of_the_rule_overrides_the_meshs_value_by_value(self) -> None:
        found = cluster(
            {"connectionPool": {"tcp": {"tcpKeepalive": {"time": "60s"}}}},
            config={"tcpKeepalive": {"probes": 5, "time": "7200s", "interval": "75s"}},
        )
        assert plain(found.upstream_connection_options.tcp_keepalive) == {
            "keepalive_probes": 5,
            "keepalive_time": 60,
            "keepalive_interval": 75,
        }

    def test_tcp_keepalive_is_what_a_socket_takes(self) -> None:
        found = cluster({"connectionPool": {"tcp": {"tcpKeepalive": {"probes": 1000, "time": "24h", "interval": "1500ms"}}}})
        assert plain(found.upstream_connection_options.tcp_keepalive) == {
            "keepalive_probes": 127,
            "keepalive_time": 32767,
            "keepalive_interval": 2,
        }

    def test_an_empty_tcp_keepalive_turns_it_on(self) -> None:
        assert cluster({"connectionPool": {"tcp": {"tcpKeepalive": {}}}}).upstream_connection_options.HasField("tcp_keepalive")

    def test_lifetimes_of_connections(self) -> None:
        policy = {
            "connectionPool": {
                "tcp": {"maxConnectionDuration": "60s"},
                "http": {"idleTimeout": "5s", "maxRequestsPerConnection": 7},
            }
        }
        assert plain(http_options(cluster(policy)).common_http_protocol_options) == {
            "idle_timeout": "5s",
            "max_connection_duration": "60s",
            "max_requests_per_connection": 7,
        }


class TestHttpVersion:
    @pytest.mark.parametrize("protocol", [HTTP, TCP])
    def test_plain_ports_keep_envoys_defaults(self, protocol: Protocol) -> None:
        assert of_protocol(protocol) is None

    @pytest.mark.parametrize("protocol", [HTTP2, GRPC, Protocol.GRPC_WEB])
    def test_declared_http2(self, protocol: Protocol) -> None:
        assert of_protocol(protocol).explicit_http_config.HasField("http2_protocol_options")

    def test_undeclared_ports_are_spoken_to_as_the_caller_speaks(self) -> None:
        assert of_protocol(AUTO).HasField("use_downstream_protocol_config")

    def test_but_not_by_gateways_which_find_out_nothing(self) -> None:
        assert of_protocol(AUTO, client=GATEWAY) is None

    def test_other_options_keep_http1_explicit(self) -> None:
        options = of_protocol(HTTP, pool(idleTimeout="5s"))
        assert options.explicit_http_config.HasField("http_protocol_options")

    @pytest.mark.parametrize(
        ("mesh", "rule", "protocol", "upgraded"),
        [
            ("DO_NOT_UPGRADE", "DEFAULT", HTTP, False),
            ("DO_NOT_UPGRADE", "UPGRADE", HTTP, True),
            ("DO_NOT_UPGRADE", "UPGRADE", AUTO, True),
            ("UPGRADE", "DEFAULT", HTTP, True),
            ("UPGRADE", "DEFAULT", AUTO, False),
            ("UPGRADE", "DEFAULT", TCP, False),
            ("UPGRADE", "DO_NOT_UPGRADE", HTTP, False),
        ],
    )
    def test_upgrades(self, mesh: str, rule: str, protocol: Protocol, upgraded: bool) -> None:
        options = of_protocol(protocol, pool(h2UpgradePolicy=rule), h2UpgradePolicy=mesh)
        found = options is not None and options.explicit_http_config.HasField("http2_protocol_options")
        assert found is upgraded

    def test_the_clients_protocol_stands_over_upgrades(self) -> None:
        options = of_protocol(HTTP, pool(useClientProtocol=True, h2UpgradePolicy="UPGRADE"))
        assert options.HasField("use_downstream_protocol_config")

    @pytest.mark.parametrize(("protocol", "config"), [(GRPC, "explicit_http_config"), (AUTO, "use_downstream_protocol_config")])
    def test_http2_limits(self, protocol: Protocol, config: str) -> None:
        settings = pool(maxConcurrentStreams=9, http2KeepAlive={"interval": "10s", "timeout": "2s"})
        assert plain(getattr(of_protocol(protocol, settings), config).http2_protocol_options) == {
            "max_concurrent_streams": 9,
            "connection_keepalive": {"interval": "10s", "timeout": "2s"},
        }


class TestOutlierDetection:
    def detection(self, **settings: Any) -> dict[str, Any]:
        return plain(cluster({"outlierDetection": settings}).outlier_detection)

    def test_none_by_default(self) -> None:
        assert not cluster().HasField("outlier_detection")

    def test_success_rates_never_count(self) -> None:
        assert self.detection() == {"enforcing_success_rate": 0}

    def test_5xx(self) -> None:
        found = self.detection(consecutive5xxErrors=7)
        assert (found["consecutive_5xx"], found["enforcing_consecutive_5xx"]) == (7, 100)

    def test_zero_turns_5xx_off(self) -> None:
        assert self.detection(consecutive5xxErrors=0)["enforcing_consecutive_5xx"] == 0

    def test_gateway_errors(self) -> None:
        found = self.detection(consecutiveGatewayErrors=2)
        assert (found["consecutive_gateway_failure"], found["enforcing_consecutive_gateway_failure"]) == (2, 100)

    def test_local_origin_failures_count_only_when_split(self) -> None:
        assert "consecutive_local_origin_failure" not in self.detection(consecutiveLocalOriginFailures=4)

    def test_local_origin_failures(self) -> None:
        found = self.detection(splitExternalLocalOriginErrors=True, consecutiveLocalOriginFailures=4)
        assert found == {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 4,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
        }

    def test_times_and_percentages(self) -> None:
        found = self.detection(interval="5s", baseEjectionTime="15s", maxEjectionPercent=50)
        assert (found["interval"], found["base_ejection_time"], found["max_ejection_percent"]) == ("5s", "15s", 50)

    def test_the_statuses_that_count(self) -> None:
        options = http_options(cluster({"outlierDetection": {"outlierDetectionHttpErrorCodes": [429, 503]}}))
        (header,) = options.outlier_detection.error_matcher.http_response_headers_match.headers
        assert (header.name, header.string_match.safe_regex.regex) == (":status", "429|503")


def tls(policy: dict[str, Any], **kwargs: Any) -> Any:
    """The UpstreamTlsContext under this `tls` of a DestinationRule."""
    return unpacked(cluster({"tls": policy}, **kwargs).transport_socket.typed_config)


def sans(validation: Any) -> list[tuple[str, str]]:
    matchers = validation.match_typed_subject_alt_names
    return [(type(m).SanType.Name(m.san_type), m.matcher.exact) for m in matchers]


class TestTls:
    def test_plain_by_default(self) -> None:
        assert not cluster().HasField("transport_socket")

    def test_disable_is_plain(self) -> None:
        assert not cluster({"tls": {"mode": "DISABLE"}}).HasField("transport_socket")

    def test_simple_trusts_public_authorities(self) -> None:
        validation = tls({"mode": "SIMPLE"}).common_tls_context.validation_context
        assert validation.trusted_ca.filename == "/etc/ssl/certs/ca-certificates.crt"

    def test_simple_with_files(self) -> None:
        found = tls({"mode": "SIMPLE", "sni": "a.example.com", "caCertificates": "/ca.pem", "caCrl": "/crl.pem"})
        assert found.sni == "a.example.com"
        assert found.common_tls_context.validation_context.trusted_ca.filename == "/ca.pem"
        assert found.common_tls_context.validation_context.crl.filename == "/crl.pem"

    def test_names_of_the_server_by_kind(self) -> None:
        found = tls({"mode": "SIMPLE", "subjectAltNames": ["a.example.com", "spiffe://td/ns/x/sa/y", "10.0.0.1"]})
        assert sans(found.common_tls_context.validation_context) == [
            ("DNS", "a.example.com"),
            ("URI", "spiffe://td/ns/x/sa/y"),
            ("IP_ADDRESS", "10.0.0.1"),
        ]

    def test_names_of_a_service_entry_where_the_rule_has_none(self) -> None:
        found = tls({"mode": "SIMPLE"}, service=reviews(subject_alt_names=("b.example.com",)))
        assert sans(found.common_tls_context.validation_context) == [("DNS", "b.example.com")]

    def test_mutual_with_files(self) -> None:
        found = tls({"mode": "MUTUAL", "clientCertificate": "/c.pem", "privateKey": "/k.pem", "caCertificates": "/ca.pem"})
        (certificate,) = found.common_tls_context.tls_certificates
        assert (certificate.certificate_chain.filename, certificate.private_key.filename) == ("/c.pem", "/k.pem")

    @pytest.mark.parametrize("client", [SIDECAR, Client("default", kind="router")])
    def test_mutual_with_a_credential(self, client: Client) -> None:
        context = tls({"mode": "MUTUAL", "credentialName": "web"}, client=client, selects=client is SIDECAR).common_tls_context
        assert [s.name for s in context.tls_certificate_sds_secret_configs] == ["kubernetes://web"]
        assert context.combined_validation_context.validation_context_sds_secret_config.name == "kubernetes://web-cacert"

    def test_simple_with_a_credential_has_no_certificate_of_its_own(self) -> None:
        context = tls({"mode": "SIMPLE", "credentialName": "web"}, selects=True).common_tls_context
        assert not context.tls_certificate_sds_secret_configs
        assert context.combined_validation_context.validation_context_sds_secret_config.name == "kubernetes://web-cacert"

    def test_without_a_workload_selector_a_sidecar_looks_at_no_credential(self) -> None:
        context = tls({"mode": "SIMPLE", "credentialName": "web"}).common_tls_context
        assert context.validation_context.trusted_ca.filename == "/etc/ssl/certs/ca-certificates.crt"

    def test_skipping_verification_skips_all_of_it(self) -> None:
        context = tls({"mode": "SIMPLE", "insecureSkipVerify": True, "subjectAltNames": ["a"]}).common_tls_context
        assert context.WhichOneof("validation_context_type") is None

    def test_the_meshs_own_certificates(self) -> None:
        found = tls({"mode": "ISTIO_MUTUAL", "subjectAltNames": ["spiffe://td/ns/x/sa/y"]})
        context = found.common_tls_context
        assert found.sni == f"outbound_.9080_._.{HOST}"
        assert [s.name for s in context.tls_certificate_sds_secret_configs] == ["default"]
        assert context.combined_validation_context.validation_context_sds_secret_config.name == "ROOTCA"
        assert sans(context.combined_validation_context.default_validation_context) == [("URI", "spiffe://td/ns/x/sa/y")]
        assert list(context.alpn_protocols) == ["istio"]

    def test_http2_is_offered_where_it_is_spoken(self) -> None:
        service = reviews(Port(9080, "grpc", GRPC))
        assert list(tls({"mode": "SIMPLE"}, service=service).common_tls_context.alpn_protocols) == ["h2"]
        assert list(tls({"mode": "ISTIO_MUTUAL"}, service=service).common_tls_context.alpn_protocols) == ["istio", "h2"]

    def test_versions_are_1_2_to_1_3(self) -> None:
        parameters = plain(tls({"mode": "SIMPLE"}).common_tls_context.tls_params)
        assert parameters == {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}

    def test_the_mesh_may_demand_1_3_of_itself(self) -> None:
        found = tls({"mode": "ISTIO_MUTUAL"}, config={"meshMTLS": {"minProtocolVersion": "TLSV1_3"}})
        assert plain(found.common_tls_context.tls_params)["tls_minimum_protocol_version"] == "TLSv1_3"

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"mode": "SIMPLE"}, (True, True)),
            ({"mode": "SIMPLE", "subjectAltNames": ["a"]}, (True, False)),
            ({"mode": "SIMPLE", "insecureSkipVerify": True}, (True, False)),
        ],
    )
    def test_the_requests_host_is_the_servers_name(self, settings: dict[str, Any], expected: tuple[bool, bool]) -> None:
        options = http_options(cluster({"tls": settings})).upstream_http_protocol_options
        assert (options.auto_sni, options.auto_san_validation) == expected

    @pytest.mark.parametrize("settings", [{"mode": "SIMPLE", "sni": "a"}, {"mode": "ISTIO_MUTUAL"}, {"mode": "DISABLE"}])
    def test_unless_the_rule_names_it(self, settings: dict[str, Any]) -> None:
        assert http_options(cluster({"tls": settings})) is None


class TestProxyProtocol:
    def test_around_a_plain_connection(self) -> None:
        socket = cluster({"proxyProtocol": {"version": "V2"}}).transport_socket
        assert socket.name == "envoy.transport_sockets.upstream_proxy_protocol"
        wrapped = unpacked(socket.typed_config)
        assert (wrapped.config.version, wrapped.transport_socket.name) == (1, "envoy.transport_sockets.raw_buffer")

    def test_around_tls(self) -> None:
        wrapped = unpacked(cluster({"proxyProtocol": {}, "tls": {"mode": "SIMPLE"}}).transport_socket.typed_config)
        assert (wrapped.config.version, wrapped.transport_socket.name) == (0, "envoy.transport_sockets.tls")


class TestWhereEndpointsComeFrom:
    def test_they_are_told_and_the_wait_for_them_ends(self) -> None:
        found = cluster()
        assert found.type == pb.Cluster.EDS
        assert found.eds_cluster_config.service_name == found.name
        assert found.eds_cluster_config.eds_config.HasField("ads")
        # Absent is Envoy's 15 s; zero would be for ever.
        assert not found.eds_cluster_config.eds_config.HasField("initial_fetch_timeout")

    def test_names_are_resolved_to_all_their_addresses(self) -> None:
        found = cluster(service=entry("a.example.com"), endpoints=[at("a.example.com", 443), at("b.example.com", 443)])
        options = unpacked(found.cluster_type.typed_config)
        assert found.cluster_type.name == "envoy.clusters.dns"
        assert options.all_addresses_in_single_endpoint is False
        assert options.dns_refresh_rate.ToTimedelta() == timedelta(seconds=60)
        assert options.respect_dns_ttl
        endpoints = found.load_assignment.endpoints[0].lb_endpoints
        assert [e.endpoint.address.socket_address.address for e in endpoints] == ["a.example.com", "b.example.com"]

    def test_or_one_name_to_one_address_at_a_time(self) -> None:
        service = entry("a.example.com", resolution=Resolution.DNS_ROUND_ROBIN)
        found = cluster(service=service, endpoints=[at("a.example.com", 443), at("b.example.com", 443)])
        assert unpacked(found.cluster_type.typed_config).all_addresses_in_single_endpoint is True
        assert len(found.load_assignment.endpoints[0].lb_endpoints) == 1

    @pytest.mark.parametrize("resolution", [Resolution.DNS, Resolution.DNS_ROUND_ROBIN])
    def test_a_subset_of_no_name_is_an_empty_cluster(self, resolution: Resolution) -> None:
        found = cluster(service=entry("a.example.com", resolution=resolution))
        assert unpacked(found.cluster_type.typed_config).all_addresses_in_single_endpoint is False
        assert not found.load_assignment.endpoints

    @pytest.mark.parametrize(("client", "family"), [(SIDECAR, "V4_ONLY"), (V6, "V6_ONLY"), (DUAL, "ALL")])
    def test_names_are_resolved_to_families_that_the_proxy_has(self, client: Client, family: str) -> None:
        found = cluster(client=client, service=entry("a.example.com"), endpoints=[at("a.example.com")])
        assert plain(unpacked(found.cluster_type.typed_config))["dns_lookup_family"] == family

    def test_wildcards_are_resolved_by_request(self) -> None:
        found = cluster(service=entry("*.example.com", resolution=Resolution.DYNAMIC_DNS))
        assert found.cluster_type.name == "envoy.clusters.dynamic_forward_proxy"
        assert found.lb_policy == pb.Cluster.CLUSTER_PROVIDED
        options = unpacked(found.cluster_type.typed_config)
        assert plain(options.dns_cache_config)["name"] == dns_cache(SIDECAR, MeshConfig())["name"]

    def test_caches_of_names_with_other_settings_have_other_names(self) -> None:
        settings = [MeshConfig(), decoded({"dnsRefreshRate": "5s"}, MeshConfig)]
        assert len({dns_cache(client, config)["name"] for client in (SIDECAR, V6) for config in settings}) == 4

    def test_headless_services_are_where_the_caller_was_going(self) -> None:
        found = cluster(service=headless())
        assert (found.type, found.lb_policy) == (pb.Cluster.ORIGINAL_DST, pb.Cluster.CLUSTER_PROVIDED)

    def test_but_those_whom_a_rule_leads_there_are_told(self) -> None:
        found = Destination(headless(), subsets=[{"name": "v1", "labels": {"version": "v1"}}]).clusters()
        types = {name.split("|")[2]: cluster.type for name, cluster in found.items()}
        assert types == {"": pb.Cluster.ORIGINAL_DST, "v1": pb.Cluster.EDS, "*": pb.Cluster.EDS}

    def test_at_the_port_that_the_workload_listens_on(self) -> None:
        found = cluster(service=headless(Port(80, "http", HTTP, 8080)))
        assert found.original_dst_lb_config.upstream_port_override.value == 8080

    @pytest.mark.parametrize("target", [0, 80, "http"])
    def test_unless_it_is_the_same_or_a_ports_name(self, target: int | str) -> None:
        assert not cluster(service=headless(Port(80, "http", HTTP, target))).HasField("original_dst_lb_config")

    @pytest.mark.parametrize("client", [GATEWAY, UNCAPTURED])
    def test_who_does_not_know_where_the_caller_was_going_is_told(self, client: Client) -> None:
        assert cluster(client=client, service=headless()).type == pb.Cluster.EDS


def inbound(client: Client = SIDECAR, protocol: Protocol = HTTP, settings: Any = None, **fields: Any) -> Any:
    config = fields.pop("config", {})
    limits = None if settings is None else decoded(settings, ConnectionPoolSettings)
    of = Inbound(port=8080, protocol=protocol, service=fields.pop("service", reviews()), service_port=9080, pool=limits, **fields)
    return inbound_cluster(of, client, decoded(config, MeshConfig))


def address(cluster: Any) -> Any:
    return cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address


class TestInbound:
    def test_it_goes_where_the_caller_was_going_from_an_address_that_is_let_through(self) -> None:
        found = inbound()
        assert found.name == "inbound|8080||"
        assert found.type == pb.Cluster.ORIGINAL_DST
        assert found.upstream_bind_config.source_address.address == "127.0.0.6"
        assert found.cleanup_interval.ToTimedelta() > timedelta(seconds=5)

    @pytest.mark.parametrize(("client", "sources"), [(V6, ["::6"]), (DUAL, ["127.0.0.6", "::6"])])
    def test_sources_by_family(self, client: Client, sources: list[str]) -> None:
        bind = inbound(client).upstream_bind_config
        assert [bind.source_address.address, *(e.address.address for e in bind.extra_source_addresses)] == sources

    @pytest.mark.parametrize(("forward_to", "host"), [("127.0.0.1:99", "127.0.0.1"), ("[::1]:99", "::1")])
    def test_to_an_address_of_its_own(self, forward_to: str, host: str) -> None:
        found = inbound(forward_to=forward_to)
        assert found.type == pb.Cluster.STATIC
        assert (address(found).socket_address.address, address(found).socket_address.port_value) == (host, 99)
        assert not found.HasField("upstream_bind_config")

    def test_to_a_unix_socket(self) -> None:
        assert address(inbound(forward_to="unix:///run/app.sock")).pipe.path == "/run/app.sock"

    def test_another_port_of_the_workload_needs_no_address(self) -> None:
        found = inbound(forward_to="0.0.0.0:99")
        assert found.type == pb.Cluster.ORIGINAL_DST
        assert found.original_dst_lb_config.upstream_port_override.value == 99

    def test_another_port_of_the_workload_where_nothing_is_captured(self) -> None:
        found = inbound(forward_to="0.0.0.0:99", bind="10.0.0.1")
        assert (address(found).socket_address.address, address(found).socket_address.port_value) == ("10.0.0.1", 99)

    def test_http_by_protocol(self) -> None:
        assert http_options(inbound()) is None
        assert http_options(inbound(protocol=GRPC)).explicit_http_config.HasField("http2_protocol_options")
        assert http_options(inbound(protocol=AUTO)).HasField("use_downstream_protocol_config")

    def test_the_application_is_never_upgraded(self) -> None:
        assert http_options(inbound(config={"h2UpgradePolicy": "UPGRADE"})) is None

    def test_limits(self) -> None:
        found = inbound(settings={"tcp": {"maxConnections": 3}, "http": {"http1MaxPendingRequests": 4}})
        assert (thresholds(found)["max_connections"], thresholds(found)["max_pending_requests"]) == (3, 4)

    def test_the_meshs_limits_where_it_has_none_of_its_own(self) -> None:
        found = inbound(config={"defaultTrafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 5}}}})
        assert thresholds(found)["max_connections"] == 5

    def test_metadata_names_its_service(self) -> None:
        assert plain(inbound().metadata)["filter_metadata"]["istio"] == {
            "services": [{"host": HOST, "name": "reviews", "namespace": "default"}]
        }
        assert not inbound(service=None).HasField("metadata")


class TestPassthrough:
    def test_outbound(self) -> None:
        found = passthrough_cluster(MeshConfig())
        assert (found.name, found.type) == ("PassthroughCluster", pb.Cluster.ORIGINAL_DST)
        assert http_options(found).HasField("use_downstream_protocol_config")
        assert not found.HasField("upstream_bind_config")

    def test_inbound_comes_from_an_address_that_is_let_through(self) -> None:
        found = inbound_passthrough_cluster(DUAL, MeshConfig())
        assert found.name == "InboundPassthroughCluster"
        assert found.upstream_bind_config.source_address.address == "127.0.0.6"

    def test_the_black_hole_has_no_endpoints(self) -> None:
        found = black_hole_cluster()
        assert (found.name, found.type) == ("BlackHoleCluster", pb.Cluster.STATIC)
        assert not found.HasField("load_assignment")


def test_equal_inputs_make_equal_bytes() -> None:
    view = Destination(subsets=[{"name": "v1"}], policy={"outlierDetection": {}})
    first, second = ([c.SerializeToString(deterministic=True) for c in outbound_clusters(view, reviews(), SIDECAR)] for _ in "12")
    assert first == second
