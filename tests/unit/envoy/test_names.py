"""Names are public: dashboards and EnvoyFilters hold them."""

import pytest

from xds.envoy import names

REVIEWS = "reviews.default.svc.cluster.local"


def test_outbound_cluster_has_istios_name() -> None:
    assert names.outbound(REVIEWS, 9080) == f"outbound|9080||{REVIEWS}"
    assert names.outbound(REVIEWS, 9080, "v1") == f"outbound|9080|v1|{REVIEWS}"


def test_inbound_cluster_has_istios_name() -> None:
    assert names.inbound(8080) == "inbound|8080||"


def test_server_name_has_istios_form() -> None:
    assert names.sni(REVIEWS, 9080, "v1") == f"outbound_.9080_.v1_.{REVIEWS}"


@pytest.mark.parametrize(("hostname", "port", "subset"), [(REVIEWS, 80, ""), ("*.example.com", 443, "v-1"), ("a", 1, "b.c")])
def test_outbound_name_can_be_taken_apart(hostname: str, port: int, subset: str) -> None:
    assert names.parse_outbound(names.outbound(hostname, port, subset)) == names.Outbound(hostname, port, subset)


@pytest.mark.parametrize("name", ["", "PassthroughCluster", "inbound|8080||", "outbound|x||a", "outbound|80|a", "a|80||b"])
def test_other_names_are_not_outbound(name: str) -> None:
    assert names.parse_outbound(name) is None
