"""Envoy's API messages, in a descriptor pool of our own.

`NAMES` maps the short name used in this code base to the full proto name, and is the only list to extend. The descriptors
in `envoy.binpb` are collected from `protos/roots.txt` when the package is built. Nothing here is registered in protobuf's
default pool, and nothing is imported from top-level `envoy` or `xds` packages, so this package can be installed beside any other.

Build a message with one constructor call and nested dict literals: `pb.Cluster(name=…, eds_cluster_config={…})`. Durations are
`timedelta`, enums are names, None is absent. It is several times faster than nested constructors.
"""

import json
from importlib.resources import files
from typing import Any as _Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

NAMES = {
    # core
    "Any": "google.protobuf.Any",
    "Struct": "google.protobuf.Struct",
    "Status": "google.rpc.Status",
    "Node": "envoy.config.core.v3.Node",
    "Address": "envoy.config.core.v3.Address",
    "ConfigSource": "envoy.config.core.v3.ConfigSource",
    "Metadata": "envoy.config.core.v3.Metadata",
    "TransportSocket": "envoy.config.core.v3.TransportSocket",
    "TypedExtensionConfig": "envoy.config.core.v3.TypedExtensionConfig",
    "Bootstrap": "envoy.config.bootstrap.v3.Bootstrap",
    # the resources
    "Cluster": "envoy.config.cluster.v3.Cluster",
    "ClusterLoadAssignment": "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "LbEndpoint": "envoy.config.endpoint.v3.LbEndpoint",
    "LocalityLbEndpoints": "envoy.config.endpoint.v3.LocalityLbEndpoints",
    "Listener": "envoy.config.listener.v3.Listener",
    "FilterChain": "envoy.config.listener.v3.FilterChain",
    "RouteConfiguration": "envoy.config.route.v3.RouteConfiguration",
    "ScopedRouteConfiguration": "envoy.config.route.v3.ScopedRouteConfiguration",
    "VirtualHost": "envoy.config.route.v3.VirtualHost",
    "Route": "envoy.config.route.v3.Route",
    "Secret": "envoy.extensions.transport_sockets.tls.v3.Secret",
    "Runtime": "envoy.service.runtime.v3.Runtime",
    # discovery
    "DiscoveryRequest": "envoy.service.discovery.v3.DiscoveryRequest",
    "DiscoveryResponse": "envoy.service.discovery.v3.DiscoveryResponse",
    "DeltaDiscoveryRequest": "envoy.service.discovery.v3.DeltaDiscoveryRequest",
    "DeltaDiscoveryResponse": "envoy.service.discovery.v3.DeltaDiscoveryResponse",
    "Resource": "envoy.service.discovery.v3.Resource",
    "LoadStatsRequest": "envoy.service.load_stats.v3.LoadStatsRequest",
    "LoadStatsResponse": "envoy.service.load_stats.v3.LoadStatsResponse",
    "ClientStatusRequest": "envoy.service.status.v3.ClientStatusRequest",
    "ClientStatusResponse": "envoy.service.status.v3.ClientStatusResponse",
    "ConfigDump": "envoy.admin.v3.ConfigDump",
    # clusters
    "HttpProtocolOptions": "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "UpstreamTlsContext": "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "DownstreamTlsContext": "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "RawBuffer": "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "ProxyProtocolUpstreamTransport": "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
    "DynamicForwardProxyCluster": "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
    "DnsCluster": "envoy.extensions.clusters.dns.v3.DnsCluster",
    "CaresDnsResolver": "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
    "WrrLocality": "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
    # listener and network filters
    "OriginalDst": "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "DnsFilter": "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
    "OriginalSrc": "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
    "TlsInspector": "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "HttpInspector": "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "ProxyProtocol": "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    "HttpConnectionManager": "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "TcpProxy": "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "NetworkRbac": "envoy.extensions.filters.network.rbac.v3.RBAC",
    "MongoProxy": "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy",
    "RedisProxy": "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
    "SniDynamicForwardProxy": "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
    "NetworkSetFilterState": "envoy.extensions.filters.network.set_filter_state.v3.Config",
    # HTTP filters
    "Router": "envoy.extensions.filters.http.router.v3.Router",
    "Cors": "envoy.extensions.filters.http.cors.v3.Cors",
    "CorsPolicy": "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "Fault": "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "HeaderMutation": "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    "EarlyHeaderMutation": "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
    "GrpcStats": "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "GrpcWeb": "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    "DynamicForwardProxyFilter": "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
    "SetFilterState": "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "StatefulSession": "envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
    "StatefulSessionPerRoute": "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute",
    "CookieBasedSessionState": "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
    "HeaderBasedSessionState": "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState",
    "OnDemand": "envoy.extensions.filters.http.on_demand.v3.OnDemand",
    "HealthCheck": "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    "UpstreamCodec": "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
    "CredentialInjector": "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
    "GenericCredential": "envoy.extensions.http.injected_credentials.generic.v3.Generic",
    "UuidRequestId": "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
    "PreviousHosts": "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    "PreviousPriorities": "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
    "FileAccessLog": "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    "StdoutAccessLog": "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    "ExtensionWithMatcher": "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
    "InternalUpstreamTransport": "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
    # descriptors
    "FieldOptions": "google.protobuf.FieldOptions",
    "OneofOptions": "google.protobuf.OneofOptions",
    "MessageOptions": "google.protobuf.MessageOptions",
}

TYPE_URL_PREFIX = "type.googleapis.com/"
_FREE_FORM = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue")


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    raw = (files(__name__) / "envoy.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _pool()


def message_class(full_name: str) -> type[Message]:
    """The class of the message with this full proto name; KeyError where no root of `protos/roots.txt` reaches it."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def type_url(message: type[Message] | Message) -> str:
    """The type URL of a message or its class: `type.googleapis.com/envoy.config.cluster.v3.Cluster`."""
    return TYPE_URL_PREFIX + message.DESCRIPTOR.full_name


def any(message: Message) -> _Any:
    """`message` packed as an Any: a dict literal of its two fields, ready to stand in another constructor. Deterministic."""
    return {"type_url": type_url(message), "value": message.SerializeToString(deterministic=True)}


def plain(message: Message) -> dict[str, _Any]:
    """`message` in protobuf's JSON form, under the proto's own field names, of plain dicts and lists only; Any fields are expanded.

    Fields are in their order, maps are sorted by key: equal messages look the same.
    """
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, descriptor_pool=POOL)
    made: dict[str, _Any] = _with_sorted_maps(json.loads(text), message.DESCRIPTOR)
    return made


def _with_sorted_maps(value: _Any, of: Descriptor) -> _Any:
    if of.full_name in _FREE_FORM:
        return json.loads(json.dumps(value, sort_keys=True))
    if not isinstance(value, dict):
        return value
    if of.full_name == "google.protobuf.Any" and "@type" in value:
        of = POOL.FindMessageTypeByName(value["@type"].rpartition("/")[2])
    for field in of.fields:
        part = value.get(field.name)
        if part is None or field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"].message_type
            value[field.name] = {k: v if inner is None else _with_sorted_maps(v, inner) for k, v in sorted(part.items())}
        elif field.is_repeated:
            value[field.name] = [_with_sorted_maps(item, field.message_type) for item in part]
        else:
            value[field.name] = _with_sorted_maps(part, field.message_type)
    return value


def __getattr__(name: str) -> _Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cls = globals()[name] = message_class(NAMES[name])
    return cls
