"""The clusters of a proxy: one for each destination that its applications may call, and those in front of its own application.

Names and structure are Istio's. Not so the cluster types of names that DNS resolves: Envoy has deprecated the fields that go with
them, and warns of every use.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from xds import pb
from xds.envoy import names
from xds.envoy.addresses import UNIX, address, families
from xds.envoy.dns import dns_cluster, dynamic_forward_proxy_cluster
from xds.envoy.endpoints import destinations, load_assignment
from xds.envoy.load_balancing import common_lb_config, load_balancer
from xds.envoy.localities import placement
from xds.envoy.metadata import config_path, istio
from xds.envoy.traffic_policy import (
    NO_POOL,
    Upstream,
    circuit_breakers,
    connect_timeout,
    http_protocol_options,
    outlier_detection,
    upgrades,
    upstream,
    upstream_connection_options,
)
from xds.envoy.transport_sockets import auto_server_name, transport_socket, without_credential
from xds.mesh.model import Client, Inbound, Mode, Port, Resolution, Service
from xds.mesh.view import View
from xds.objects import ConnectionPoolSettings, MeshConfig, TrafficPolicy

if TYPE_CHECKING:
    from xds.pb import envoy_config_cluster_v3_Cluster_EdsClusterConfig_Init as EdsClusterConfig
    from xds.pb import envoy_config_cluster_v3_Cluster_Init as Cluster
    from xds.pb import envoy_config_core_v3_BindConfig_Init as BindConfig
    from xds.pb import envoy_config_core_v3_Metadata_Init as Metadata
    from xds.pb import envoy_config_endpoint_v3_LbEndpoint_Init as LbEndpoint

# A proxy's connections to its own workload come from here: traffic capture lets them through by it (Istio: 127.0.0.6).
INBOUND_SOURCE, INBOUND_SOURCE_IPV6 = "127.0.0.6", "::6"
# How long a host of an inbound cluster is kept when no connection needs it: after Envoy's 5 s, idle connections would be closed.
CLEANUP_INTERVAL = timedelta(seconds=60)
WILDCARDS = ("0.0.0.0", "::")


def outbound_clusters(view: View, service: Service, client: Client) -> list[pb.Cluster]:
    """The clusters of `service`: for each port one of all its endpoints, and one of each subset.

    Of `client` its kind, mode and address families matter; for names that DNS resolves, its place too (`deciding_labels`).
    """
    return [_outbound(view, service, port, subset, policy, client) for port, subset, policy in destinations(view, service)]


def _outbound(view: View, service: Service, port: Port, subset: str, policy: TrafficPolicy, client: Client) -> pb.Cluster:
    if client.kind == "sidecar" and not view.policy(service).selects:
        policy = without_credential(policy)
    config, pool, outliers = view.config, policy.connection_pool or NO_POOL, policy.outlier_detection
    http = Upstream(http2=True)
    if not upgrades(port.protocol, pool, config):
        http = upstream(port.protocol, pool, detects=client.kind == "sidecar")
    named = "" if subset == names.EVERY_POD else subset
    auto_sni, auto_san = auto_server_name(service, policy.tls, config)
    fields: Cluster = {
        "name": names.outbound(service.hostname, port.number, subset),
        "alt_stat_name": stat_name(config.outbound_cluster_stat_name, service, port, subset),
        "connect_timeout": connect_timeout(pool, config),
        "circuit_breakers": circuit_breakers(pool, policy.retry_budget),
        "upstream_connection_options": upstream_connection_options(pool, config),
        "outlier_detection": outlier_detection(outliers),
        "typed_extension_protocol_options": http_protocol_options(
            msgspec.structs.replace(http, auto_sni=auto_sni, auto_san=auto_san),
            pool,
            () if outliers is None else outliers.outlier_detection_http_error_codes,
        ),
        "transport_socket": transport_socket(service, port.number, named, policy, config, http.http2),
        "metadata": _outbound_metadata(view, service, port.number, named),
        **_balanced(view, service, port, subset, policy, client),
    }
    return pb.Cluster(**fields)


def _balanced(view: View, service: Service, port: Port, subset: str, policy: TrafficPolicy, client: Client) -> "Cluster":
    """The fields that say where a cluster's endpoints come from, and how load is balanced among them."""
    passthrough = policy.load_balancer is not None and policy.load_balancer.simple == "PASSTHROUGH"
    resolution = service.resolution
    if resolution is Resolution.PASSTHROUGH and (client.kind != "sidecar" or client.mode is Mode.NONE or _is_chosen(view, service, subset)):
        # Only captured connections know where they were going, and that may be to none of the endpoints that a rule leads to.
        resolution = Resolution.ENDPOINTS
    if passthrough or resolution is Resolution.PASSTHROUGH:
        return _original_destination(service, port)
    if resolution is Resolution.DYNAMIC_DNS:
        return {"cluster_type": dynamic_forward_proxy_cluster(client, view.config), "lb_policy": "CLUSTER_PROVIDED"}
    placed, told = placement(service, policy, view.config), resolution is Resolution.ENDPOINTS
    common: Cluster = {
        "common_lb_config": common_lb_config(placed, policy.outlier_detection, told_health=told),
        **load_balancer(policy.load_balancer),
    }
    if told:
        # The wait for a first assignment keeps Envoy's limit of 15 s: without one, a cluster that gets none would warm for ever.
        name = names.outbound(service.hostname, port.number, subset)
        config: EdsClusterConfig = {"service_name": name, "eds_config": {"ads": {}, "resource_api_version": "V3"}}
        return {"type": "EDS", "eds_cluster_config": config, **common}
    single = resolution is Resolution.DNS_ROUND_ROBIN
    assignment = load_assignment(view, service, port.number, subset, policy, client, single)
    return {
        # Envoy refuses a single name that is none.
        "cluster_type": dns_cluster(client, view.config, one_at_a_time=single and bool(assignment["endpoints"])),
        "load_assignment": assignment,
        **common,
    }


def _is_chosen(view: View, service: Service, subset: str) -> bool:
    """Whether a rule and not the caller has led here: to a part of a headless service, or to any of its pods."""
    if not service.headless or subset in ("", names.EVERY_POD):
        return subset == names.EVERY_POD
    selected = view.policy(service).subset(subset)
    return selected is not None and bool(selected.labels)


def _original_destination(service: Service, port: Port) -> "Cluster":
    """Where the caller was going; but to the port that the workloads listen on, where their addresses were called."""
    override = port.target_port if service.resolution is Resolution.PASSTHROUGH else 0
    return {
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"upstream_port_override": {"value": override}}
        if isinstance(override, int) and override not in (0, port.number)
        else None,
    }


def _outbound_metadata(view: View, service: Service, port: int, subset: str) -> "Metadata":
    values: dict[str, object] = {"default_original_port": port, "services": [_named(service)]}
    if refs := view.policy(service).refs:
        values["config"] = config_path(refs[0])
    if subset:
        values["subset"] = subset
    return istio(values)


def _named(service: Service) -> dict[str, str]:
    return {"host": service.hostname, "name": service.name, "namespace": service.namespace}


def stat_name(pattern: str | None, service: Service, port: Port, subset: str = "") -> str | None:
    """What statistics call a cluster (Istio: MeshConfig, `outboundClusterStatName`); None for its own name."""
    if not pattern:
        return None
    short = f"{service.name}.{service.namespace}" if service.from_kubernetes else service.hostname
    values = {
        "%SERVICE%": short,
        "%SERVICE_FQDN%": service.hostname,
        "%SERVICE_PORT%": str(port.number),
        "%SERVICE_PORT_NAME%": port.name,
        "%TARGET_PORT%": str(port.target_port or port.number),
        "%SUBSET_NAME%": subset,
    }
    for variable, value in values.items():
        pattern = pattern.replace(variable, value)
    return pattern


def inbound_cluster(inbound: Inbound, client: Client, config: MeshConfig) -> pb.Cluster:
    """The application behind one of a workload's ports."""
    pool = inbound.pool or _default_pool(config)
    service, port = inbound.service, Port(inbound.service_port or inbound.port, inbound.name, target_port=inbound.port)
    fields: Cluster = {
        "name": names.inbound(inbound.port),
        "alt_stat_name": None if service is None else stat_name(config.inbound_cluster_stat_name, service, port),
        "connect_timeout": connect_timeout(pool, config),
        "circuit_breakers": circuit_breakers(pool),
        "upstream_connection_options": upstream_connection_options(pool, config),
        "typed_extension_protocol_options": http_protocol_options(upstream(inbound.protocol, pool, detects=True), pool),
        "metadata": None if service is None else istio({"services": [_named(service)]}),
        **_application(inbound, client),
    }
    return pb.Cluster(**fields)


def _application(inbound: Inbound, client: Client) -> "Cluster":
    """Where the application listens.

    At the address that was called; or, for a Sidecar's `0.0.0.0:8080`, at another port of it. That needs no workload's own
    address, so all workloads of a kind share the cluster.
    """
    host, number = _host_port(inbound.forward_to)
    if not host or (host in WILDCARDS and not inbound.bind):
        return {
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "original_dst_lb_config": {"upstream_port_override": {"value": number}} if number not in (0, inbound.port) else None,
            "upstream_bind_config": _inbound_source(client),
            "cleanup_interval": CLEANUP_INTERVAL,
        }
    if host in WILDCARDS and inbound.bind not in WILDCARDS:
        host = inbound.bind
    endpoint: LbEndpoint = {"endpoint": {"address": address(host, number)}}
    return {
        "type": "STATIC",
        "load_assignment": {"cluster_name": names.inbound(inbound.port), "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _host_port(address: str) -> tuple[str, int]:
    """`127.0.0.1:80`, `[::1]:80` or `unix:///path` (no port) in its two parts; empty for an empty one."""
    if not address or address.startswith(UNIX):
        return address, 0
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _inbound_source(client: Client) -> "BindConfig":
    v4, v6 = families(client)
    first, *more = (INBOUND_SOURCE,) * v4 + (INBOUND_SOURCE_IPV6,) * v6
    return {
        "source_address": {"address": first, "port_value": 0},
        "extra_source_addresses": [{"address": {"address": other, "port_value": 0}} for other in more],
    }


def passthrough_cluster(config: MeshConfig) -> pb.Cluster:
    """Where the caller was going, outside all that the mesh knows."""
    return pb.Cluster(**_passthrough(names.PASSTHROUGH, config))


def inbound_passthrough_cluster(client: Client, config: MeshConfig) -> pb.Cluster:
    """The workload's own ports that nothing declares."""
    fields: Cluster = {**_passthrough(names.INBOUND_PASSTHROUGH, config), "upstream_bind_config": _inbound_source(client)}
    return pb.Cluster(**fields)


def _passthrough(name: str, config: MeshConfig) -> "Cluster":
    pool = _default_pool(config)
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": connect_timeout(pool, config),
        "circuit_breakers": circuit_breakers(pool),
        "upstream_connection_options": upstream_connection_options(pool, config),
        "typed_extension_protocol_options": http_protocol_options(Upstream(same=True), pool),
    }


def _default_pool(config: MeshConfig) -> ConnectionPoolSettings:
    default = config.default_traffic_policy
    return NO_POOL if default is None or default.connection_pool is None else default.connection_pool


def black_hole_cluster() -> pb.Cluster:
    """Has no endpoints: what comes here goes nowhere."""
    return pb.Cluster(name=names.BLACK_HOLE, type="STATIC")
