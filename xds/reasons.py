"""Why a proxy's resources are as they are: the objects behind each of them, as the graph has read them."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from xds import flow
from xds.discovery.resources import Resource
from xds.discovery.status import Rejection
from xds.envoy.classes import Classes, claim_of
from xds.envoy.translation import Workload
from xds.mesh.workloads import Claim
from xds.objects.meta import Ref

RULES = ("DestinationRule", "VirtualService", "ServiceEntry", "Sidecar")
MOST_BLAMED = 8  # a rejected resource that more rules are behind, a route table say, tells nothing of any of them

Explained = dict[str, list[tuple[Resource, tuple[str, ...]]]]


def explained(classes: Classes, claimed: Claim, type_urls: Sequence[str] = ()) -> Explained:
    """What the proxy that makes this claim gets, by type (all of them, unless some are named), each resource with the objects behind it."""
    mesh = classes.mesh
    client = mesh.client(claimed)
    called = mesh.inbound.node(client)
    sidecar = mesh.sidecar(client.namespace, client.labels)
    others = set(mesh.sidecars[client.namespace]) - ({sidecar, mesh.egress_sidecar(sidecar)} if sidecar is not None else set())
    found: Explained = {}
    with classes.asked(claimed) as (assignment, feeds):
        for type_url in type_urls or assignment.groups:
            found[type_url] = []
            for group in assignment.groups.get(type_url, ()):
                for resource in group.resources.values():
                    source = feeds[group.name].sources(resource.name)
                    # The inbound side is made from a value, the ports that the workload is called at, so what made that counts too.
                    behind = [] if source is None else [source, called] if isinstance(source.args[0], Workload) else [source]
                    found[type_url].append((resource, _objects(behind, others)))
    return found


def _objects(sources: Iterable[flow.Node], but: Collection[Ref]) -> tuple[str, ...]:
    """The objects that derived values were made from, by name, sorted: what they read that exists. `but` were read and had no effect."""
    read = (node for source in sources for node in source.why() if node.owner.name == "objects" and node.value is not None)
    return tuple(sorted({str(node.args[0]) for node in read if node.args[0] not in but}))


def blamed(classes: Classes, rejections: Iterable[Rejection]) -> list[dict[str, Any]]:
    """What proxies reject, as problems of the rules that it is made from: each with one proxy's reason, and how many there are."""
    found: dict[tuple[str, str], list[Rejection]] = {}
    for rejection in rejections:
        resources = explained(classes, claim_of(rejection.stream), [rejection.type_url])[rejection.type_url]
        for resource, objects in resources:
            rules = [name for name in objects if name.startswith(RULES)]
            if resource.name in rejection.names and len(rules) <= MOST_BLAMED:
                for rule in rules:
                    found.setdefault((rule, resource.name), []).append(rejection)
    return [
        {
            "object": rule,
            "problem": f"{name} is rejected by {len(by)} proxies, as by {by[0].stream.node.id}: {by[0].error}",
            "warning": False,
            "in_force": True,
        }
        for (rule, name), by in sorted(found.items())
    ]


def overshadowed(classes: Classes) -> list[dict[str, Any]]:
    """Service ports that connections to some address never come to, as problems of what defines them."""
    found = []
    for conflict in sorted(classes.translation.conflicts(), key=lambda c: (c.loser, c.listener, c.winner or ())):
        hostname, namespace, port = conflict.loser
        service = classes.mesh.service(hostname, namespace)
        if service is not None:
            owner = "every proxy's own" if conflict.winner is None else "{0}:{2}, of {1}, which is older".format(*conflict.winner)
            problem = f"port {port} of {hostname}: what is called at {conflict.listener} never comes to it; the listener is {owner}"
            found.append({"object": str(service.ref), "problem": problem, "warning": True, "in_force": True})
    return found
