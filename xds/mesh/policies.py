"""DestinationRules: which apply to a service for clients of a scope, and what they come to.

Istio looks for a rule in the client's namespace, then among those exported from the service's, then from the root namespace, and
takes the most specific host in each. Rules of one namespace for the same host are one: subsets add up, the oldest policy stands.
"""

import msgspec

from xds import flow
from xds import objects as api
from xds.mesh.model import DestinationPolicy, Scope, Subset
from xds.mesh.names import patterns, qualified
from xds.mesh.routing import Routings
from xds.mesh.services import as_labels, exported
from xds.mesh.settings import contains

# What settings for a port replace, given there or not.
_PER_PORT = ("connection_pool", "outlier_detection", "load_balancer", "tls")
_BLOCKS = (*_PER_PORT, "tunnel", "proxy_protocol", "retry_budget")


def layered(base: api.TrafficPolicy, over: api.TrafficPolicy | None, port: int, defaults: api.TrafficPolicy) -> api.TrafficPolicy:
    """`over` laid on `base`, block by block, for one port.

    Istio: DestinationRule `portLevelSettings`: what a port's settings leave out is not inherited, but has its default.
    """
    if over is None:
        return base
    blocks = {name: value for name in _BLOCKS if (value := getattr(over, name)) is not None}
    own = next((p for p in over.port_level_settings if p.port is not None and p.port.number == port), None)
    if own is not None:
        for name in _PER_PORT:
            value = getattr(own, name)
            blocks[name] = getattr(defaults, name) if value is None else value
    return msgspec.structs.replace(base, **blocks)


class Policies(Routings):
    """DestinationRules by service and scope."""

    def __init__(self) -> None:
        super().__init__()
        self.destination_rules = self.index("DestinationRules by host", _rule_key, "DestinationRule")

    @flow.derived
    def policy(self, scope: Scope, hostname: str, namespace: str) -> DestinationPolicy:
        """What DestinationRules say of the service (`hostname`, `namespace`) to clients of `scope`."""
        root = self.root()
        places = [namespace, root]
        if scope.namespace and scope.namespace != root:
            # In the root namespace, rules for everyone must not hide those of the service's own namespace.
            places.insert(0, scope.namespace)
        elif scope.namespace:
            own = self._rules(scope, root, hostname, local=True)
            if own:
                return self._merged(own)
        for place in dict.fromkeys(places):
            rules = self._rules(scope, place, hostname)
            if rules:
                return self._merged(rules)
        return DestinationPolicy()

    def _rules(self, scope: Scope, namespace: str, hostname: str, local: bool = False) -> list[api.DestinationRule]:
        """The rules of `namespace` for the most specific host that `scope` finds any for, oldest first; `local`: private ones."""
        if not self.discovered(namespace):
            return []
        for pattern in patterns(hostname):
            rules: list[api.DestinationRule] = [self.item(ref) for ref in self.destination_rules[namespace, pattern]]
            seen = [rule for rule in rules if self._applies(rule, scope, local)]
            selecting = [rule for rule in seen if rule.spec.workload_selector is not None]
            if selecting:
                first = selecting[0].spec.workload_selector
                return [rule for rule in selecting if rule.spec.workload_selector == first]
            if seen:
                return seen
        return []

    def _applies(self, rule: api.DestinationRule, scope: Scope, local: bool) -> bool:
        namespace, selector = rule.ref.namespace, rule.spec.workload_selector
        if selector is not None:
            return namespace == scope.namespace and contains(scope.labels, selector.match_labels)
        export_to = exported(rule.spec.export_to, namespace, self.config().default_destination_rule_export_to)
        if local:
            return export_to == {namespace}
        return "*" in export_to or scope.namespace in export_to

    def _merged(self, rules: list[api.DestinationRule]) -> DestinationPolicy:
        subsets: dict[str, Subset] = {}
        for rule in rules:
            for subset in rule.spec.subsets:
                subsets.setdefault(subset.name, Subset(subset.name, as_labels(subset.labels), subset.traffic_policy))
        return DestinationPolicy(
            policy=next((r.spec.traffic_policy for r in rules if r.spec.traffic_policy is not None), None),
            subsets=tuple(subsets.values()),
            refs=tuple(rule.ref for rule in rules),
            selects=rules[0].spec.workload_selector is not None,
        )

    @flow.derived
    def traffic_policy(self, scope: Scope, hostname: str, namespace: str, port: int, subset: str = "") -> api.TrafficPolicy:
        """All that applies to one port of a service, or of one of its subsets. Nothing in it is by port any more."""
        mesh = self.config().default_traffic_policy
        defaults = api.TrafficPolicy()
        if mesh is not None:
            defaults = api.TrafficPolicy(connection_pool=mesh.connection_pool, outlier_detection=mesh.outlier_detection)
        rule = self.policy(scope, hostname, namespace)
        policy = layered(defaults, rule.policy, port, defaults)
        part = rule.subset(subset) if subset else None
        return policy if part is None else layered(policy, part.policy, port, defaults)


def _rule_key(rule: api.DestinationRule) -> tuple[tuple[str, str], ...]:
    return ((rule.ref.namespace, qualified(rule.spec.host, rule.ref.namespace)),)
