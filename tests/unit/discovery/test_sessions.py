"""The protocol machines, rule by rule, without a network: what needs a clock, or an order that a network does not promise.

What any client can see is tested on a running product, in tests/protocol. The rules' names are those of docs/protocol.md.
"""

import pytest
from support.talk import DeltaTalk, SotwTalk, names_of, resource

from xds import pb
from xds.discovery.protocol import Memory, Responses
from xds.discovery.protocol import types as t
from xds.discovery.protocol.session import PATIENCE, UNACKED_MAX
from xds.discovery.protocol.unsettled import Unsettled
from xds.discovery.resources import Assignment, Group, Resource
from xds.errors import ProtocolError


def eds_cluster(name: str, **fields: object) -> Resource:
    return Resource.of(pb.Cluster(name=name, type="EDS", eds_cluster_config={"eds_config": {"ads": {}}}, **fields))


class TestNonces:
    def test_grow_on_a_stream_even_where_responses_are_shared(self) -> None:
        """V1: what another stream encoded before is not sent with its nonce after a newer one."""
        responses = Responses("test", "n")
        one = DeltaTalk(resource("a"), responses=responses)
        two = DeltaTalk(responses=responses, groups=one.groups)
        for talk in (one, two):
            talk.say(subscribe=["a"])
        first, shared = one.take(), two.take()
        assert first.nonce == shared.nonce
        one.put(resource("a", "1"))
        two.ack(shared)
        seen = [int(shared.nonce.rpartition("-")[2]), *(int(r.nonce.rpartition("-")[2]) for r in two.all())]
        assert seen == sorted(set(seen))

    def test_of_a_response_that_was_answered_is_stale(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        response = talk.take()
        talk.ack(response)
        assert talk.session.expired == ""
        talk.ack(response)
        assert talk.session.expired == "eds"


class TestPatience:
    """V13"""

    def test_a_change_waits_for_the_acknowledgement(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        first = talk.take()
        talk.put(resource("a", "1"))
        assert talk.take() is None
        assert talk.session.wake_at == talk.now + PATIENCE
        talk.ack(first)
        assert names_of(talk.take()) == {"a"}

    def test_it_ends_and_the_newest_state_is_sent(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        talk.take()
        talk.put(resource("a", "1"))
        talk.put(resource("a", "2"))
        talk.now += PATIENCE
        assert talk.take().resources[0].resource.value == b"a|2"
        assert talk.take() is None

    def test_what_goes_back_meanwhile_is_not_sent(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        talk.ack(talk.take())
        talk.put(resource("a", "1"))
        talk.put(resource("a"))
        assert talk.take() is None

    def test_a_client_that_never_acknowledges_costs_a_bounded_memory(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        for step in range(UNACKED_MAX * 3):
            talk.put(resource("a", str(step)))
            talk.now += PATIENCE
            assert talk.take() is not None
        assert len(talk.session.watches[t.ENDPOINTS].unacked) == UNACKED_MAX

    def test_endpoints_do_not_wait_for_their_cluster(self) -> None:
        """O3: Envoy acknowledges a cluster when it has its endpoints."""
        talk = DeltaTalk(eds_cluster("c"), resource("c"))
        talk.say(t.CLUSTER)
        talk.say(subscribe=["c"])
        assert talk.take().type_url == t.CLUSTER
        assert talk.take().type_url == t.ENDPOINTS

    def test_routes_wait_for_the_clusters_they_may_lead_to(self) -> None:
        """O1"""
        talk = DeltaTalk(eds_cluster("c"), resource("r", kind=t.ROUTE))
        talk.say(t.CLUSTER)
        talk.say(t.ROUTE, ["r"])
        clusters = talk.take()
        assert talk.take() is None
        talk.ack(clusters)
        assert talk.take().type_url == t.ROUTE

    def test_a_silent_client_keeps_cluster_removals_no_longer_than_it_is_waited_for(self) -> None:
        """O2"""
        talk = DeltaTalk(eds_cluster("c"), resource("r", kind=t.ROUTE))
        talk.say(t.CLUSTER)
        talk.say(t.ROUTE, ["r"])
        talk.all()
        talk.remove("c", kind=t.CLUSTER)
        talk.put(resource("r", "1", kind=t.ROUTE))
        assert talk.take().type_url == t.ROUTE
        assert talk.take() is None
        talk.now += PATIENCE
        assert list(talk.take().removed_resources) == ["c"]


class TestRejection:
    """V7 to V9, D4, D5"""

    def test_what_was_subscribed_with_it_is_sent_again(self) -> None:
        """A name that was new in the rejected response was never held, though its group had it all along."""
        talk = DeltaTalk(resource("a"), resource("b", "bad"), resource("c"))
        talk.say(subscribe=["c"])
        talk.all()
        talk.say(subscribe=["a", "b"])
        talk.nack(talk.take())
        held: set[str] = set()
        while (response := talk.take()) is not None:
            if b"b|bad" in [each.resource.value for each in response.resources]:
                talk.nack(response)
            else:
                held |= names_of(response)
                talk.ack(response)
        assert held == {"a"}

    def test_endpoints_that_a_cluster_waits_for_are_sent_again(self) -> None:
        """D2: though the client held them before."""
        talk = DeltaTalk(eds_cluster("c"), resource("c"), resource("d"))
        talk.say(t.CLUSTER)
        talk.say(subscribe=["c", "d"])
        talk.all()
        talk.put(eds_cluster("c", alt_stat_name="x"), resource("d", "bad"))
        talk.ack(talk.take())
        talk.nack(talk.take())
        sent = []
        while (response := talk.take()) is not None:
            if names_of(response) == {"d"} and response.resources[0].resource.value == b"d|bad":
                talk.nack(response)
            else:
                sent.append(names_of(response))
                talk.ack(response)
        assert {"c"} in sent

    def test_of_what_is_asked_for_again_is_answered(self) -> None:
        """W6: whoever asks wants an answer."""
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        talk.nack(talk.take())
        assert talk.take() is None
        talk.say(subscribe=["a"])
        assert names_of(talk.take()) == {"a"}

    def test_of_a_superseded_response_blames_nobody_in_the_newer_one(self) -> None:
        """A full response holds the bad resource once more, beside a good one that is new: the new one is not to blame."""
        talk = SotwTalk(resource("a", "bad", kind=t.CLUSTER))
        talk.say(t.CLUSTER)
        first = talk.take()
        talk.put(resource("b", kind=t.CLUSTER))
        talk.now += PATIENCE
        second = talk.take()
        assert names_of(second) == {"a", "b"}
        talk.nack(first, "Error adding/updating cluster(s) a: bad")
        talk.nack(second, "Error adding/updating cluster(s) a: bad")
        assert set(talk.session.watches[t.CLUSTER].rejected) == {"a"}

    def test_of_the_last_good_version_by_a_picky_client_comes_to_rest(self) -> None:
        """Another client rejected the newest, so the last good one is offered; this one rejects that too."""
        group = Group(t.ENDPOINTS, "test", [resource("a", "odd")])
        groups = {t.ENDPOINTS: group}
        usual, picky = DeltaTalk(groups=groups), DeltaTalk(groups=groups)
        usual.say(subscribe=["a"])
        usual.ack(usual.take())
        picky.say(subscribe=["a"])
        picky.nack(picky.take())
        group.update({"a": resource("a", "bad")})
        usual.nack(usual.take())
        assert group.get("a") == resource("a", "odd")
        rejected = 0
        while (response := picky.take()) is not None:
            picky.nack(response)
            rejected += 1
        assert rejected <= 1

    def test_of_a_returning_clients_first_answer_still_tells_it_what_is_gone(self) -> None:
        """R1: in the state of the world there is no other way to."""
        talk = SotwTalk(resource("a", "bad", kind=t.CLUSTER))
        talk.say(t.CLUSTER, version_info="of-an-earlier-stream")
        talk.nack(talk.take(), "Error adding/updating cluster(s) a: bad")
        response = talk.take()
        assert names_of(response) == set()
        talk.ack(response)
        assert talk.take() is None

    def test_names_its_resources_in_the_report(self) -> None:
        talk = DeltaTalk(resource("a", kind=t.CLUSTER), resource("b", kind=t.CLUSTER))
        talk.say(t.CLUSTER)
        report = talk.nack(talk.take(), "Error adding/updating cluster(s) b: no")
        assert (report.type, report.resources) == ("cds", ("b",))

    def test_of_a_removal_is_not_repeated(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        talk.all()
        talk.remove("a")
        talk.nack(talk.take())
        assert talk.take() is None


class TestQuarantine:
    """D5"""

    def test_keeps_the_last_good_version_for_others(self) -> None:
        group = Group(t.ENDPOINTS, "test", [resource("a")])
        group.accept([resource("a")])
        group.update({"a": resource("a", "1")})
        assert group.reject(resource("a", "1"))
        assert group.get("a") == resource("a")
        assert list(group.offered()) == [resource("a")]

    def test_takes_nothing_away_where_there_is_no_good_version(self) -> None:
        group = Group(t.ENDPOINTS, "test", [resource("a")])
        assert not group.reject(resource("a"))
        assert group.get("a") == resource("a")

    def test_ends_when_somebody_accepts_the_newest(self) -> None:
        group = Group(t.ENDPOINTS, "test", [resource("a")])
        group.accept([resource("a")])
        group.update({"a": resource("a", "1")})
        group.reject(resource("a", "1"))
        group.accept([resource("a", "1")])
        assert group.get("a") == resource("a", "1")
        assert not group.reject(resource("a", "1"))

    def test_ends_when_it_changes(self) -> None:
        group = Group(t.ENDPOINTS, "test", [resource("a")])
        group.accept([resource("a")])
        group.update({"a": resource("a", "1")})
        group.reject(resource("a", "1"))
        group.update({"a": resource("a", "2")})
        assert group.get("a") == resource("a", "2")

    def test_ends_when_nobody_is_left(self) -> None:
        talk = DeltaTalk(resource("a"))
        talk.say(subscribe=["a"])
        talk.all()
        talk.put(resource("a", "1"))
        talk.nack(talk.take())
        group = talk.groups[t.ENDPOINTS]
        assert group.get("a") == resource("a")
        talk.session.close()
        assert group.get("a") == resource("a", "1")


class TestReturn:
    """R12 to R16"""

    def test_with_a_cluster_that_changed_has_its_endpoints_sent(self) -> None:
        """R14: though the client holds these."""
        talk = DeltaTalk(eds_cluster("c"), resource("c"))
        talk.say(t.CLUSTER, initial_resource_versions={"c": "old"})
        talk.say(subscribe=["c"], initial_resource_versions={"c": resource("c").version})
        assert [response.type_url for response in talk.all()] == [t.CLUSTER, t.ENDPOINTS]

    def test_with_endpoints_first_has_them_sent_after_their_cluster(self) -> None:
        """R15"""
        talk = DeltaTalk(eds_cluster("c"), resource("c"))
        talk.say(subscribe=["c"], initial_resource_versions={"c": resource("c").version})
        assert talk.take() is None
        talk.say(t.CLUSTER, initial_resource_versions={"c": "old"})
        assert [response.type_url for response in talk.all()] == [t.CLUSTER, t.ENDPOINTS]

    def test_with_what_it_is_no_longer_entitled_to_has_it_removed(self) -> None:
        """R16"""
        talk = DeltaTalk(resource("a", kind=t.CLUSTER))
        talk.say(t.CLUSTER, initial_resource_versions={"a": resource("a", kind=t.CLUSTER).version, "secret": "1"})
        assert list(talk.take().removed_resources) == ["secret"]

    def test_with_several_names_that_it_lacks_has_them_all_sent(self) -> None:
        talk = DeltaTalk(resource("a"), resource("b"), resource("c"))
        talk.say(subscribe=["a", "b", "c", "d"], initial_resource_versions={"a": resource("a").version})
        response = talk.take()
        assert (names_of(response), list(response.removed_resources)) == ({"b", "c"}, ["d"])


class TestDoubt:
    """V10: a client that rejects a response may have taken a part of it, which its next stream does not tell."""

    def back(self, talk: DeltaTalk, **held: str) -> DeltaTalk:
        """The same client on its next stream, which tells that it holds these clusters."""
        left = talk.session.watches[t.CLUSTER].unsettled()
        talk.session.close()
        fresh = DeltaTalk(groups=talk.groups)
        fresh.session.recall = lambda type_url: [left] if left is not None and type_url == t.CLUSTER else []
        fresh.say(t.CLUSTER, initial_resource_versions=held)
        return fresh

    def clusters(self, *names: str, content: str = "") -> list[Resource]:
        return [resource(name, content, t.CLUSTER) for name in names]

    def test_what_came_with_a_rejected_resource_and_is_gone_is_removed(self) -> None:
        talk = DeltaTalk(*self.clusters("a", "b", "bad"))
        talk.say(t.CLUSTER)
        talk.nack(talk.take(), "Error adding/updating cluster(s) bad: no")
        talk.remove("b", "bad", kind=t.CLUSTER)
        returned = self.back(talk, a=self.clusters("a")[0].version).take()
        assert (names_of(returned), list(returned.removed_resources)) == (set(), ["b"])

    def test_what_came_with_a_rejected_resource_and_is_as_before_is_sent(self) -> None:
        """The client says that it holds `a` as before, but has the version that came with `bad`."""
        talk = DeltaTalk(*self.clusters("a"))
        talk.say(t.CLUSTER)
        talk.all()
        talk.groups[t.CLUSTER].update({each.name: each for each in (*self.clusters("a", content="new"), *self.clusters("bad"))})
        talk.nack(talk.take(), "Error adding/updating cluster(s) bad: no")
        talk.remove("bad", kind=t.CLUSTER)
        talk.put(*self.clusters("a"))
        assert names_of(self.back(talk, a=self.clusters("a")[0].version).take()) == {"a"}

    def test_a_rejection_that_was_lost_leaves_the_same_doubt(self) -> None:
        talk = DeltaTalk(*self.clusters("a"))
        talk.say(t.CLUSTER)
        talk.all()
        talk.put(*self.clusters("b"))
        assert talk.take() is not None
        talk.remove("b", kind=t.CLUSTER)
        returned = self.back(talk, a=self.clusters("a")[0].version).take()
        assert list(returned.removed_resources) == ["b"]

    def test_what_is_told_as_held_was_taken(self) -> None:
        talk = DeltaTalk(*self.clusters("a", "b"))
        talk.say(t.CLUSTER)
        talk.take()
        returned = self.back(talk, **{each.name: each.version for each in self.clusters("a", "b")}).take()
        assert (list(returned.resources), list(returned.removed_resources)) == ([], [])

    def test_ends_when_it_is_sent_again_and_taken(self) -> None:
        talk = DeltaTalk(*self.clusters("a", "bad"))
        talk.say(t.CLUSTER)
        talk.nack(talk.take(), "Error adding/updating cluster(s) bad: no")
        talk.all()
        assert talk.session.watches[t.CLUSTER].unsettled() is None

    def test_of_a_client_that_holds_nothing_is_of_what_it_rejected(self) -> None:
        talk = DeltaTalk(*self.clusters("a", "b"))
        talk.say(t.CLUSTER)
        talk.take()
        talk.remove("a", "b", kind=t.CLUSTER)
        assert list(self.back(talk).take().removed_resources) == []

    def test_costs_a_bounded_memory(self) -> None:
        memory = Memory(names_max=1000)
        shared = {f"c{n}": "1" for n in range(100)}
        for client in range(5000):
            memory.keep(("", f"shared-{client}"), Unsettled({}, (shared,)))
            memory.keep(("", "one"), Unsettled({}, (shared,)))
        assert memory.names <= 1000
        for client in range(5000):
            memory.keep(("", f"own-{client}"), Unsettled({f"c{client}": "1"}, ()))
        assert memory.names <= 1000
        for client in range(5000):
            for kind in ("shared", "own"):
                memory.take(("", f"{kind}-{client}"))
        memory.take(("", "one"))
        assert memory.names == 0


class TestAssignment:
    def test_to_other_groups_sends_only_what_differs(self) -> None:
        talk = DeltaTalk(resource("a"), resource("b"))
        talk.say(subscribe=["a", "b", "c"])
        talk.all()
        other = Group(t.ENDPOINTS, "other", [resource("a"), resource("b", "1"), resource("c")])
        talk.session.assign(Assignment("other", {t.ENDPOINTS: (other,)}))
        assert names_of(talk.take()) == {"b", "c"}

    def test_of_one_name_in_two_groups_the_first_counts(self) -> None:
        talk = DeltaTalk()
        first, second = Group(t.ENDPOINTS, "1", [resource("a", "first")]), Group(t.ENDPOINTS, "2", [resource("a", "second")])
        talk.session.assign(Assignment("both", {t.ENDPOINTS: (first, second)}))
        talk.say(subscribe=["a"])
        assert talk.take().resources[0].resource.value == b"a|first"
        first.update({"a": None})
        talk.now += PATIENCE
        assert talk.take().resources[0].resource.value == b"a|second"


class TestTypes:
    def test_a_filters_configuration_is_never_removed(self) -> None:
        """D7, R5: Envoy answers 500 where it is."""
        talk = DeltaTalk(resource("a", kind=t.EXTENSION))
        talk.say(t.EXTENSION, ["a"])
        talk.all()
        talk.remove("a", kind=t.EXTENSION)
        assert talk.take() is None

    def test_a_stream_for_one_type_refuses_others(self) -> None:
        talk = DeltaTalk(only=t.CLUSTER)
        with pytest.raises(ProtocolError, match="this stream serves"):
            talk.say(t.LISTENER)

    def test_a_request_without_type_is_passed_over(self) -> None:
        """N3"""
        for talk in (DeltaTalk(resource("a")), SotwTalk(resource("a"))):
            assert talk.say("") is None
            assert talk.take() is None

    @pytest.mark.parametrize("kind", [t.LISTENER, t.SCOPED_ROUTE])
    def test_the_whole_is_sent_of_types_whose_absence_deletes(self, kind: str) -> None:
        """R1"""
        talk = SotwTalk(resource("a", kind=kind), resource("b", kind=kind))
        talk.say(kind)
        talk.all()
        talk.put(resource("a", "1", kind=kind))
        assert names_of(talk.take()) == {"a", "b"}


class TestHeartbeats:
    """X9"""

    def test_come_three_to_a_time_to_live(self) -> None:
        talk = DeltaTalk(resource("a", ttl_ms=3000), resource("b", ttl_ms=9000))
        talk.say(subscribe=["a", "b"])
        talk.all()
        assert talk.take() is None
        assert talk.session.wake_at == talk.now + 1
        talk.now += 1
        beat = talk.take()
        assert {each.name: each.ttl.ToMilliseconds() for each in beat.resources} == {"a": 3000, "b": 9000}
        assert not any(each.HasField("resource") for each in beat.resources)
        talk.ack(beat)
        assert talk.take() is None
        assert talk.session.wake_at == talk.now + 1

    def test_do_not_wait_for_acknowledgements(self) -> None:
        talk = DeltaTalk(resource("a", ttl_ms=3000))
        talk.say(subscribe=["a"])
        talk.take()
        talk.now += 1
        assert talk.take() is not None

    def test_do_not_answer_for_changes(self) -> None:
        talk = DeltaTalk(resource("a", ttl_ms=3000))
        talk.say(subscribe=["a"])
        talk.all()
        talk.put(resource("a", "1", ttl_ms=3000))
        talk.now += 1
        assert [each.HasField("resource") for response in talk.all() for each in response.resources] == [True]

    def test_end_with_what_they_are_for(self) -> None:
        talk = DeltaTalk(resource("a", ttl_ms=3000))
        talk.say(subscribe=["a"])
        talk.all()
        talk.remove("a")
        assert list(talk.take().removed_resources) == ["a"]
        talk.now += 5
        assert talk.take() is None
        assert talk.session.watches[t.ENDPOINTS].beat_at is None
