"""Workloads: pods and WorkloadEntries, and the proxies that claim to be one.

What a proxy says of itself is believed only where no object says otherwise: labels, service account, addresses and place of a pod
come from the pod, so that a change there changes what its proxy gets.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from xds import flow
from xds import objects as api
from xds.mesh.model import Client, Labels, Locality, Mode
from xds.mesh.services import Services, as_labels
from xds.objects.meta import Ref

PROXYLESS = "grpc"  # the kind of a gRPC client without a proxy; in its node's metadata, GENERATOR (Istio)
ROUTE_TABLES = "ROUTE_TABLES"  # node metadata
PIECES = "pieces"
INTERCEPTION = "sidecar.istio.io/interceptionMode"
NETWORK = "topology.istio.io/network"
LOCALITY = ("istio-locality", "topology.istio.io/locality")
NOWHERE = Locality()
_HASH = re.compile(r"-[a-z0-9]{1,10}$")


class Workload(msgspec.Struct, frozen=True):
    """What endpoints and proxies take from a pod or a WorkloadEntry."""

    ref: Ref
    addresses: tuple[str, ...] = ()
    labels: Labels = ()
    service_account: str = ""
    name: str = ""  # of the Deployment or so; the pod's own where it has none
    node: str = ""
    locality: Locality = Locality()
    network: str = ""
    ready: bool = True
    ports: tuple[tuple[str, int], ...] = ()  # named ports: of a pod's containers, or a WorkloadEntry's own map
    weight: int = 0


class Claim(msgspec.Struct, frozen=True, cache_hash=True):
    """What a proxy says of itself in its xDS node."""

    kind: str
    name: str
    namespace: str
    domain: str = "cluster.local"
    addresses: tuple[str, ...] = ()
    labels: Labels = ()
    service_account: str = ""
    workload: str = ""
    network: str = ""
    node: str = ""
    mode: Mode | None = None  # None where it does not say
    locality: Locality = Locality()
    http10: bool = False
    route_tables: str = ""  # how it wants them: see `Workloads.pieces`
    can_take_pieces: bool = False
    dns: bool = False
    allocates: bool = False


def claim(node_id: str, metadata: Mapping[str, Any], locality: Locality = NOWHERE, *, can_take_pieces: bool = False) -> Claim:
    """What an Envoy node claims: Istio's node id (`sidecar~10.1.2.3~reviews-1.default~default.svc.cluster.local`), metadata, place.

    Anything may be missing: a node with another kind of id is a sidecar in the namespace that its metadata names, or `default`.
    """
    kind, address, workload, domain = parts if len(parts := node_id.split("~")) == 4 else ("sidecar", "", "", "")
    name, _, own_namespace = workload.rpartition(".")
    namespace = _text(metadata, "NAMESPACE") or own_namespace or "default"
    ips = [ip for ip in (s.strip() for s in _text(metadata, "INSTANCE_IPS").split(",")) if ip]
    labels = metadata.get("LABELS")
    mode = _text(metadata, "INTERCEPTION_MODE")
    return Claim(
        kind=PROXYLESS if metadata.get("GENERATOR") == PROXYLESS else kind,
        name=name or workload or _text(metadata, "NAME") or node_id,
        namespace=namespace,
        domain=domain.partition(".svc.")[2] or "cluster.local",
        addresses=tuple(dict.fromkeys(ips or ([address] if address else []))),
        labels=as_labels({str(k): str(v) for k, v in labels.items()}) if isinstance(labels, Mapping) else (),
        service_account=_text(metadata, "SERVICE_ACCOUNT"),
        workload=_text(metadata, "WORKLOAD_NAME"),
        network=_text(metadata, "NETWORK"),
        node=_text(metadata, "NODE_NAME"),
        mode=Mode.__members__.get(mode),
        http10=_flag(metadata, "HTTP10"),
        locality=locality,
        route_tables=_text(metadata, ROUTE_TABLES),
        can_take_pieces=can_take_pieces,
        dns=_flag(metadata, "DNS_CAPTURE"),
        allocates=_flag(metadata, "DNS_CAPTURE") and _flag(metadata, "DNS_AUTO_ALLOCATE"),
    )


def _flag(metadata: Mapping[str, Any], key: str) -> bool:
    return _text(metadata, key).lower() in ("1", "true")


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""


def parse_locality(text: str) -> Locality:
    """`region/zone/subzone`, or with dots, as label values cannot hold a slash."""
    region, _, rest = (text if "/" in text else text.replace(".", "/")).partition("/")
    zone, _, subzone = rest.partition("/")
    return Locality(region, zone, subzone)


def labelled_locality(labels: Mapping[str, str]) -> Locality:
    """The locality that a workload's labels ask for; empty where they do not."""
    return next((parse_locality(labels[key]) for key in LOCALITY if labels.get(key)), Locality())


def workload_name(pod: api.Pod) -> str:
    """What made the pod: its Deployment, StatefulSet, DaemonSet or Job; the pod itself where nothing did."""
    if name := pod.meta.labels.get("service.istio.io/workload-name"):
        return name
    owner = next((o for o in pod.meta.owner_references if o.controller), None)
    template = pod.meta.labels.get("pod-template-hash")
    if owner is None:
        return pod.meta.name.partition(f"-{template}-")[0] if template else pod.meta.name
    return _HASH.sub("", owner.name) if owner.kind == "ReplicaSet" and template else owner.name


def _pod_ips(pod: api.Pod) -> tuple[str, ...]:
    status = pod.status
    return tuple(dict.fromkeys(ip for ip in (status.pod_ip, *(p.ip for p in status.pod_ips)) if ip))


def _pod_addresses(pod: api.Pod) -> Iterator[str]:
    """The addresses that are this pod's alone."""
    if not pod.spec.host_network and pod.status.phase not in ("Succeeded", "Failed"):
        yield from _pod_ips(pod)


def _entry_address(entry: api.WorkloadEntry) -> Iterator[tuple[str, str]]:
    if entry.spec.address:
        yield entry.ref.namespace, entry.spec.address


def _labels_in(item: api.Pod | api.WorkloadEntry) -> Iterator[tuple[str, str, str]]:
    labels = item.meta.labels if isinstance(item, api.Pod) else item.meta.labels | item.spec.labels
    return ((item.ref.namespace, k, v) for k, v in labels.items())


class Workloads(Services):
    """Workloads by reference, by address and by label; proxies by what they claim."""

    def __init__(self) -> None:
        super().__init__()
        self.by_address = self.index("pods by address", _pod_addresses, "Pod")
        self.entries_by_address = self.index(
            "WorkloadEntries by address",
            _entry_address,
            "WorkloadEntry",
        )
        self.by_label = self.index("workloads by label", _labels_in, "Pod", "WorkloadEntry")

    @flow.derived
    def workload(self, ref: Ref) -> Workload | None:
        """A Pod or WorkloadEntry in the model; None where there is none."""
        found: api.Pod | api.WorkloadEntry | None = self.item(ref)
        if found is None:
            return None
        return self._pod(found) if isinstance(found, api.Pod) else self._entry(found)

    def _pod(self, pod: api.Pod) -> Workload:
        labels, node = pod.meta.labels, pod.spec.node_name or ""
        return Workload(
            ref=pod.ref,
            addresses=_pod_ips(pod),
            labels=as_labels(labels),
            service_account=pod.spec.service_account_name or "default",
            name=workload_name(pod),
            node=node,
            locality=labelled_locality(labels) if any(labels.get(k) for k in LOCALITY) else self.node_locality(node),
            network=labels.get(NETWORK, ""),
            ready=pod.ready,
            ports=tuple(sorted((p.name, p.container_port) for c in pod.spec.containers for p in c.ports if p.name)),
        )

    def _entry(self, entry: api.WorkloadEntry) -> Workload:
        spec = entry.spec
        labels = entry.meta.labels | spec.labels
        return Workload(
            ref=entry.ref,
            addresses=(spec.address,) if spec.address else (),
            labels=as_labels(labels),
            service_account=spec.service_account or "",
            name=labels.get("service.istio.io/workload-name", entry.ref.name),
            locality=parse_locality(spec.locality) if spec.locality else labelled_locality(labels),
            network=spec.network or labels.get(NETWORK, ""),
            ports=as_ports(spec.ports),
            weight=spec.weight or 0,
        )

    @flow.derived
    def node_locality(self, name: str) -> Locality:
        """Where a Kubernetes node is, by its labels."""
        node: api.Node | None = self.item(Ref("Node", "", name)) if name else None
        if node is None:
            return Locality()
        labels = node.meta.labels
        return Locality(
            labels.get("topology.kubernetes.io/region") or labels.get("failure-domain.beta.kubernetes.io/region", ""),
            labels.get("topology.kubernetes.io/zone") or labels.get("failure-domain.beta.kubernetes.io/zone", ""),
            labels.get("topology.istio.io/subzone", ""),
        )

    @flow.derived
    def selected(self, namespace: str, labels: Labels) -> tuple[Ref, ...]:
        """The Pods and WorkloadEntries of `namespace` that have all of `labels`, oldest first. No labels select nothing."""
        if not labels:
            return ()
        first, *others = (self.by_label[namespace, k, v] for k, v in labels)
        rest = [set(refs) for refs in others]
        return tuple(ref for ref in first if all(ref in refs for refs in rest))

    @flow.derived
    def pod_at(self, namespace: str, address: str) -> Workload | None:
        """The pod of `namespace` that has `address`."""
        return next((self.workload(ref) for ref in self.by_address[address] if ref.namespace == namespace), None)

    def _annotated_mode(self, claim: Claim) -> Mode:
        """The mode that the pod asks for, as its injected proxy would claim it."""
        pod: api.Pod | None = self.objects[Ref("Pod", claim.namespace, claim.name)]
        return Mode.__members__.get("" if pod is None else pod.meta.annotations.get(INTERCEPTION, ""), Mode.REDIRECT)

    def pieces(self, claim: Claim) -> bool:
        """Whether this proxy is sent the virtual hosts of its route tables one by one.

        As its own metadata says, else the mesh's: `meshConfig.defaultConfig.proxyMetadata`, where names that begin with ISTIO_META_
        become the node metadata of proxies (Istio: ProxyConfig).
        """
        wanted = claim.route_tables or self.config().default_config.proxy_metadata.get(f"ISTIO_META_{ROUTE_TABLES}", "")
        return claim.can_take_pieces and wanted == PIECES

    @flow.derived
    def client(self, claim: Claim) -> Client:
        """The proxy that makes this claim: what its own pod or WorkloadEntry says, and the claim for the rest."""
        found = self.workload(Ref("Pod", claim.namespace, claim.name)) or self._at(claim)
        client = Client(
            namespace=claim.namespace,
            labels=claim.labels,
            addresses=claim.addresses,
            service_account=claim.service_account,
            locality=labelled_locality(dict(claim.labels)),
            network=claim.network,
            node=claim.node,
            mode=claim.mode or self._annotated_mode(claim),
            kind=claim.kind,
            domain=claim.domain,
            http10=claim.http10,
            workload=claim.workload or claim.name,
            pieces=self.pieces(claim),
            dns=claim.dns,
            allocates=claim.allocates,
        )
        if client.locality == NOWHERE:
            at = self.node_locality(claim.node)
            client = msgspec.structs.replace(client, locality=claim.locality if at == NOWHERE else at)
        if found is None:
            return client
        return msgspec.structs.replace(
            client,
            labels=found.labels,
            addresses=found.addresses or claim.addresses,
            service_account=found.service_account,
            locality=client.locality if found.locality == NOWHERE else found.locality,
            network=found.network or claim.network,
            node=found.node or claim.node,
            workload=found.name,
        )

    def _at(self, claim: Claim) -> Workload | None:
        for address in claim.addresses:
            if (pod := self.pod_at(claim.namespace, address)) is not None:
                return pod
            for ref in self.entries_by_address[claim.namespace, address]:
                return self.workload(ref)
        return None


def as_ports(mapping: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """A map of ports by name as sorted pairs."""
    return tuple(sorted(mapping.items()))
