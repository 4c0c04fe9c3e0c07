"""Kubernetes and Istio objects as typed structs: decoding, validation, defaulting.

Here are the kinds, and all messages of Istio's networking API; the parts of other kinds are in `kubernetes`, `mesh_config`,
`proxy_config` and `extension_providers`.
"""

from xds.objects.destination_rule import (
    ClientTLSSettings,
    ConnectionKeepalive,
    ConnectionPoolSettings,
    ConsistentHashLB,
    DestinationRule,
    DestinationRuleSpec,
    Distribute,
    Failover,
    HTTPCookie,
    HTTPCookieAttribute,
    HTTPSettings,
    LoadBalancerSettings,
    LocalityLoadBalancerSetting,
    MagLev,
    MatchLabelsSelector,
    OutlierDetection,
    PortTrafficPolicy,
    ProxyProtocol,
    RetryBudget,
    RingHash,
    RuleSubset,
    TcpKeepalive,
    TCPSettings,
    TrafficPolicy,
    TunnelSettings,
    WarmupConfiguration,
    ZoneAwareLoadBalancerSetting,
)
from xds.objects.kinds import KINDS, Kind, Object
from xds.objects.kubernetes import ConfigMap, Endpoints, EndpointSlice, Namespace, Node, Pod, Service
from xds.objects.mesh_config import MeshConfig
from xds.objects.meta import ObjectMeta, Ref
from xds.objects.proxy_config import ProxyConfig
from xds.objects.service_entry import (
    EntryPort,
    ServiceEntry,
    ServiceEntrySpec,
    WorkloadEntry,
    WorkloadEntrySpec,
    WorkloadSelector,
)
from xds.objects.sidecar import (
    IstioEgressListener,
    IstioIngressListener,
    OutboundTrafficPolicy,
    ServerTLSSettings,
    Sidecar,
    SidecarPort,
    SidecarSpec,
    TLSCertificate,
)
from xds.objects.virtual_service import (
    GRPC_STATUSES,
    Abort,
    CorsPolicy,
    Delay,
    Delegate,
    Destination,
    HeaderOperations,
    Headers,
    HTTPBody,
    HTTPDirectResponse,
    HTTPFaultInjection,
    HTTPMatchRequest,
    HTTPMirrorPolicy,
    HTTPRedirect,
    HTTPRetry,
    HTTPRewrite,
    HTTPRoute,
    HTTPRouteDestination,
    L4MatchAttributes,
    Percent,
    PortSelector,
    RegexRewrite,
    RouteDestination,
    StringMatch,
    TCPRoute,
    TLSMatchAttributes,
    TLSRoute,
    VirtualService,
    VirtualServiceSpec,
)

__all__ = [
    # naming
    "Ref", "ObjectMeta", "KINDS", "Kind", "Object",
    # Kubernetes
    "Service", "EndpointSlice", "Endpoints", "Pod", "Node", "Namespace", "ConfigMap",
    # VirtualService
    "GRPC_STATUSES",
    "StringMatch", "PortSelector", "Destination", "HeaderOperations", "Headers", "HTTPRouteDestination", "RouteDestination",
    "HTTPMatchRequest", "HTTPRedirect", "HTTPBody", "HTTPDirectResponse", "Delegate", "RegexRewrite", "HTTPRewrite",
    "HTTPRetry", "Percent", "Delay", "Abort", "HTTPFaultInjection", "HTTPMirrorPolicy", "CorsPolicy", "HTTPRoute",
    "TLSMatchAttributes", "TLSRoute", "L4MatchAttributes", "TCPRoute", "VirtualServiceSpec", "VirtualService",
    # DestinationRule
    "MatchLabelsSelector", "RingHash", "MagLev", "HTTPCookieAttribute", "HTTPCookie", "ConsistentHashLB", "Distribute",
    "Failover", "LocalityLoadBalancerSetting", "ZoneAwareLoadBalancerSetting", "WarmupConfiguration", "LoadBalancerSettings",
    "TcpKeepalive", "TCPSettings", "ConnectionKeepalive", "HTTPSettings", "ConnectionPoolSettings", "OutlierDetection",
    "ClientTLSSettings", "TunnelSettings", "ProxyProtocol", "RetryBudget", "PortTrafficPolicy", "TrafficPolicy", "RuleSubset",
    "DestinationRuleSpec", "DestinationRule",
    # Sidecar
    "SidecarPort", "TLSCertificate", "ServerTLSSettings", "IstioIngressListener", "IstioEgressListener",
    "OutboundTrafficPolicy", "SidecarSpec", "Sidecar",
    # ServiceEntry, WorkloadEntry
    "WorkloadSelector", "EntryPort", "WorkloadEntrySpec", "ServiceEntrySpec", "ServiceEntry", "WorkloadEntry",
    # mesh-wide
    "MeshConfig", "ProxyConfig",
]  # fmt: skip
