"""DestinationRule `outlierDetection`: endpoints that fail are left alone for a while."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.traffic import Mesh, Pod, Service, World, eventually

FOREVER = "interval: 20ms, baseEjectionTime: 1h, maxEjectionPercent: 100"
NOBODY_LISTENS = 9
VIRTUAL = {"local.test": "203.0.113.11", "split.test": "203.0.113.12", "tcp.test": "203.0.113.13"}

# Of each service, which has two endpoints: its rule's outlierDetection.
DETECTIONS = {
    "counted": f"consecutive5xxErrors: 3, {FOREVER}",
    "default": FOREVER,
    "off": f"consecutive5xxErrors: 0, {FOREVER}",
    "gateway": f"consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, {FOREVER}",
    "ignored": f"consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, {FOREVER}",
    "local.test": f"consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, {FOREVER}",
    "split.test": f"consecutive5xxErrors: 2, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, {FOREVER}",
    "returning": "consecutive5xxErrors: 2, interval: 20ms, baseEjectionTime: 100ms, maxEjectionPercent: 100",
    "tenth": "consecutive5xxErrors: 1, interval: 20ms, baseEjectionTime: 1h",
    "all-out": f"consecutive5xxErrors: 1, {FOREVER}",
    "half-out": "consecutive5xxErrors: 1, maxEjectionPercent: 50, interval: 20ms, baseEjectionTime: 1h",
    "least": f"consecutive5xxErrors: 1, minHealthPercent: 60, {FOREVER}",
    "codes": f"consecutive5xxErrors: 2, outlierDetectionHttpErrorCodes: [429], {FOREVER}",
    "tcp.test": f"consecutive5xxErrors: 2, {FOREVER}",
}


class Stage:
    """A client, and the services of `DETECTIONS` under rules that retry nothing. Of `*.test`, one endpoint refuses connections."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.services: dict[str, Service] = {}
        for name in DETECTIONS:
            self.add(name, name)
        self.mesh.write()
        self.client = self.mesh.pod("client")

    def add(self, name: str, detection: str) -> None:
        """A service whose rule is that of `detection`."""
        policy = yaml.safe_load(f"{{outlierDetection: {{{DETECTIONS[detection]}}}}}")
        self._put("DestinationRule", name, {"host": name, "trafficPolicy": policy})
        if not name.endswith(".test"):
            self.services[name] = self.mesh.service(name, {"v1": 1, "v2": 1})
        else:
            tcp, http = ({"number": n, "name": p, "protocol": p.upper()} for n, p in ((9000, "tcp"), (80, "http")))
            port = tcp if name == "tcp.test" else http
            good = self.mesh.application(name, ports=[8080])
            self.mesh.name(name, VIRTUAL[name])
            endpoints = [{"address": good.address, "ports": {port["name"]: n}} for n in (8080, NOBODY_LISTENS)]
            spec = {"hosts": [name], "addresses": [VIRTUAL[name]], "ports": [port], "resolution": "STATIC", "endpoints": endpoints}
            self._put("ServiceEntry", name, spec)
        if name != "tcp.test":
            route = {"retries": {"attempts": 0}, "route": [{"destination": {"host": name}}]}
            self._put("VirtualService", name, {"hosts": [name], "http": [route]})

    def _put(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        item = {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.mesh.put(item, quiet=True)

    def fail(self, host: str, status: int, errors: int) -> None:
        """Call until one endpoint has answered with `status` so often."""
        bad = self.services[host]["v1"]
        bad.status = status
        eventually(lambda: self.client.get(f"http://{host}/") and len(bad.calls) >= errors)

    def share(self, host: str) -> int:
        """How many of 30 calls that one gets now."""
        bad = self.services[host]["v1"]
        seen = len(bad.calls)
        self.client.many(f"http://{host}/", 30)
        return len(bad.calls) - seen

    def ejected(self, host: str, port: int = 80) -> int:
        """How many of its endpoints are left alone now."""
        service = self.services.get(host)
        name = host if service is None else service.host
        return self.client.stat(f"cluster.outbound|{port}||{name}.outlier_detection.ejections_active")

    def statuses(self, host: str, count: int) -> set[int]:
        return {self.client.get(f"http://{host}/").status for _ in range(count)}


@pytest.fixture(scope="module")
def stage(world: World) -> Iterator[Stage]:
    with Mesh(world) as mesh:
        yield Stage(mesh)


class TestWhatCounts:
    @pytest.mark.parametrize(
        ("host", "status", "errors"), [("counted", 500, 3), ("default", 503, 5), ("gateway", 502, 2), ("codes", 429, 2)]
    )
    def test_an_endpoint_that_fails_so_often_is_not_called_again(self, stage: Stage, host: str, status: int, errors: int) -> None:
        stage.fail(host, status, errors)
        eventually(lambda: stage.share(host) == 0, "it to be left alone")  # other threads learn of it a moment later

    @pytest.mark.parametrize(("host", "status"), [("off", 500), ("ignored", 503), ("tenth", 500)])
    def test_what_is_not_counted_or_beyond_the_share_ejects_nothing(self, stage: Stage, host: str, status: int) -> None:
        stage.fail(host, status, 8)
        assert stage.share(host) > 0
        assert stage.ejected(host) == 0

    def test_gateway_errors_are_502_503_and_504(self, stage: Stage) -> None:
        stage.add("inner", "gateway")
        stage.client.settle()
        stage.fail("inner", 500, 6)
        assert stage.share("inner") > 0
        assert stage.ejected("inner") == 0

    def test_errors_must_be_consecutive(self, stage: Stage) -> None:
        stage.add("flaky", "counted")
        stage.client.settle()
        bad = stage.services["flaky"]["v1"]
        bad.statuses = [500, 500, 200] * 4
        eventually(lambda: stage.client.get("http://flaky/") and len(bad.calls) >= 12)
        assert stage.ejected("flaky") == 0

    @pytest.mark.parametrize("host", ["local.test", "split.test"])
    def test_failures_to_connect_count_where_they_are_told_apart(self, stage: Stage, host: str) -> None:
        def ejected() -> bool:
            stage.client.get(f"http://{host}/")
            return stage.ejected(host) == 1

        eventually(ejected)
        eventually(lambda: stage.statuses(host, 10) == {200})

    def test_an_endpoint_that_refuses_tcp_connections_is_left_alone(self, stage: Stage) -> None:
        def ejected() -> bool:
            _answers(stage.client)
            return stage.ejected("tcp.test", 9000) == 1

        eventually(ejected)
        eventually(lambda: all(_answers(stage.client) for _ in range(10)))


class TestHowLong:
    def test_an_endpoint_returns_after_the_ejection_time(self, stage: Stage) -> None:
        bad = stage.services["returning"]["v1"]
        bad.status = 500
        eventually(lambda: stage.client.get("http://returning/") and len(bad.calls) >= 2)
        bad.status = 200
        eventually(lambda: stage.client.get("http://returning/").server == bad.name)


class TestHowMany:
    def test_all_may_be_ejected_and_then_nobody_is_called(self, stage: Stage) -> None:
        for application in stage.services["all-out"].applications.values():
            application.status = 500
        eventually(lambda: stage.statuses("all-out", 1) == {503})
        assert stage.client.get("http://all-out/").body == "no healthy upstream"

    @pytest.mark.parametrize("host", ["half-out", "least"])
    def test_a_share_may_stay_or_all_be_called_when_too_few_are_healthy(self, stage: Stage, host: str) -> None:
        for application in stage.services[host].applications.values():
            application.status = 500
        # Of two that always fail, one stays; or both are called again.
        applications = stage.services[host].applications.values()
        eventually(lambda: stage.statuses(host, 4) and all(application.calls for application in applications))
        assert stage.statuses(host, 20) == {500}


def _answers(client: Pod) -> bool:
    try:
        return client.tcp("tcp.test", 9000) is not None
    except ConnectionError:
        return False
