"""The Kubernetes source against a real API server."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.kube import Kube, poll
from support.recorder import Recorder, asynchronous, following
from support.relay import relaying

from xds.errors import ConfigError
from xds.objects import KINDS
from xds.objects.meta import Ref
from xds.sources.kubernetes import Kubernetes

pytestmark = pytest.mark.kubernetes

# Of each kind: an object, and a part of it that changes what we read.
OBJECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Service": ({"spec": {"ports": [{"port": 80}]}}, {"spec": {"ports": [{"port": 81}]}}),
    "EndpointSlice": (
        {"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}]},
        {"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.2"]}]},
    ),
    "Pod": (
        {"spec": {"containers": [{"name": "app", "image": "app"}]}},
        {"metadata": {"labels": {"version": "v2"}}, "spec": {"containers": [{"name": "app", "image": "app"}]}},
    ),
    "Node": ({}, {"metadata": {"labels": {"topology.kubernetes.io/zone": "a"}}}),
    "Namespace": ({}, {"metadata": {"labels": {"team": "a"}}}),
    "ConfigMap": ({"data": {"mesh": "accessLogFile: ''"}}, {"data": {"mesh": "accessLogFile: /dev/stdout"}}),
    "VirtualService": (
        {"spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]}},
        {"spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "b"}}]}]}},
    ),
    "DestinationRule": (
        {"spec": {"host": "a", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}},
        {"spec": {"host": "a", "subsets": [{"name": "v1", "labels": {"version": "v2"}}]}},
    ),
    "Sidecar": ({"spec": {"egress": [{"hosts": ["./*"]}]}}, {"spec": {"egress": [{"hosts": ["*/*"]}]}}),
    "ServiceEntry": (
        {"spec": {"hosts": ["a.example.com"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS"}},
        {"spec": {"hosts": ["a.example.com"], "ports": [{"number": 444, "name": "tls", "protocol": "TLS"}], "resolution": "DNS"}},
    ),
    "WorkloadEntry": ({"spec": {"address": "10.2.0.1"}}, {"spec": {"address": "10.2.0.2"}}),
}


class Objects:
    """Writes objects of one test into its namespace."""

    def __init__(self, kube: Kube, name: str = "thing") -> None:
        self.kube = kube
        self.namespace = kube.namespace()
        self.name = name

    def ref(self, kind: str, name: str = "") -> Ref:
        name = name or self.name_of(kind)
        return Ref(kind, self.namespace if KINDS[kind].namespaced else "", name)

    def name_of(self, kind: str) -> str:
        if kind == "ConfigMap":
            return "istio"  # the only one that is read
        return self.name if KINDS[kind].namespaced else f"{self.name}-{self.namespace}"

    def path(self, kind: str) -> str:
        return f"{KINDS[kind].path(namespace=self.namespace)}/{self.name_of(kind)}"

    def apply(self, kind: str, body: dict[str, Any]) -> None:
        """Create the object of this kind, or change it."""
        api_version = KINDS[kind].api_versions[0]
        body = {"apiVersion": api_version, "kind": kind, **body}
        body["metadata"] = {**body.get("metadata", {}), "name": self.name_of(kind)}
        self.kube.request("PATCH", f"{self.path(kind)}?fieldManager=tests&force=true", body)

    def delete(self, kind: str) -> None:
        self.kube.request("DELETE", f"{self.path(kind)}?gracePeriodSeconds=0")
        if kind == "Namespace":  # there is no controller that would empty it
            name = self.name_of(kind)
            self.kube.request("PUT", f"{self.path(kind)}/finalize", {"metadata": {"name": name}, "spec": {"finalizers": []}})


def test_every_kind_is_tried_below() -> None:
    assert OBJECTS.keys() == {name for name, kind in KINDS.items() if kind.watched}


@asynchronous
async def test_what_existed_is_delivered_before_synced(kube: Kube) -> None:
    objects = Objects(kube)
    for kind in OBJECTS:
        objects.apply(kind, OBJECTS[kind][0])
    async with following(Kubernetes(kube.kubeconfig)) as seen:
        steps = seen.steps[: seen.synced_after]
    before = {change.ref for step in steps for change in step}
    assert {objects.ref(kind) for kind in OBJECTS} <= before


@asynchronous
async def test_objects_of_every_kind_come_change_and_go(kube: Kube) -> None:
    objects = Objects(kube)
    async with following(Kubernetes(kube.kubeconfig)) as seen:
        for kind, (first, second) in OBJECTS.items():
            ref = objects.ref(kind)
            await asyncio.to_thread(objects.apply, kind, first)
            before = await seen.until(lambda s, ref=ref: s.objects.get(ref), f"{ref} to come")
            await asyncio.to_thread(objects.apply, kind, second)
            await seen.until(lambda s, ref=ref, before=before: s.objects.get(ref) != before, f"{ref} to change")
            await asyncio.to_thread(objects.delete, kind)
            await seen.until(lambda s, ref=ref: ref not in s.objects, f"{ref} to go")


@asynchronous
async def test_configmaps_other_than_mesh_config_are_not_read(kube: Kube) -> None:
    objects = Objects(kube)
    other = {"metadata": {"name": "other"}, "data": {"key": "value"}}
    kube.request("POST", KINDS["ConfigMap"].path(namespace=objects.namespace), other)
    objects.apply("ConfigMap", OBJECTS["ConfigMap"][0])
    async with following(Kubernetes(kube.kubeconfig)) as seen:
        assert {ref.name for ref in seen.objects if ref.kind == "ConfigMap"} == {"istio"}


@asynchronous
async def test_writes_that_change_nothing_we_read_yield_no_change(kube: Kube) -> None:
    objects = Objects(kube)
    condition = {"type": "Seen", "status": "True", "reason": "Seen", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    async with following(Kubernetes(kube.kubeconfig)) as seen:
        for kind in ("VirtualService", "Node", "Service"):
            await asyncio.to_thread(objects.apply, kind, OBJECTS[kind][0])
            ref = objects.ref(kind)
            await seen.until(lambda s, ref=ref: ref in s.objects, f"{kind} to come")
        count = len(seen.changes)
        for kind in ("VirtualService", "Node", "Service"):
            identity = {"apiVersion": KINDS[kind].api_versions[0], "kind": kind, "metadata": {"name": objects.name_of(kind)}}
            body = {**identity, "status": {"conditions": [condition]}}
            path = f"{objects.path(kind)}/status?fieldManager=status&force=true"
            answer = await asyncio.to_thread(kube.request, "PATCH", path, body)
            assert answer["status"]["conditions"], "the API server has not taken the status"
        for kind in ("VirtualService", "Node", "Service"):  # what comes behind the status on the same watches
            await asyncio.to_thread(objects.apply, kind, OBJECTS[kind][1])
            ref = objects.ref(kind)
            await seen.until(lambda s, ref=ref: len(s.changes_of(ref)) == 2, f"{kind} to change")
        assert len(seen.changes) == count + 3


@asynchronous
async def test_a_lost_connection_is_resumed_without_a_new_list(kube: Kube, tmp_path: Path) -> None:
    objects = Objects(kube)
    ref = objects.ref("VirtualService")
    async with relaying(kube.port) as relay:
        config = kube.write_kubeconfig(tmp_path / "config", port=relay.port)
        with capture_logs() as logs:
            async with following(Kubernetes(config)) as seen:
                await asyncio.to_thread(objects.apply, "VirtualService", OBJECTS["VirtualService"][0])
                await asyncio.to_thread(objects.apply, "Service", OBJECTS["Service"][0])
                await seen.until(lambda s: {ref, objects.ref("Service")} <= s.objects.keys(), "both objects to come")
                count = len(seen.changes)
                relay.cut()
                await asyncio.to_thread(objects.apply, "VirtualService", OBJECTS["VirtualService"][1])
                await asyncio.to_thread(objects.delete, "Service")
                relay.mend()
                await seen.until(lambda s: len(s.changes) >= count + 2, "what changed meanwhile")
                assert {(change.ref, change.object is None) for change in seen.changes[count:]} == {
                    (ref, False),
                    (objects.ref("Service"), True),
                }
        assert sum(log["event"] == "kind.listed" for log in logs) == len(OBJECTS)


@asynchronous
async def test_forgotten_history_is_listed_again_and_only_differences_are_told(kube: Kube, tmp_path: Path) -> None:
    objects, stays = Objects(kube), Objects(kube)
    async with relaying(kube.port) as relay:
        config = kube.write_kubeconfig(tmp_path / "config", port=relay.port)
        for kind in OBJECTS:
            objects.apply(kind, OBJECTS[kind][0])
            stays.apply(kind, OBJECTS[kind][0])
        async with following(Kubernetes(config)) as seen:
            count = len(seen.changes)
            with capture_logs() as logs:
                relay.cut()
                await asyncio.to_thread(objects.apply, "DestinationRule", OBJECTS["DestinationRule"][1])
                await asyncio.to_thread(objects.delete, "VirtualService")
                await asyncio.to_thread(kube.compact)
                await asyncio.to_thread(kube.kill_api_server)  # its watch cache would remember
                await asyncio.to_thread(kube.start_api_server)
                relay.mend()
                await seen.until(lambda s: len(s.changes) >= count + 2, "what changed meanwhile")
                await seen.until(
                    lambda s: sum(log["event"] == "kind.listed" for log in logs) == len(OBJECTS),
                    "every kind to be listed again",
                )
            assert {(change.ref, change.object is None) for change in seen.changes[count:]} == {
                (objects.ref("DestinationRule"), False),
                (objects.ref("VirtualService"), True),
            }


@asynchronous
async def test_a_killed_and_restarted_api_server_loses_and_flaps_nothing(kube: Kube) -> None:
    objects = Objects(kube)
    for kind in OBJECTS:
        objects.apply(kind, OBJECTS[kind][0])
    source = Kubernetes(kube.kubeconfig)
    async with following(source) as seen:
        count = len(seen.changes)
        await asyncio.to_thread(kube.kill_api_server)
        await seen.until(lambda s: all(kind.state == "failing" for kind in source.status()), "the loss to be seen")
        await asyncio.to_thread(kube.start_api_server)
        await seen.until(lambda s: all(kind.state == "watching" for kind in source.status()), "all watches to be back")
        for kind in OBJECTS:
            await asyncio.to_thread(objects.apply, kind, OBJECTS[kind][1])
        await seen.until(lambda s: len(s.changes) >= count + len(OBJECTS), "the changes that were made afterwards")
        assert sorted(change.ref for change in seen.changes[count:]) == sorted(objects.ref(kind) for kind in OBJECTS)


@asynchronous
async def test_a_connection_that_falls_silent_is_replaced(kube: Kube, tmp_path: Path) -> None:
    objects = Objects(kube)
    ref = objects.ref("VirtualService")
    async with relaying(kube.port) as relay:
        config = kube.write_kubeconfig(tmp_path / "config", port=relay.port)
        async with following(Kubernetes(config, idle_seconds=1)) as seen:
            relay.silence()
            await asyncio.to_thread(objects.apply, "VirtualService", OBJECTS["VirtualService"][0])
            await seen.until(lambda s: ref in s.objects, "what was told to the silent connection")


@asynchronous
async def test_kinds_whose_crds_come_and_go_are_followed(kube: Kube) -> None:
    objects = Objects(kube)
    ref = objects.ref("Sidecar")
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/sidecars.networking.istio.io"
    source = Kubernetes(kube.kubeconfig)

    def state() -> str:
        return next(kind.state for kind in source.status() if kind.kind == "Sidecar")

    try:
        kube.request("DELETE", crd)
        poll(lambda: "Sidecar" not in kube.kubectl("api-resources", "--api-group=networking.istio.io"), "the CRD to be gone")
        async with following(source) as seen:
            assert state() == "absent"
            await asyncio.to_thread(kube.apply_crds, "sidecars")
            await asyncio.to_thread(objects.apply, "Sidecar", OBJECTS["Sidecar"][0])
            await seen.until(lambda s: ref in s.objects, "the first object of a new kind")
            await asyncio.to_thread(kube.request, "DELETE", crd)  # the server deletes its objects first
            await seen.until(lambda s: ref not in s.objects, "the object to go with its kind")
            await seen.until(lambda s: state() == "absent", "the kind to be noticed as gone")
            await asyncio.to_thread(kube.apply_crds, "sidecars")
            await asyncio.to_thread(objects.apply, "Sidecar", OBJECTS["Sidecar"][0])
            await seen.until(lambda s: ref in s.objects, "the object of the kind that is back")
    finally:
        kube.apply_crds("sidecars")


@asynchronous
async def test_a_missing_permission_is_named_and_waited_for(kube: Kube) -> None:
    source = Kubernetes(kube.kubeconfig_of("reader"))
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["list", "watch"]}]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "reader"},
        "rules": everything,
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "reader"}],
    }
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    with capture_logs() as logs:
        async with following(source, synced=False) as seen:
            await seen.until(lambda s: source.status() and all(kind.state == "failing" for kind in source.status()), "the refusals")
            errors = {kind.kind: kind.error for kind in source.status()}
            assert 'User "reader" cannot list resource "pods"' in errors["Pod"]
            assert "list and watch on virtualservices in API group networking.istio.io" in errors["VirtualService"]
            assert seen.synced_after is None
            await asyncio.to_thread(kube.request, "PATCH", f"{rbac}/clusterroles/reader?fieldManager=tests", role)
            await asyncio.to_thread(kube.request, "PATCH", f"{rbac}/clusterrolebindings/reader?fieldManager=tests", binding)
            try:
                await seen.until(lambda s: s.synced_after is not None, "the permission to be used")
            finally:
                await asyncio.to_thread(kube.request, "DELETE", f"{rbac}/clusterrolebindings/reader")
    refusals = [log for log in logs if log["event"] == "watch.failed" and log["kind"] == "Pod"]
    assert len(refusals) == 1, "a refusal is logged once, not at each attempt"


@asynchronous
async def test_replaced_credentials_are_picked_up(kube: Kube, tmp_path: Path) -> None:
    config = kube.write_kubeconfig(tmp_path / "config", token="expired")
    source = Kubernetes(config)
    async with following(source, synced=False) as seen:
        await seen.until(lambda s: source.status() and all(kind.state == "failing" for kind in source.status()), "the refusals")
        assert source.status()[0].error.startswith("Unauthorized")
        kube.write_kubeconfig(config)
        await seen.until(lambda s: s.synced_after is not None, "the new token to be used")


@asynchronous
async def test_thousands_of_objects_come_in_pages_and_leave_the_loop_to_others(kube: Kube) -> None:
    namespace = kube.namespace()
    path = KINDS["EndpointSlice"].path(namespace=namespace)
    endpoints = [{"addresses": [f"10.3.0.{i}"], "conditions": {"ready": True}, "nodeName": "node"} for i in range(10)]
    kube.create_all((path, {"metadata": {"name": f"e{i}"}, "addressType": "IPv4", "endpoints": endpoints}) for i in range(2000))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(take_turns())
        async with following(Kubernetes(kube.kubeconfig)) as seen:
            assert sum(ref.namespace == namespace for ref in seen.objects) == 2000
        other.cancel()
    assert turns > 20, "2 000 slices take some 80 ms of work, of which no other task may have to wait for much"
    kube.request("DELETE", path)


def test_a_kubeconfig_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        asyncio.run(Kubernetes(tmp_path / "none").run(Recorder()))


def test_an_empty_kubeconfig_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "config").touch()
    with pytest.raises(ConfigError, match="may be empty"):
        asyncio.run(Kubernetes(tmp_path / "config").run(Recorder()))


def test_a_context_that_does_not_exist_is_a_configuration_error(kube: Kube) -> None:
    with pytest.raises(ConfigError, match="other"):
        asyncio.run(Kubernetes(kube.kubeconfig, context="other").run(Recorder()))
