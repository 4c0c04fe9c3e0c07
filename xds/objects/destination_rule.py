"""Istio's DestinationRule: how a host is called. https://istio.io/latest/docs/reference/config/networking/destination-rule/"""

from typing import Literal

import msgspec

from xds.objects.meta import Duration, Int32, KubernetesObject, Message, UInt32, UInt64
from xds.objects.virtual_service import PortSelector


class MatchLabelsSelector(Message, frozen=True):
    """Workloads with all of `match_labels`. Istio's message `istio.type.v1beta1.WorkloadSelector`."""

    match_labels: dict[str, str] = {}


class RingHash(Message, frozen=True):
    minimum_ring_size: UInt64 | None = None  # None: 1024


class MagLev(Message, frozen=True):
    table_size: UInt64 | None = None  # None: 65537


class HTTPCookieAttribute(Message, frozen=True):
    name: str
    value: str | None = None


class HTTPCookie(Message, frozen=True):
    name: str
    path: str | None = None
    ttl: Duration | None = None  # zero: a session cookie
    attributes: tuple[HTTPCookieAttribute, ...] = ()


class ConsistentHashLB(Message, frozen=True):
    """One hash key and at most one algorithm (ring hash where none is given)."""

    http_header_name: str | None = None
    http_cookie: HTTPCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: MagLev | None = None
    minimum_ring_size: UInt64 | None = None  # deprecated for ring_hash


class Distribute(Message, frozen=True):
    from_: str | None = msgspec.field(default=None, name="from")
    to: dict[str, UInt32] = {}  # locality -> percentage


class Failover(Message, frozen=True):
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None


class LocalityLoadBalancerSetting(Message, frozen=True):
    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None


class ZoneAwareLoadBalancerSetting(Message, frozen=True):
    enabled: bool | None = None
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    min_cluster_size: UInt32 | None = None


class WarmupConfiguration(Message, frozen=True):
    duration: Duration
    minimum_percent: float | None = None
    aggression: float | None = None


class LoadBalancerSettings(Message, frozen=True):
    simple: Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None = None
    consistent_hash: ConsistentHashLB | None = None
    locality_lb_setting: LocalityLoadBalancerSetting | None = None
    zone_aware_lb_setting: ZoneAwareLoadBalancerSetting | None = None
    warmup: WarmupConfiguration | None = None
    warmup_duration_secs: Duration | None = None  # deprecated for warmup


class TcpKeepalive(Message, frozen=True):
    probes: UInt32 | None = None
    time: Duration | None = None
    interval: Duration | None = None


class TCPSettings(Message, frozen=True):
    max_connections: Int32 | None = None
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: Duration | None = None


class ConnectionKeepalive(Message, frozen=True):
    interval: Duration | None = None
    timeout: Duration | None = None


class HTTPSettings(Message, frozen=True):
    http1_max_pending_requests: Int32 | None = None
    http2_max_requests: Int32 | None = None
    max_requests_per_connection: Int32 | None = None
    max_retries: Int32 | None = None
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Int32 | None = None
    http2_keep_alive: ConnectionKeepalive | None = None


class ConnectionPoolSettings(Message, frozen=True):
    tcp: TCPSettings | None = None
    http: HTTPSettings | None = None


class OutlierDetection(Message, frozen=True):
    consecutive_errors: Int32 | None = None  # deprecated for the consecutive_* below
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive_5xx_errors: UInt32 | None = msgspec.field(default=None, name="consecutive5xxErrors")
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: Int32 | None = None
    min_health_percent: Int32 | None = None
    outlier_detection_http_error_codes: tuple[UInt32, ...] = ()


class ClientTLSSettings(Message, frozen=True):
    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str | None = None
    private_key: str | None = None
    ca_certificates: str | None = None
    credential_name: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    sni: str | None = None
    insecure_skip_verify: bool | None = None
    ca_crl: str | None = None


class TunnelSettings(Message, frozen=True):
    target_host: str
    target_port: UInt32
    protocol: str | None = None  # CONNECT or POST; None: CONNECT


class ProxyProtocol(Message, frozen=True):
    version: Literal["V1", "V2"] = "V1"


class RetryBudget(Message, frozen=True):
    percent: float | None = None  # None: 20
    min_retry_concurrency: UInt32 | None = None
    budget_interval: Duration | None = None


class PortTrafficPolicy(Message, frozen=True):
    port: PortSelector | None = None
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


class TrafficPolicy(Message, frozen=True):
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


class RuleSubset(Message, frozen=True):
    """Istio's message `Subset`."""

    name: str
    labels: dict[str, str] = {}
    traffic_policy: TrafficPolicy | None = None


class DestinationRuleSpec(Message, frozen=True):
    host: str
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[RuleSubset, ...] = ()
    export_to: tuple[str, ...] = ()  # empty: MeshConfig.default_destination_rule_export_to
    workload_selector: MatchLabelsSelector | None = None


class DestinationRule(KubernetesObject, frozen=True):
    spec: DestinationRuleSpec
