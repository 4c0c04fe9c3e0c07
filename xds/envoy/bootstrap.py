"""What an Envoy starts with: who it is, where its control plane is, and the listeners that Kubernetes and Prometheus use.

There is no agent beside the proxy. What Istio's agent does is done here by Envoy itself: readiness is the admin server's own
(`/healthz/ready` on 15021), metrics are scraped from Envoy (`/stats/prometheus` on 15090), and the stream to the control plane
carries the pod's projected token, which the `credential_injector` filter reads again whenever the kubelet replaces it.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import msgspec
import yaml

from xds import pb
from xds.mesh.model import Locality, Mode

ADMIN_PORT, STATUS_PORT, PROMETHEUS_PORT = 15000, 15021, 15090
XDS_CLUSTER = "xds-grpc"
ADMIN_CLUSTER = "prometheus_stats"
TRIED_CLUSTER = "tried"
# Envoy keeps only statistics that begin so. A cluster's and a listener's own would be most of a proxy's memory in a large mesh.
STATISTICS = ("cluster_manager", "listener_manager", "server", f"cluster.{XDS_CLUSTER}", "istio")
_UNLIMITED = 2**31 - 1
_FOREVER = timedelta(0)
_RUNTIME = {"re2.max_program_size.error_level": 32768}  # regular expressions are checked by the control plane
_TAGS = {
    # Names of ours have dots in them, which Envoy's own expressions would take for the end of the name.
    "cluster_name": r"^cluster\.(((?:out|in)bound(?:_\.\d+_\._[^_]*_\.|\|\d+\|[^|]*\|).*?|[^.]+)(?:;|\.))",
    "http_conn_manager_prefix": r"^http\.(((?:out|in)bound_(?:\d+\.\d+\.\d+\.\d+|[0-9a-f:]+)_\d+|[^.]+)(?:;|\.))",
}


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The workload that the proxy stands for. What is empty is left out of its node metadata."""

    name: str  # the pod
    namespace: str = "default"
    addresses: tuple[str, ...]  # the workload's IPs, first is its main one
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    kind: str = "sidecar"  # or `router`
    domain: str = "cluster.local"
    service_account: str = ""
    workload: str = ""  # the Deployment or so
    owner: str = ""  # as a URL: kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1
    host: str = ""  # the Kubernetes node
    cluster_id: str = "Kubernetes"
    mesh_id: str = ""
    network: str = ""
    mode: Mode = Mode.REDIRECT
    locality: Locality = Locality()
    http10: bool = False
    metadata: Mapping[str, Any] = {}  # more keys, and other values for those above

    @property
    def id(self) -> str:
        return f"{self.kind}~{self.addresses[0]}~{self.name}.{self.namespace}~{self.namespace}.svc.{self.domain}"

    @property
    def cluster(self) -> str:
        """`app.namespace`, as traces name the caller."""
        labels = self.labels
        named = labels.get("service.istio.io/canonical-name") or labels.get("app.kubernetes.io/name") or labels.get("app")
        return f"{named or self.workload or self.name}.{self.namespace}"

    @property
    def ipv6_only(self) -> bool:
        return all(":" in address for address in self.addresses)


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How the proxy knows its control plane, and, with a certificate of its own, the control plane it. The files are the proxy's."""

    ca_file: str
    server_name: str  # in the server's certificate, and the SNI
    certificate_file: str = ""
    private_key_file: str = ""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """The bearer token that each stream to the control plane carries.

    `secret_file` is where the text of `token_secret` will be for the proxy; `folder` is the volume with the token, watched
    for the kubelet's exchange of its `..data` link.
    """

    secret_file: str
    folder: str
    name: str = "xds-token"


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's own ports. `listen` is where readiness and metrics are served; 0 leaves that listener out."""

    admin: int = ADMIN_PORT
    admin_address: str = ""  # the loopback address, unless given
    status: int = STATUS_PORT
    prometheus: int = PROMETHEUS_PORT
    listen: str = ""  # all addresses, unless given


# A stream that breaks is opened again after a random time up to the interval, which doubles. Envoy's own maximum of 30 s would have proxies
# call replicas that are gone for so long after a control plane has come back.
_RECONNECT: Any = {"retry_back_off": {"base_interval": timedelta(milliseconds=500), "max_interval": timedelta(seconds=10)}}


def bootstrap(
    node: Node,
    discovery_address: str,
    *,
    delta: bool = True,
    tls: Tls | None = None,
    token: Token | None = None,
    ports: Ports | None = None,
    statistics: Iterable[str] | None = STATISTICS,
    tried: Mapping[str, int] | None = None,
) -> Any:
    """The `pb.Bootstrap` with which a stock Envoy joins the mesh as `node`.

    `discovery_address` is `host:port`, `[address]:port` for IPv6. `delta` chooses Delta ADS, else SotW. `statistics` are prefixes
    of the statistics kept; None keeps all of them. `tried` are ports of the workload by paths: the status port answers at a path
    whether the application accepts connections at the port. ValueError where the address is not one.
    """
    ports = ports or Ports()
    loopback = "::1" if node.ipv6_only else "127.0.0.1"
    admin = _socket(ports.admin_address or loopback, ports.admin)
    listen = ports.listen or ("::" if node.ipv6_only else "0.0.0.0")
    tried = tried or {}
    if statistics is not None and tried:
        statistics = (*statistics, f"cluster.{TRIED_CLUSTER}")  # the filter that answers reads them
    kept = None if statistics is None else {"inclusion_list": {"patterns": [{"prefix": prefix} for prefix in statistics]}}
    listeners: list[Any] = []
    if ports.prometheus:
        listeners.append(_admin_listener("prometheus", listen, ports.prometheus, "/stats/prometheus", "/stats/prometheus"))
    if ports.status:
        answers = [_port_filter(path, port) for path, port in tried.items()]
        listeners.append(_admin_listener("status", listen, ports.status, "/healthz/ready", "/ready", answers))
    stats_config: Any = {
        "use_all_default_tags": {"value": False},
        "stats_tags": [{"tag_name": tag, "regex": regex} for tag, regex in _TAGS.items()],
        "stats_matcher": kept,
    }
    return pb.Bootstrap(
        node=_node(node),
        admin={"address": admin, "profile_path": "/dev/null"},
        dynamic_resources={
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": _RECONNECT}}],
            },
            "cds_config": _ads(),
            "lds_config": _ads(),
        },
        static_resources={
            "clusters": [
                _xds_cluster(discovery_address, node, tls, token),
                _cluster(ADMIN_CLUSTER, "STATIC", ports.admin_address or loopback, ports.admin),
                *(_tried_cluster(node.addresses[0], port) for port in sorted({*tried.values()})),
            ],
            "listeners": listeners,
        },
        layered_runtime={"layers": [{"name": "static", "static_layer": _RUNTIME}, {"name": "admin", "admin_layer": {}}]},
        overload_manager={"resource_monitors": [_connection_limit()]},
        deferred_stat_options={"enable_deferred_creation_stats": True},
        stats_config=stats_config,
    )


def grpc_bootstrap(node_id: str, namespace: str, server: str) -> dict[str, Any]:
    """What a proxyless gRPC client reads from the file that GRPC_XDS_BOOTSTRAP names (gRFC A27)."""
    return {
        "xds_servers": [{"server_uri": server, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
        "node": {"id": node_id, "metadata": {"NAMESPACE": namespace, "GENERATOR": "grpc"}},
    }


def bootstrap_yaml(message: Any) -> str:
    """A `pb.Bootstrap` as the YAML that `envoy -c` reads."""
    return yaml.safe_dump(pb.plain(message), sort_keys=False, width=1000)


def bootstrap_json(message: Any, indent: int | None = 2) -> str:
    """A `pb.Bootstrap` as the JSON that `envoy -c` reads; where `indent` is None, on one line, and equal for equal bootstraps."""
    if indent is None:
        return json.dumps(pb.plain(message), separators=(",", ":"), sort_keys=True)
    return json.dumps(pb.plain(message), indent=indent)


def token_secret(token_file: str, name: str = "xds-token") -> str:
    """The content of `Token.secret_file`: it tells Envoy where the token is. JSON, so the file's name must end in `.json`."""
    type_url = pb.TYPE_URL_PREFIX + pb.NAMES["Secret"]
    secret = {"@type": type_url, "name": name, "generic_secret": {"secret": {"filename": token_file}}}
    return json.dumps({"resources": [secret]})


def _node(node: Node) -> Any:
    known = {
        "CLUSTER_ID": node.cluster_id,
        "NAMESPACE": node.namespace,
        "NAME": node.name,
        "SERVICE_ACCOUNT": node.service_account,
        "WORKLOAD_NAME": node.workload,
        "OWNER": node.owner,
        "NODE_NAME": node.host,
        "MESH_ID": node.mesh_id,
        "NETWORK": node.network,
        "INSTANCE_IPS": ",".join(node.addresses),
        "INTERCEPTION_MODE": node.mode.value,
        "LABELS": dict(node.labels),
        "ANNOTATIONS": dict(node.annotations),
        "HTTP10": "1" if node.http10 else "",
    }
    here = node.locality
    return {
        "id": node.id,
        "cluster": node.cluster,
        "locality": {"region": here.region, "zone": here.zone, "sub_zone": here.subzone} if here != Locality() else None,
        "metadata": {key: value for key, value in {**known, **node.metadata}.items() if value},
    }


def _xds_cluster(discovery_address: str, node: Node, tls: Tls | None, token: Token | None) -> Any:
    host, port = _host_and_port(discovery_address)
    # A dead control plane is noticed, and the stream opened to another replica, within 40 seconds.
    keepalive = {"interval": timedelta(seconds=30), "timeout": timedelta(seconds=10)}
    options: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {"connection_keepalive": keepalive}}}
    if token:
        options["http_filters"] = [_credential(token), _typed("envoy.filters.http.upstream_codec", pb.UpstreamCodec())]
    cluster: dict[str, Any] = _cluster(XDS_CLUSTER, "STATIC" if _is_ip(host) else "STRICT_DNS", host, port)
    cluster |= {
        "connect_timeout": timedelta(seconds=1),
        "dns_lookup_family": "V6_ONLY" if node.ipv6_only else "V4_PREFERRED",
        "respect_dns_ttl": True,
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": {"value": 300}}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pb.any(pb.HttpProtocolOptions(**options)),
        },
        "transport_socket": _tls(tls) if tls else None,
    }
    return cluster


def _tls(tls: Tls) -> Any:
    common: Any = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "validation_context": {
            "trusted_ca": {"filename": tls.ca_file},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": tls.server_name}}],
        },
    }
    if tls.certificate_file:
        common["tls_certificates"] = [
            {"certificate_chain": {"filename": tls.certificate_file}, "private_key": {"filename": tls.private_key_file}}
        ]
    return _typed("envoy.transport_sockets.tls", pb.UpstreamTlsContext(sni=tls.server_name, common_tls_context=common))


def _credential(token: Token) -> Any:
    # The secret is in a file of its own because Envoy reads a watched file again only for secrets that come by SDS.
    source: Any = {"path_config_source": {"path": token.secret_file, "watched_directory": {"path": token.folder}}}
    credential: Any = {"name": token.name, "sds_config": {"resource_api_version": "V3", **source}}
    generic = pb.GenericCredential(
        credential=credential, header="authorization",
    )  # fmt: skip
    injector = pb.CredentialInjector(
        overwrite=True, credential=_typed("envoy.http.injected_credentials.generic", generic),
    )  # fmt: skip
    return _typed("envoy.filters.http.credential_injector", injector)


def _tried_cluster(address: str, port: int) -> Any:
    """A cluster without traffic, which is healthy while the application accepts connections at this port."""
    often = {"timeout": timedelta(seconds=1), "interval": timedelta(seconds=1), "no_traffic_interval": timedelta(seconds=1)}
    one = {"unhealthy_threshold": {"value": 1}, "healthy_threshold": {"value": 1}}
    cluster: dict[str, Any] = _cluster(f"{TRIED_CLUSTER}|{port}", "STATIC", address, port)
    cluster |= {
        "health_checks": [{**often, **one, "tcp_health_check": {}}],
        # Traffic capture lets the proxy through to its own workload by this source (see `clusters`).
        "upstream_bind_config": {
            "source_address": {"address": "127.0.0.6", "port_value": 0},
            "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
        },
    }
    return cluster


def _port_filter(path: str, port: int) -> Any:
    """Answers 200 at `path` while the cluster of this port is healthy, else 503."""
    filter_: Any = pb.message_class("envoy.extensions.filters.http.health_check.v3.HealthCheck")
    config = filter_(
        pass_through_mode={"value": False},
        headers=[{"name": ":path", "string_match": {"exact": path}}],
        cluster_min_healthy_percentages={f"{TRIED_CLUSTER}|{port}": {"value": 100}},
    )
    return _typed("envoy.filters.http.health_check", config)


def _admin_listener(name: str, address: str, port: int, path: str, admin_path: str, filters: Iterable[Any] = ()) -> Any:
    """A listener that answers one path, from the admin server, and nothing else of it; `filters` may answer more."""
    manager = pb.HttpConnectionManager(
        stat_prefix=name,
        route_config={
            "name": name,
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
                            "route": {"cluster": ADMIN_CLUSTER, "prefix_rewrite": admin_path},
                        }
                    ],
                }
            ],
        },
        http_filters=[*filters, _typed("envoy.filters.http.router", pb.Router())],
    )
    return {
        "name": name,
        "address": _socket(address, port),
        "ignore_global_conn_limit": True,  # else an overloaded proxy is restarted for it
        "filter_chains": [{"filters": [_typed("envoy.filters.network.http_connection_manager", manager)]}],
    }


def _connection_limit() -> Any:
    """No limit, said so that Envoy does not warn of there being none."""
    config = pb.message_class("envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig")
    unlimited: Any = config
    return _typed("envoy.resource_monitors.global_downstream_max_connections", unlimited(max_active_downstream_connections=_UNLIMITED))


def _ads() -> Any:
    """Without a timeout, a proxy is not ready until it has got its first configuration."""
    return {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": _FOREVER}


def _cluster(name: str, kind: str, host: str, port: int) -> Any:
    endpoint = {"endpoint": {"address": _socket(host, port)}}
    return {
        "name": name,
        "type": kind,
        "connect_timeout": timedelta(seconds=1),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _socket(address: str, port: int) -> Any:
    return {"socket_address": {"address": address, "port_value": port}}


def _typed(name: str, config: Any) -> Any:
    return {"name": name, "typed_config": pb.any(config)}


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not port.isdecimal() or (":" in bare and not host.startswith("[")):
        raise ValueError(f"{address!r} is not host:port")
    return bare, int(port)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
