"""Timeouts that callers set: `x-envoy-upstream-rq-timeout-ms` on a request rules over its route's (Istio: task "Request Timeouts").

Envoy's connection manager believes that header only of requests which it holds to be internal, and for that it would have to use
the remote address, overwriting the `x-forwarded-proto` that applications behind a gateway pass on. So the header is put aside
before the connection manager takes it away, and put back for the router, which consumes it.
"""

from typing import TYPE_CHECKING

from xds import pb

if TYPE_CHECKING:
    from xds.pb import envoy_config_common_mutation_rules_v3_HeaderMutation_Init as Mutation

TIMEOUT = "x-envoy-upstream-rq-timeout-ms"
ASIDE = "x-xds-rq-timeout-ms"


def _moved(source: str, to: str) -> "list[Mutation]":
    """Moves a header. Of one that is absent nothing comes: an empty value adds none."""
    copied: Mutation = {
        "append": {"header": {"key": to, "value": f"%REQ({source})%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    }
    return [copied, {"remove": source}]


PUT_ASIDE = pb.TypedExtensionConfig(
    name="envoy.http.early_header_mutation.header_mutation",
    typed_config=pb.any(pb.EarlyHeaderMutation(mutations=_moved(TIMEOUT, ASIDE))),
)
PUT_BACK = pb.HeaderMutation(mutations={"request_mutations": _moved(ASIDE, TIMEOUT)})
