"""Which endpoints a client gets, and in what order it uses them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.destinations import HOST, Destination, at, cluster, entry, priorities, reviews

from xds.envoy.endpoints import assignments, deciding_labels
from xds.envoy.localities import NODE, REGION, SUBZONE, ZONE, covers, project
from xds.mesh.model import Client, Endpoint, Health, Labels, Locality, Port, Protocol, Resolution

NEAR, SAME_ZONE, SAME_REGION, SECOND, FAR = "r1/z1/s1", "r1/z1/s2", "r1/z2/s1", "r2/z1/s1", "r3/z1/s1"
PLACES = {"10.0.0.1": NEAR, "10.0.0.2": SAME_ZONE, "10.0.0.3": SAME_REGION, "10.0.0.4": SECOND, "10.0.0.5": FAR}
ENDPOINTS = [at(address, place=place) for address, place in PLACES.items()]
OUTLIERS = {"outlierDetection": {"consecutive5xxErrors": 1}}
ZONE_AWARE = {"loadBalancer": {"zoneAwareLbSetting": {"enabled": True}}}


def client(place: str = NEAR, **fields: Any) -> Client:
    return Client("default", locality=Locality(*place.split("/")) if place else Locality(), **fields)


def locality(settings: dict[str, Any], outliers: bool = True) -> dict[str, Any]:
    return {"loadBalancer": {"localityLbSetting": settings}, **(OUTLIERS if outliers else {})}


def ordered(policy: dict[str, Any] | None, of: Client, endpoints: Any = ENDPOINTS, **kwargs: Any) -> list[list[str]]:
    """The last number of the endpoints' addresses, by priority."""
    found = priorities(Destination(policy=policy, endpoints=endpoints, **kwargs).assignment(of))
    return [[address.rpartition(".")[2] for address in level] for level in found]


def weights(assignment: Any) -> dict[str, int]:
    """The weights of localities."""
    return {
        "/".join(p for p in (e.locality.region, e.locality.zone, e.locality.sub_zone) if p): e.load_balancing_weight.value
        for e in assignment.endpoints
    }


class TestWhichAssignments:
    def test_each_cluster_that_asks_has_one_of_its_name(self) -> None:
        service = reviews(Port(80, "http", Protocol.HTTP), Port(53, "dns", Protocol.UDP), Port(90, "tcp", Protocol.TCP))
        view = Destination(service, subsets=[{"name": "v1", "labels": {"version": "v1"}}])
        asked = [c.eds_cluster_config.service_name for c in view.clusters().values()]
        assert [a.cluster_name for a in view.assignments().values()] == asked != []

    @pytest.mark.parametrize("resolution", [Resolution.DNS, Resolution.DNS_ROUND_ROBIN, Resolution.DYNAMIC_DNS])
    def test_names_that_dns_resolves_have_none(self, resolution: Resolution) -> None:
        assert Destination(entry("a.example.com", resolution=resolution), endpoints=[at("a.example.com")]).assignments() == {}

    def test_what_goes_where_the_caller_was_going_has_none(self) -> None:
        assert Destination(policy={"loadBalancer": {"simple": "PASSTHROUGH"}}, endpoints=ENDPOINTS).assignments() == {}

    def test_headless_services_have_them_for_those_who_ask(self) -> None:
        view = Destination(reviews(headless=True, resolution=Resolution.PASSTHROUGH), endpoints=ENDPOINTS)
        assert set(view.assignments()) == set(view.clusters(Client("default", kind="router"))) != set()

    def test_no_endpoints_is_an_assignment_too(self) -> None:
        assert not Destination().assignment().endpoints


class TestEndpoints:
    def test_addresses(self) -> None:
        (found,) = Destination(endpoints=[at("10.0.0.1", 8080)]).assignment().endpoints
        (endpoint,) = found.lb_endpoints
        socket = endpoint.endpoint.address.socket_address
        assert (socket.address, socket.port_value) == ("10.0.0.1", 8080)
        assert not endpoint.HasField("load_balancing_weight")
        assert endpoint.health_status == 0

    def test_unix_sockets(self) -> None:
        (found,) = Destination(endpoints=[at("unix:///run/app.sock", 0)]).assignment().endpoints
        assert found.lb_endpoints[0].endpoint.address.pipe.path == "/run/app.sock"

    def test_a_name_is_left_out_and_harms_no_other(self) -> None:
        endpoints = [at("10.0.0.1"), at("vm.example.com"), at("fd00::1"), at("unix:///run/a.sock", 0)]
        (found,) = Destination(endpoints=endpoints).assignment().endpoints
        addresses = [e.endpoint.address for e in found.lb_endpoints]
        assert [a.pipe.path or a.socket_address.address for a in addresses] == ["10.0.0.1", "fd00::1", "/run/a.sock"]

    def test_a_subset_has_those_with_its_labels(self) -> None:
        v1, v2 = (at(f"10.0.0.{n}", labels=(("app", "reviews"), ("version", f"v{n}"))) for n in (1, 2))
        view = Destination(subsets=[{"name": "v2", "labels": {"version": "v2"}}], endpoints=[v1, v2])
        found = view.assignments()
        assert priorities(found[f"outbound|9080||{HOST}"]) == [["10.0.0.1", "10.0.0.2"]]
        assert priorities(found[f"outbound|9080|v2|{HOST}"]) == [["10.0.0.2"]]

    def test_localities_are_groups_and_weigh_what_their_endpoints_weigh(self) -> None:
        endpoints = [at("10.0.0.1", place="r/z", weight=5), at("10.0.0.2", place="r/z"), at("10.0.0.3")]
        assert weights(Destination(endpoints=endpoints).assignment()) == {"": 1, "r/z": 6}

    def test_an_unknown_locality_is_said_to_be_empty(self) -> None:
        # gRPC refuses localities that are absent.
        assert Destination(endpoints=[at("10.0.0.1")]).assignment().endpoints[0].HasField("locality")

    def test_weights_beyond_what_envoy_adds_up_are_capped(self) -> None:
        endpoints = [at("10.0.0.1", weight=2**32 - 1), at("10.0.0.2", weight=2**32 - 1)]
        assert weights(Destination(endpoints=endpoints).assignment()) == {"": 2**32 - 1}

    def test_those_that_are_not_ready_are_told_so(self) -> None:
        endpoints = [at("10.0.0.1", health=Health.UNHEALTHY), at("10.0.0.2", health=Health.DRAINING)]
        (found,) = Destination(endpoints=endpoints).assignment().endpoints
        assert [e.health_status for e in found.lb_endpoints] == [2, 3]

    def test_but_not_where_envoy_may_fall_back_on_them(self) -> None:
        endpoints = [at("10.0.0.1", health=Health.UNHEALTHY), at("10.0.0.2")]
        found = Destination(policy={"outlierDetection": {"minHealthPercent": 10}}, endpoints=endpoints).assignment()
        assert priorities(found) == [["10.0.0.2"]]


class TestWorkloadMetadata:
    def workload(self, labels: Labels, name: str = "reviews-v1") -> str:
        (found,) = Destination(endpoints=[at("10.0.0.1", workload=name, labels=labels)]).assignment().endpoints
        metadata = found.lb_endpoints[0].metadata.filter_metadata
        return str(metadata["istio"]["workload"]) if "istio" in metadata else ""

    @pytest.mark.parametrize(
        ("labels", "canonical"),
        [
            ((), "reviews-v1;latest"),
            ((("app", "reviews"), ("version", "v1")), "reviews;v1"),
            ((("app", "a"), ("app.kubernetes.io/name", "b"), ("app.kubernetes.io/version", "v2"), ("version", "v1")), "b;v2"),
            (
                (
                    ("app.kubernetes.io/name", "b"),
                    ("service.istio.io/canonical-name", "c"),
                    ("service.istio.io/canonical-revision", "v3"),
                ),
                "c;v3",
            ),
        ],
    )
    def test_it_has_workload_and_canonical_service(self, labels: Labels, canonical: str) -> None:
        assert self.workload(labels) == f"reviews-v1;default;{canonical};Kubernetes"

    def test_what_is_no_workload_has_none(self) -> None:
        assert self.workload((), name="") == ""


class TestFailover:
    def test_the_nearest_come_first(self) -> None:
        assert ordered(OUTLIERS, client()) == [["1"], ["2"], ["3"], ["4", "5"]]

    def test_priorities_have_no_gaps(self) -> None:
        assert ordered(OUTLIERS, client("r3/z1/s1")) == [["5"], ["1", "2", "3", "4"]]
        assert ordered(OUTLIERS, client("r9/z9/s9")) == [["1", "2", "3", "4", "5"]]

    def test_not_without_outlier_detection(self) -> None:
        assert ordered(None, client()) == [["1", "2", "3", "4", "5"]]

    def test_not_where_it_is_turned_off(self) -> None:
        assert ordered(locality({"enabled": False}), client()) == [["1", "2", "3", "4", "5"]]

    def test_not_where_the_mesh_turns_it_off(self) -> None:
        assert ordered(OUTLIERS, client(), config={"localityLbSetting": {"enabled": False}}) == [["1", "2", "3", "4", "5"]]

    def test_the_rule_may_turn_it_on_again(self) -> None:
        config = {"localityLbSetting": {"enabled": False}}
        assert len(ordered(locality({"enabled": True}), client(), config=config)) == 4

    def test_not_for_a_client_that_is_nowhere(self) -> None:
        assert ordered(OUTLIERS, client("")) == [["1", "2", "3", "4", "5"]]

    def test_to_a_region_of_choice(self) -> None:
        settings = {"failover": [{"from": "r1", "to": "r3"}]}
        assert ordered(locality(settings), client()) == [["1"], ["2"], ["3"], ["5"], ["4"]]

    def test_of_another_region_is_not_ours(self) -> None:
        settings = {"failover": [{"from": "r2", "to": "r3"}]}
        assert ordered(locality(settings), client()) == [["1"], ["2"], ["3"], ["4", "5"]]

    def test_one_locality_may_stand_at_several_priorities(self) -> None:
        endpoints = [at("10.0.0.1", place="r/z", labels=(("tier", "a"),)), at("10.0.0.2", place="r/z")]
        found = ordered(locality({"failoverPriority": ["tier"]}), client(labels=(("tier", "a"),)), endpoints)
        assert found == [["1"], ["2"]]


class TestFailoverPriority:
    ENDPOINTS = (
        at("10.0.0.1", place="r1/z1", labels=(("cell", "a"), ("tier", "x"))),
        at("10.0.0.2", place="r1/z2", labels=(("cell", "a"), ("tier", "y"))),
        at("10.0.0.3", place="r2/z1", labels=(("cell", "b"), ("tier", "x"))),
        at("10.0.0.4", place="r1/z1", labels=(("tier", "x"),)),
    )

    def test_the_first_label_that_differs_decides(self) -> None:
        of = client(labels=(("cell", "a"), ("tier", "x")))
        assert ordered(locality({"failoverPriority": ["cell", "tier"]}), of, self.ENDPOINTS) == [["1"], ["2"], ["3", "4"]]

    def test_places_are_labels(self) -> None:
        settings = {"failoverPriority": [REGION, ZONE]}
        assert ordered(locality(settings), client("r1/z1"), self.ENDPOINTS) == [["1", "4"], ["2"], ["3"]]

    def test_a_value_may_be_given(self) -> None:
        settings = {"failoverPriority": ["cell=b"]}
        assert ordered(locality(settings), client(), self.ENDPOINTS) == [["3"], ["1", "2", "4"]]

    def test_a_label_that_neither_has_agrees(self) -> None:
        settings = {"failoverPriority": ["cell"]}
        assert ordered(locality(settings), client(), self.ENDPOINTS) == [["4"], ["1", "2", "3"]]

    def test_regions_of_choice_order_what_is_equally_near(self) -> None:
        settings = {"failoverPriority": ["tier"], "failover": [{"from": "r1", "to": "r2"}]}
        of = client("r1/z1", labels=(("tier", "x"),))
        assert ordered(locality(settings), of, self.ENDPOINTS) == [["1", "4"], ["3"], ["2"]]

    def test_not_without_outlier_detection(self) -> None:
        assert len(ordered(locality({"failoverPriority": ["cell"]}, outliers=False), client(), self.ENDPOINTS)) == 1


class TestTrafficDistribution:
    @pytest.mark.parametrize("kind", ["PreferClose", "PreferSameZone"])
    def test_the_same_zone_comes_first_even_without_outlier_detection(self, kind: str) -> None:
        service = reviews(traffic_distribution=kind)
        assert ordered(None, client(), service=service) == [["1", "2"], ["3"], ["4", "5"]]

    def test_the_same_node(self) -> None:
        places = {"a": NEAR, "b": NEAR, "c": FAR}
        endpoints = [at(f"10.0.0.{n}", place=place, node=node) for n, (node, place) in enumerate(places.items(), 1)]
        service = reviews(traffic_distribution="PreferSameNode")
        assert ordered(None, client(node="b"), endpoints, service=service) == [["2"], ["1"], ["3"]]

    def test_the_rules_own_setting_stands_over_it(self) -> None:
        service = reviews(traffic_distribution="PreferClose")
        assert ordered(locality({"enabled": False}), client(), service=service) == [["1", "2", "3", "4", "5"]]


class TestZoneAware:
    def test_regions_take_over_and_zones_do_not(self) -> None:
        assert ordered({**ZONE_AWARE, **OUTLIERS}, client()) == [["1", "2", "3"], ["4", "5"]]

    def test_not_without_outlier_detection(self) -> None:
        assert len(ordered(ZONE_AWARE, client())) == 1

    def test_to_a_region_of_choice(self) -> None:
        setting = {"enabled": True, "failover": [{"from": "r1", "to": "r3"}]}
        policy = {"loadBalancer": {"zoneAwareLbSetting": setting}, **OUTLIERS}
        assert ordered(policy, client()) == [["1", "2", "3"], ["5"], ["4"]]


class TestDistribute:
    def shares(self, to: dict[str, int], of: Client, from_: str = "r1/*", endpoints: Any = ENDPOINTS) -> dict[str, int]:
        settings = {"distribute": [{"from": "other/*", "to": {"r1/*": 100}}, {"from": from_, "to": to}]}
        return weights(Destination(policy=locality(settings, outliers=False), endpoints=endpoints).assignment(of))

    def test_localities_share_a_percentage_by_their_weights(self) -> None:
        endpoints = [*ENDPOINTS, at("10.0.0.6", place=NEAR, weight=2)]
        found = self.shares({"r1/*": 80, "r2/*": 20}, client(), endpoints=endpoints)
        total = sum(found.values())
        assert {place: round(100 * share / total) for place, share in found.items()} == {
            NEAR: 48,
            SAME_ZONE: 16,
            SAME_REGION: 16,
            SECOND: 20,
        }

    def test_what_has_no_share_is_left_out(self) -> None:
        assert set(self.shares({"r2/*": 100}, client())) == {SECOND}

    def test_the_most_specific_destination_has_a_locality(self) -> None:
        found = self.shares({"*": 50, "r1/z1/*": 50}, client())
        assert found[NEAR] == found[SAME_ZONE] == 250_000
        assert found[SAME_REGION] == found[SECOND] == found[FAR]

    def test_other_clients_are_not_concerned(self) -> None:
        assert set(self.shares({"r2/*": 100}, client(FAR)).values()) == {1}

    def test_all_share_one_priority(self) -> None:
        settings = {"distribute": [{"from": "*", "to": {"r1/*": 80, "r2/*": 20}}]}
        assert ordered(locality(settings), client()) == [["1", "2", "3", "4"]]

    @pytest.mark.parametrize(
        ("pattern", "covered"),
        [
            *((pattern, True) for pattern in ("*", "r1", "r1/*", "r1/z1/*", "r1/z1/s1", "r1/*/s1")),
            *((pattern, False) for pattern in ("r2", "r1/z2/*", "r1/z1/s2", "r1/*/s2")),
        ],
    )
    def test_patterns(self, pattern: str, covered: bool) -> None:
        assert covers(pattern, Locality("r1", "z1", "s1")) is covered


class TestNodeLocal:
    def test_only_the_clients_node_serves_it(self) -> None:
        endpoints = [at("10.0.0.1", node="a"), at("10.0.0.2", node="b")]
        assert ordered(None, client(node="b"), endpoints, service=reviews(node_local=True)) == [["2"]]


class TestWhatDecides:
    """What a client is told depends on these of its labels, so that clients that are equal in them share."""

    @pytest.mark.parametrize(
        ("policy", "fields", "labels"),
        [
            (None, {}, set()),
            (OUTLIERS, {}, {REGION, ZONE, SUBZONE}),
            (locality({"enabled": False}), {}, set()),
            (locality({"failoverPriority": ["cell", "tier=x", ZONE]}), {}, {"cell", ZONE}),
            (locality({"distribute": [{"from": "*", "to": {"*": 100}}]}, outliers=False), {}, {REGION, ZONE, SUBZONE}),
            ({**ZONE_AWARE, **OUTLIERS}, {}, {REGION}),
            (None, {"node_local": True}, {NODE}),
            (None, {"traffic_distribution": "PreferClose"}, {REGION, ZONE, "topology.istio.io/network"}),
        ],
    )
    def test_labels(self, policy: Any, fields: dict[str, Any], labels: set[str]) -> None:
        service = reviews(**fields)
        view = Destination(service, policy)
        assert deciding_labels(view, service) == labels

    def test_those_of_subsets_count(self) -> None:
        service = reviews()
        view = Destination(service, subsets=[{"name": "v1", "trafficPolicy": OUTLIERS}])
        assert deciding_labels(view, service) == {REGION, ZONE, SUBZONE}

    names = st.sampled_from(["", "a", "b"])
    places = st.builds(Locality, names, names, names)
    labelled = st.dictionaries(st.sampled_from(["cell", "tier"]), names).map(lambda d: tuple(sorted(d.items())))
    clients = st.builds(Client, st.just("default"), labels=labelled, locality=places, node=names, network=names)
    endpoint = st.builds(Endpoint, st.sampled_from(list(PLACES)), st.just(80), labelled, places, network=names, node=names)
    settings = st.sampled_from(
        [
            {"enabled": True},
            {"failover": [{"from": "a", "to": "b"}]},
            {"failoverPriority": ["cell", REGION]},
            {"failoverPriority": ["tier=a"], "failover": [{"from": "a", "to": "b"}]},
            {"distribute": [{"from": "a/*", "to": {"a/*": 60, "*": 40}}]},
        ]
    )
    kinds = st.sampled_from(["", "PreferClose", "PreferSameNode"])

    @given(clients, st.lists(endpoint, max_size=6), st.none() | settings, kinds, st.booleans(), st.booleans())
    def test_nothing_else_of_a_client_changes_what_it_gets(
        self, of: Client, endpoints: list[Endpoint], setting: Any, kind: str, outliers: bool, node_local: bool
    ) -> None:
        policy = ({} if setting is None else {"loadBalancer": {"localityLbSetting": setting}}) | (OUTLIERS if outliers else {})
        service = reviews(traffic_distribution=kind, node_local=node_local)
        view = Destination(service, policy, endpoints=endpoints)
        seen = project(of, deciding_labels(view, service))
        assert assignments(view, service, seen) == assignments(view, service, of)


class TestDns:
    def test_names_are_ordered_in_the_cluster_itself(self) -> None:
        found = cluster(OUTLIERS, client(), service=entry("a.example.com"), endpoints=ENDPOINTS)
        assert [len(level) for level in priorities(found.load_assignment)] == [1, 1, 1, 2]
