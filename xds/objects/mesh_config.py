"""Istio's MeshConfig: the mesh-wide settings, with Istio's defaults.

https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig
"""

from datetime import timedelta
from typing import Any, Literal

import msgspec
import yaml

from xds.errors import Problem
from xds.objects.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    LocalityLoadBalancerSetting,
    OutlierDetection,
    TcpKeepalive,
    ZoneAwareLoadBalancerSetting,
)
from xds.objects.extension_providers import BUILTIN, ExtensionProvider
from xds.objects.meta import Duration, Int32, Message, decode_hook
from xds.objects.proxy_config import ProxyConfig
from xds.objects.schema import fit
from xds.objects.virtual_service import HTTPRetry

ROOT_NAMESPACE = "istio-system"  # where the ConfigMap `istio` is


class OutboundTrafficPolicy(Message, frozen=True):
    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"] = "ALLOW_ANY"
    tls: ClientTLSSettings | None = None


class InboundTrafficPolicy(Message, frozen=True):
    mode: Literal["PASSTHROUGH", "LOCALHOST"] = "PASSTHROUGH"


class ConfigSource(Message, frozen=True):
    address: str | None = None
    tls_settings: ClientTLSSettings | None = None
    subscribed_resources: tuple[str, ...] = ()


class CertificateData(Message, frozen=True):
    pem: str | None = None
    spiffe_bundle_url: str | None = None
    cert_signers: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()


class Certificate(Message, frozen=True):
    secret_name: str | None = None
    dns_names: tuple[str, ...] = ()


class Settings(Message, frozen=True):
    cluster_local: bool = False


class ServiceSettings(Message, frozen=True):
    settings: Settings | None = None
    hosts: tuple[str, ...] = ()


class LabelSelectorRequirement(Message, frozen=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(Message, frozen=True):
    """Matches what fulfils all of it; an empty one matches everything."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Kubernetes: "Labels and Selectors"; NotIn holds where the label is absent."""
        return all(labels.get(k) == v for k, v in self.match_labels.items()) and all(
            _fulfils(labels, requirement) for requirement in self.match_expressions
        )


def _fulfils(labels: dict[str, str], requirement: LabelSelectorRequirement) -> bool:
    match requirement.operator:
        case "In":
            return requirement.key in labels and labels[requirement.key] in requirement.values
        case "NotIn":
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels


class ServiceScopeConfigs(Message, frozen=True):
    namespace_selector: LabelSelector | None = None
    services_selector: LabelSelector | None = None
    scope: Literal["LOCAL", "GLOBAL"] = "LOCAL"


class CA(Message, frozen=True):
    address: str | None = None
    tls_settings: ClientTLSSettings | None = None
    request_timeout: Duration | None = None
    istiod_side: bool = False


class DefaultProviders(Message, frozen=True):
    tracing: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    access_logging: tuple[str, ...] = ()


class ProxyPathNormalization(Message, frozen=True):
    normalization: Literal["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "DEFAULT"


class TLSConfig(Message, frozen=True):
    min_protocol_version: Literal["TLS_AUTO", "TLSV1_2", "TLSV1_3"] = "TLS_AUTO"
    ecdh_curves: tuple[str, ...] = ()
    cipher_suites: tuple[str, ...] = ()


class DefaultTrafficPolicy(Message, frozen=True):
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None


Visibility = Literal["VISIBILITY_UNSPECIFIED", "NONE", "NAMESPACE", "PUBLIC"]


class MatchRule(Message, frozen=True):
    namespace_selector: LabelSelector | None = None


class VisibilityPolicy(Message, frozen=True):
    """Istio's message `ServiceEntryVisibility.Policy`."""

    visibility: Visibility = "VISIBILITY_UNSPECIFIED"
    matching_rules: tuple[MatchRule, ...] = ()


class ServiceEntryVisibility(Message, frozen=True):
    default_visibility: Visibility = "VISIBILITY_UNSPECIFIED"
    apply_to_sidecars: bool = False
    policies: tuple[VisibilityPolicy, ...] = ()


class MeshConfig(Message, frozen=True):
    proxy_listen_port: Int32 = 15001
    proxy_inbound_listen_port: Int32 = 15006
    proxy_http_port: Int32 = 0  # 0: no HTTP proxy listener
    connect_timeout: Duration = timedelta(seconds=10)
    hbone_idle_timeout: Duration | None = None
    protocol_detection_timeout: Duration = timedelta()  # zero: wait as long as it takes
    tcp_keepalive: TcpKeepalive | None = None
    ingress_class: str = "istio"
    ingress_service: str = "istio-ingressgateway"
    ingress_controller_mode: Literal["UNSPECIFIED", "OFF", "DEFAULT", "STRICT"] = "STRICT"
    ingress_selector: str | None = None
    enable_tracing: bool = False
    access_log_file: str | None = None
    access_log_format: str | None = None
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    enable_envoy_access_log_service: bool = False
    disable_envoy_listener_log: bool = False
    default_config: ProxyConfig = ProxyConfig()
    outbound_traffic_policy: OutboundTrafficPolicy = OutboundTrafficPolicy()
    inbound_traffic_policy: InboundTrafficPolicy = InboundTrafficPolicy()
    config_sources: tuple[ConfigSource, ...] = ()
    enable_auto_mtls: bool = True
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    ca_certificates: tuple[CertificateData, ...] = ()
    default_service_export_to: tuple[str, ...] = ("*",)
    default_virtual_service_export_to: tuple[str, ...] = ("*",)
    default_destination_rule_export_to: tuple[str, ...] = ("*",)
    root_namespace: str = "istio-system"
    locality_lb_setting: LocalityLoadBalancerSetting = LocalityLoadBalancerSetting(enabled=True)
    zone_aware_lb_setting: ZoneAwareLoadBalancerSetting | None = None
    dns_refresh_rate: Duration = timedelta(seconds=60)
    h2_upgrade_policy: Literal["DO_NOT_UPGRADE", "UPGRADE"] = "DO_NOT_UPGRADE"
    inbound_cluster_stat_name: str | None = None
    outbound_cluster_stat_name: str | None = None
    certificates: tuple[Certificate, ...] = ()  # deprecated, no effect
    service_settings: tuple[ServiceSettings, ...] = ()
    service_scope_configs: tuple[ServiceScopeConfigs, ...] = ()
    enable_prometheus_merge: bool = True
    verify_certificate_at_client: bool | None = None  # deprecated
    ca: CA | None = None
    extension_providers: tuple[ExtensionProvider, ...] = BUILTIN
    default_providers: DefaultProviders = DefaultProviders()
    discovery_selectors: tuple[LabelSelector, ...] = ()
    path_normalization: ProxyPathNormalization = ProxyPathNormalization()
    default_http_retry_policy: HTTPRetry | None = None
    mesh_mtls: TLSConfig | None = msgspec.field(default=None, name="meshMTLS")
    tls_defaults: TLSConfig | None = None
    default_traffic_policy: DefaultTrafficPolicy | None = None
    service_entry_visibility: ServiceEntryVisibility | None = None


def mesh_config(text: str) -> tuple[MeshConfig | None, list[Problem]]:
    """The settings that `text` (YAML) describes, and what is wrong with it; None where one of the problems is an error.

    The problems' fields are paths in `text`.
    """
    try:
        value: Any = yaml.load(text, yaml.CSafeLoader) or {}
    except yaml.YAMLError as e:
        return None, [Problem("$", f"not YAML: {' '.join(str(e).split())}")]
    fitted, problems = fit(MeshConfig, value)
    if not all(problem.warning for problem in problems):
        return None, problems
    return msgspec.convert(fitted, MeshConfig, dec_hook=decode_hook), problems
