"""The resource types, and what Envoy does differently with each."""

import msgspec

from xds import pb

PREFIX = pb.TYPE_URL_PREFIX

CLUSTER = pb.type_url(pb.Cluster)
ENDPOINTS = pb.type_url(pb.ClusterLoadAssignment)
LOCALITY_ENDPOINT = pb.type_url(pb.LbEndpoint)
LISTENER = pb.type_url(pb.Listener)
SCOPED_ROUTE = pb.type_url(pb.ScopedRouteConfiguration)
ROUTE = pb.type_url(pb.RouteConfiguration)
VIRTUAL_HOST = pb.type_url(pb.VirtualHost)
SECRET = pb.type_url(pb.Secret)
EXTENSION = pb.type_url(pb.TypedExtensionConfig)
RUNTIME = pb.type_url(pb.Runtime)


class TypeRules(msgspec.Struct, frozen=True):
    """How one resource type is served."""

    type_url: str
    short: str  # for people and metrics: `cds`
    order: int  # among the types of one stream, lowest first (rule O1)
    wildcard: bool = False  # no names in the first request mean all (W1)
    full_state: bool = False  # state-of-the-world responses hold the whole set; what is absent is deleted (R1)
    routes: bool = False  # sends traffic to clusters: waits for them, and they for it to let go (O1, O2)
    removable: bool = True  # Delta removals are sent (D7, R5)
    on_demand: bool = False  # requests wait for what is asked for, and a removal does not tell them that there is nothing (X4)


_TYPES = (
    TypeRules(CLUSTER, "cds", 0, wildcard=True, full_state=True),
    TypeRules(ENDPOINTS, "eds", 1),
    TypeRules(LOCALITY_ENDPOINT, "leds", 2),
    TypeRules(LISTENER, "lds", 3, wildcard=True, full_state=True, routes=True),
    TypeRules(SCOPED_ROUTE, "srds", 4, wildcard=True, full_state=True, routes=True),
    TypeRules(ROUTE, "rds", 5, routes=True),
    TypeRules(VIRTUAL_HOST, "vhds", 6, wildcard=True, routes=True, on_demand=True),
    TypeRules(SECRET, "sds", 7),
    TypeRules(EXTENSION, "ecds", 8, removable=False),
    TypeRules(RUNTIME, "rtds", 9),
)

TYPES = {rules.type_url: rules for rules in _TYPES}


def rules_of(type_url: str) -> TypeRules:
    """The rules of `type_url`; a type we know nothing of is served by name, after all others."""
    return TYPES.get(type_url) or TypeRules(type_url, type_url.rpartition(".")[2], len(_TYPES))
