"""Names are public: dashboards and EnvoyFilters hold them."""

from xds.envoy.names import inbound_cluster_name, outbound_cluster_name, server_name

REVIEWS = "reviews.default.svc.cluster.local"


def test_outbound_cluster_has_istios_name() -> None:
    assert outbound_cluster_name(REVIEWS, 9080) == f"outbound|9080||{REVIEWS}"
    assert outbound_cluster_name(REVIEWS, 9080, "v1") == f"outbound|9080|v1|{REVIEWS}"


def test_inbound_cluster_has_istios_name() -> None:
    assert inbound_cluster_name(8080) == "inbound|8080||"


def test_server_name_has_istios_form() -> None:
    assert server_name(REVIEWS, 9080, "v1") == f"outbound_.9080_.v1_.{REVIEWS}"
