"""The node's capture, without a node: what is read from a pod, the runtime's configuration, and which pods are replaced."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.injection.annotations import capture_annotations, captured, interception_mode
from xds.injection.capture import NOT_CAPTURED, Capture
from xds.injection.cni.chain import Chain, chained, unchained
from xds.injection.cni.pods import capture_of
from xds.injection.cni.protocol import Code, PluginError, call
from xds.injection.cni.repair import is_repaired_by_deletion
from xds.injection.pods import inject
from xds.injection.policy import NEVER
from xds.injection.settings import Settings
from xds.mesh.model import Mode
from xds.objects import ProxyConfig

SOURCE = Path(__file__).parents[3] / "deploy" / "cni" / "xds-cni.c"
SETTINGS = Settings(cni=True, exclude_outbound_ports="25", include_ip_ranges="10.0.0.0/8")


def injected(annotations: dict[str, str] | None = None, settings: Settings = SETTINGS, **container: Any) -> dict[str, Any]:
    proxy = [{"name": "istio-proxy", "image": "auto", **container}] if container else []
    pod = {"metadata": {"annotations": annotations or {}}, "spec": {"containers": [{"name": "web", "image": "web"}, *proxy]}}
    return inject(pod, "shop", settings, ProxyConfig(), native=True).pod


ports = st.lists(st.integers(1, 65535), max_size=3).map(tuple)
ranges = st.lists(st.sampled_from(["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]), max_size=3, unique=True).map(tuple)


@given(
    st.builds(
        Capture,
        mode=st.sampled_from([Mode.REDIRECT, Mode.TPROXY]),
        inbound_ports=st.none() | ports,
        excluded_inbound_ports=ports,
        outbound_ports=ports,
        excluded_outbound_ports=ports,
        outbound_ranges=st.none() | ranges,
        excluded_outbound_ranges=ranges,
        excluded_interfaces=st.sampled_from([(), ("eth1",), ("eth1", "net+")]),
    )
)
def test_what_the_webhook_writes_the_node_reads(capture: Capture) -> None:
    written = capture_annotations(capture)
    assert captured(written, Settings(), interception_mode(written, "sidecar.istio.io/interceptionMode", "NONE")) == capture


class TestPods:
    def test_the_operators_settings_are_in_the_pod(self) -> None:
        capture = capture_of(injected())
        assert capture == Capture(excluded_outbound_ports=(25,), outbound_ranges=("10.0.0.0/8",))

    def test_the_pods_own_annotations_win_and_stay_as_they_are(self) -> None:
        pod = injected({"traffic.sidecar.istio.io/excludeOutboundPorts": "3306, 25"})
        assert pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] == "3306, 25"
        capture = capture_of(pod)
        assert capture is not None
        assert capture.excluded_outbound_ports == (3306, 25)

    def test_the_proxys_user_and_group_are_those_of_its_container(self) -> None:
        capture = capture_of(injected(securityContext={"runAsUser": 2000, "runAsGroup": 3000}))
        assert capture is not None
        assert (capture.users, capture.groups) == ((2000,), (3000,))

    def test_root_is_never_taken_for_the_proxy(self) -> None:
        capture = capture_of(injected({"sidecar.istio.io/interceptionMode": "TPROXY"}))
        assert capture is not None
        assert (capture.mode, capture.users, capture.groups) == (Mode.TPROXY, (1337,), (1337,))

    def test_dns_is_captured_where_the_proxy_is_told_to_answer(self) -> None:
        capture = capture_of(injected({"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}"}))
        assert capture is not None
        assert capture.dns

    def test_a_pod_that_captures_for_itself_is_left_to_it(self) -> None:
        assert capture_of(injected(settings=Settings())) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"metadata": {"labels": {"sidecar.istio.io/inject": "false"}}},
            {"metadata": {"annotations": {"sidecar.istio.io/status": "[]"}}},
            {"metadata": {"annotations": {"sidecar.istio.io/status": "{"}}},
            {"metadata": None},
            {"spec": {"containers": [{"name": "web"}]}},
        ],
    )
    def test_what_has_no_proxy_of_ours_is_left_alone(self, change: dict[str, Any]) -> None:
        pod = injected()
        if change.get("metadata"):
            change = {"metadata": pod["metadata"] | change["metadata"]}
        assert capture_of(pod | change) is None

    def test_a_validating_container_fits_the_restricted_level(self) -> None:
        first, proxy = injected()["spec"]["initContainers"]
        for container in (first, proxy):
            security = container["securityContext"]
            assert security["runAsNonRoot"]
            assert not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert first["name"] == "istio-validation"

    def test_its_own_init_container_exempts_a_customised_user(self) -> None:
        pod = injected(settings=Settings(), securityContext={"runAsUser": 2000})
        assert "skuid { 2000 }" in pod["spec"]["initContainers"][0]["args"][0]


class TestProtocol:
    def test_a_question_is_variables_and_a_configuration(self) -> None:
        variables = b"CNI_COMMAND=ADD\0CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u=1\0\0"
        asked = call(variables + b'{"cniVersion": "0.4.0", "prevResult": {"cniVersion": "0.4.0"}}')
        assert (asked.command, asked.version, asked.pod, asked.uid) == ("ADD", "0.4.0", ("shop", "web"), "u=1")
        assert asked.previous == {"cniVersion": "0.4.0"}

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"", Code.UNDECODABLE),
            (b"CNI_COMMAND=ADD\0\0", Code.UNDECODABLE),
            (b"CNI_COMMAND=ADD\0\0{", Code.UNDECODABLE),
            (b"CNI_COMMAND=ADD\0\0" + b"[" * 100_000, Code.UNDECODABLE),
            (b"CNI_COMMAND=ADD\0\0[]", Code.INVALID_CONFIGURATION),
            (b"CNI_COMMAND=ADD\0\0{}", Code.INCOMPATIBLE_VERSION),
            (b'CNI_COMMAND=ADD\0\0{"cniVersion": ["1.0.0"]}', Code.INCOMPATIBLE_VERSION),
            (b'CNI_COMMAND=ADD\0\0{"cniVersion": "1.0.0", "prevResult": []}', Code.INVALID_CONFIGURATION),
        ],
    )
    def test_what_is_no_question_is_refused(self, data: bytes, code: Code) -> None:
        with pytest.raises(PluginError) as error:
            call(data)
        assert error.value.code is code

    def test_the_plugin_lets_those_namespaces_pass_that_never_have_proxies(self) -> None:
        (found,) = re.findall(r"NEVER\[\] = \{(.+?)\}", SOURCE.read_text())
        assert {json.loads(name) for name in found.split(", ")} == {*NEVER, "istio-system"}


class TestChain:
    @pytest.fixture
    def chain(self, tmp_path: Path) -> Chain:
        chain = Chain(tmp_path / "net.d", tmp_path / "bin", tmp_path / "xds-cni")
        chain.configurations.mkdir()
        chain.programs.mkdir()
        chain.program.write_bytes(b"\x7fELF")
        return chain

    LIST = {
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "disableCheck": True,
        "plugins": [{"type": "flannel", "delegate": {}}, {"type": "portmap"}],
    }

    def write(self, chain: Chain, name: str, value: Any) -> Path:
        path = chain.configurations / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    def test_it_comes_last_in_the_chain_and_all_else_stays(self, chain: Chain) -> None:
        path = self.write(chain, "10-flannel.conflist", self.LIST)
        path.chmod(0o600)
        assert chain.install()
        assert json.loads(path.read_text()) == self.LIST | {"plugins": [*self.LIST["plugins"], {"type": "xds-cni"}]}
        assert path.stat().st_mode & 0o777 == 0o600
        assert [p.name for p in chain.configurations.iterdir()] == ["10-flannel.conflist"]
        assert (chain.programs / "xds-cni").stat().st_mode & 0o777 == 0o755

    def test_installing_again_writes_nothing(self, chain: Chain) -> None:
        path = self.write(chain, "10-flannel.conflist", self.LIST)
        chain.install()
        files = (path, chain.programs / "xds-cni")
        before = [file.stat() for file in files]
        assert chain.install()
        assert [file.stat() for file in files] == before

    def test_removing_leaves_what_others_have_written_meanwhile(self, chain: Chain) -> None:
        path = self.write(chain, "10-flannel.conflist", self.LIST)
        chain.install()
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"plugins": [*found["plugins"], {"type": "bandwidth"}]}))
        chain.remove()
        assert json.loads(path.read_text()) == self.LIST | {"plugins": [*self.LIST["plugins"], {"type": "bandwidth"}]}
        assert not list(chain.programs.iterdir())
        chain.remove()  # nothing there is no error

    def test_the_first_configuration_that_a_runtime_would_take_is_ours(self, chain: Chain) -> None:
        self.write(chain, "00-broken.conflist", "{")
        self.write(chain, "01-empty.conflist", {"plugins": []})
        self.write(chain, "02-notes.txt", self.LIST)
        first = self.write(chain, "10-a.conflist", self.LIST)
        second = self.write(chain, "20-b.conflist", self.LIST)
        assert chain.install()
        assert "xds-cni" in first.read_text()
        assert "xds-cni" not in second.read_text()

    def test_where_there_is_no_network_it_waits(self, chain: Chain) -> None:
        assert not chain.install()
        self.write(chain, "10-flannel.conflist", self.LIST)
        assert chain.install()

    def test_a_configuration_of_one_plugin_becomes_a_list_and_is_restored(self, chain: Chain) -> None:
        single = {"cniVersion": "0.3.1", "name": "pods", "type": "bridge", "ipam": {"type": "host-local"}}
        path = self.write(chain, "10-pods.conf", single)
        assert chain.install()
        assert not path.exists()
        found = json.loads(path.with_suffix(".conflist").read_text())
        plugins = [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "xds-cni"}]
        assert found == {"cniVersion": "0.3.1", "name": "pods", "plugins": plugins}
        assert chain.install()
        chain.remove()
        assert json.loads(path.read_text()) == single
        assert [p.name for p in chain.configurations.iterdir()] == ["10-pods.conf"]

    def test_an_upgrade_replaces_the_program(self, chain: Chain) -> None:
        self.write(chain, "10-flannel.conflist", self.LIST)
        chain.install()
        chain.program.write_bytes(b"\x7fELF newer")
        chain.install()
        assert (chain.programs / "xds-cni").read_bytes() == b"\x7fELF newer"

    @given(st.lists(st.sampled_from(["bridge", "portmap", "tuning", "istio-cni"]), min_size=1, max_size=4))
    def test_taking_it_out_undoes_putting_it_in(self, types: list[str]) -> None:
        value = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": t} for t in types]}
        assert unchained(chained(value)) == value


class TestRepair:
    @staticmethod
    def pod(**changes: Any) -> dict[str, Any]:
        status = {"name": "istio-validation", "state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": NOT_CAPTURED}}}
        value = {
            "metadata": {
                "annotations": {"sidecar.istio.io/status": '{"capture": "cni"}'},
                "ownerReferences": [{"kind": "ReplicaSet", "controller": True}],
            },
            "status": {"startTime": "2026-01-01T00:00:00Z", "initContainerStatuses": [status]},
        }
        return {key: part | changes.get(key, {}) for key, part in value.items()}

    BEFORE = 1_800_000_000.0

    def test_a_pod_that_found_out_is_replaced(self) -> None:
        assert is_repaired_by_deletion(self.pod(), self.BEFORE)

    @pytest.mark.parametrize(
        "changes",
        [
            {"metadata": {"ownerReferences": None}},
            {"metadata": {"ownerReferences": [{"kind": "Node"}]}},
            {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
            {"metadata": {"annotations": {}}},
            {"status": {"startTime": None}},
            {"status": {"startTime": "2096-01-01T00:00:00Z"}},
            {"status": {"initContainerStatuses": None}},
            {"status": {"initContainerStatuses": [{"name": "istio-validation", "state": {"terminated": {"exitCode": 1}}}]}},
            {"status": {"initContainerStatuses": [{"name": "other", "state": {"terminated": {"exitCode": NOT_CAPTURED}}}]}},
        ],
        ids=str,
    )
    def test_any_other_pod_is_left(self, changes: dict[str, Any]) -> None:
        assert not is_repaired_by_deletion(self.pod(**changes), self.BEFORE)
