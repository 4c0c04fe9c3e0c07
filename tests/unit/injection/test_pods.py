"""Pods with their proxies: what is added, where, and what stays as it is."""

import copy
import json
import re
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.errors import ConfigError
from xds.injection.capture import Capture, script
from xds.injection.pods import Injected, inject, json_patch
from xds.injection.policy import reason_against, selected
from xds.injection.settings import Resources, Settings, decode
from xds.mesh.model import Mode
from xds.mesh.workloads import claim
from xds.objects import ProxyConfig

SETTINGS = Settings(image="localhost/xds-proxy:1", discovery_address="istiod.istio-system.svc:15010")
DEPLOYMENT = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9c5b", "controller": True}


def pod(annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod as the API server shows it to the webhook: not named yet, made by a Deployment."""
    metadata = {
        "generateName": "web-7d9c5b-",
        "labels": {"app": "web", "version": "v2", "pod-template-hash": "7d9c5b", **(labels or {})},
        "annotations": dict(annotations or {}),
        "ownerReferences": [DEPLOYMENT],
    }
    containers = [{"name": "web", "image": "web:1", "ports": [{"containerPort": 8080}]}]
    return {"metadata": metadata, "spec": {"containers": containers, "initContainers": [{"name": "migrate", "image": "m"}], **spec}}


def injected(
    annotations: dict[str, str] | None = None, *, native: bool = True, settings: Settings = SETTINGS, defaults: ProxyConfig | None = None,
    **spec: Any,
) -> dict[str, Any]:  # fmt: skip
    return inject(pod(annotations, **spec), "shop", settings, defaults or ProxyConfig(), native=native).pod


def names(containers: list[dict[str, Any]]) -> list[str]:
    return [container["name"] for container in containers]


def container(result: dict[str, Any], name: str) -> dict[str, Any]:
    spec = result["spec"]
    return next(c for c in [*spec["containers"], *spec.get("initContainers", ())] if c["name"] == name)


def proxy(result: dict[str, Any]) -> dict[str, Any]:
    return container(result, "istio-proxy")


def option(result: dict[str, Any], flag: str) -> str:
    arguments = proxy(result)["args"]
    return str(arguments[arguments.index(flag) + 1])


FACTS = {
    "POD_NAME": "web-7d9c5b-x2x4z",
    "POD_NAMESPACE": "shop",
    "INSTANCE_IP": "10.1.2.3",
    "INSTANCE_IPS": "10.1.2.3,fd00::3",
    "SERVICE_ACCOUNT": "web",
    "NODE_NAME": "node-1",
}


def expanded(argument: str) -> str:
    """The argument as the kubelet gives it to the process (Kubernetes: "Dependent environment variables")."""
    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda m: "$" if m[0] == "$$" else FACTS.get(m[1], m[0]), argument)


def bootstrap(result: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(expanded(option(result, "--config-yaml")))
    return value


class TestContainers:
    def test_a_native_proxy_comes_before_the_pods_own_init_containers(self) -> None:
        result = injected()
        assert names(result["spec"]["initContainers"]) == ["istio-init", "istio-proxy", "migrate"]
        assert names(result["spec"]["containers"]) == ["web"]
        assert proxy(result)["restartPolicy"] == "Always"

    def test_a_classic_proxy_is_captured_for_last(self) -> None:
        result = injected(native=False)
        assert names(result["spec"]["initContainers"]) == ["migrate", "istio-init"]
        assert names(result["spec"]["containers"]) == ["web", "istio-proxy"]
        assert "restartPolicy" not in proxy(result)

    def test_a_classic_application_can_wait_for_its_proxy(self) -> None:
        result = injected({"proxy.istio.io/config": "holdApplicationUntilProxyStarts: true"}, native=False)
        assert names(result["spec"]["containers"]) == ["istio-proxy", "web"]
        assert "/ready" in proxy(result)["lifecycle"]["postStart"]["exec"]["command"][-1]
        assert "postStart" not in proxy(injected(native=False))["lifecycle"]

    @pytest.mark.parametrize(("annotation", "cluster"), [("true", False), ("false", True)])
    def test_the_pod_chooses_its_kind_of_sidecar(self, annotation: str, cluster: bool) -> None:
        result = injected({"sidecar.istio.io/nativeSidecar": annotation}, native=cluster)
        assert ("restartPolicy" in proxy(result)) is (annotation == "true")

    def test_the_operator_chooses_for_all(self) -> None:
        assert "restartPolicy" not in proxy(injected(settings=msgspec.structs.replace(SETTINGS, native=False)))

    def test_a_proxy_may_do_nothing_but_what_it_must(self) -> None:
        security = proxy(injected())["securityContext"]
        assert security["runAsUser"] == security["runAsGroup"] == 1337
        assert security["runAsNonRoot"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}

    def test_a_transparent_proxy_has_the_one_capability_it_needs(self) -> None:
        security = proxy(injected({"sidecar.istio.io/interceptionMode": "TPROXY"}))["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (0, 1337, False)
        assert security["capabilities"] == {"add": ["NET_ADMIN"], "drop": ["ALL"]}

    def test_what_the_pod_says_of_its_proxy_wins(self) -> None:
        own = {
            "name": "istio-proxy",
            "image": "auto",
            "resources": {"requests": {"cpu": "1"}},
            "env": [{"name": "POD_NAME", "value": "mine"}, {"name": "MORE", "value": "1"}],
            "volumeMounts": [{"name": "certs", "mountPath": "/certs"}],
        }
        result = injected(containers=[{"name": "web", "image": "web:1"}, own])
        merged = proxy(result)
        assert names(result["spec"]["containers"]) == ["web"]
        assert merged["image"] == "localhost/xds-proxy:1"
        assert merged["resources"] == {"requests": {"cpu": "1", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}}
        assert [e for e in merged["env"] if e["name"] in ("POD_NAME", "MORE")] == own["env"]
        assert merged["volumeMounts"] == own["volumeMounts"]

    def test_what_else_is_in_the_pod_stays(self) -> None:
        before = pod(dnsPolicy="Default", somethingNew={"a": [1, None]})
        kept = copy.deepcopy(before)
        result = inject(before, "shop", SETTINGS, ProxyConfig(), native=True).pod
        assert before == kept
        assert result["spec"]["dnsPolicy"] == "Default"
        assert result["spec"]["somethingNew"] == {"a": [1, None]}
        assert container(result, "web") == kept["spec"]["containers"][0]
        assert result["metadata"]["ownerReferences"] == [DEPLOYMENT]

    def test_volumes_are_added_by_annotation(self) -> None:
        result = injected(
            {
                "sidecar.istio.io/userVolume": '{"ca": {"secret": {"secretName": "ca"}}}',
                "sidecar.istio.io/userVolumeMount": '[{"name": "ca", "mountPath": "/ca"}]',
            },
            volumes=[{"name": "data", "emptyDir": {}}],
        )
        assert result["spec"]["volumes"] == [{"name": "data", "emptyDir": {}}, {"name": "ca", "secret": {"secretName": "ca"}}]
        assert proxy(result)["volumeMounts"] == [{"name": "ca", "mountPath": "/ca"}]

    def test_images_are_pulled_as_the_operator_says(self) -> None:
        settings = msgspec.structs.replace(SETTINGS, image_pull_policy="Never", image_pull_secrets=("key",))
        result = injected(settings=settings, imagePullSecrets=[{"name": "mine"}])
        assert result["spec"]["imagePullSecrets"] == [{"name": "mine"}, {"name": "key"}]
        assert proxy(result)["imagePullPolicy"] == container(result, "istio-init")["imagePullPolicy"] == "Never"


class TestNames:
    @pytest.mark.parametrize(("value", "captured"), [("true", True), ("True", True), ("false", False)])
    def test_dns_is_captured_where_proxy_metadata_says_so(self, value: str, captured: bool) -> None:
        result = injected({"proxy.istio.io/config": f"proxyMetadata: {{ISTIO_META_DNS_CAPTURE: '{value}'}}"})
        assert ("dport 53" in container(result, "istio-init")["args"][0]) is captured
        assert bootstrap(result)["node"]["metadata"]["DNS_CAPTURE"] == value
        assert claim("sidecar~10.1.2.3~web.shop~shop.svc.cluster.local", bootstrap(result)["node"]["metadata"]).dns is captured

    def test_the_mesh_can_say_so_for_all(self) -> None:
        defaults = ProxyConfig(proxy_metadata={"ISTIO_META_DNS_CAPTURE": "true", "ISTIO_META_DNS_AUTO_ALLOCATE": "true"})
        result = injected(defaults=defaults)
        assert "dport 53" in container(result, "istio-init")["args"][0]
        assert claim("sidecar~10.1.2.3~web.shop~shop.svc.cluster.local", bootstrap(result)["node"]["metadata"]).allocates


class TestMetadata:
    def test_telemetry_names_the_workload(self) -> None:
        labels = injected()["metadata"]["labels"]
        assert labels["service.istio.io/canonical-name"] == "web"
        assert labels["service.istio.io/canonical-revision"] == "v2"
        assert labels["istio.io/rev"] == "default"
        assert labels["pod-template-hash"] == "7d9c5b"

    def test_a_pod_without_labels_is_named_by_its_workload(self) -> None:
        bare = {"metadata": {"ownerReferences": [{"kind": "StatefulSet", "name": "db", "apiVersion": "apps/v1", "controller": True}]}}
        labels = inject({**bare, "spec": {"containers": [{"name": "db"}]}}, "shop", SETTINGS, ProxyConfig(), native=True).pod["metadata"][
            "labels"
        ]
        assert labels["service.istio.io/canonical-name"] == "db"
        assert labels["service.istio.io/canonical-revision"] == "latest"

    def test_kubectl_goes_on_to_mean_the_application(self) -> None:
        annotations = injected()["metadata"]["annotations"]
        assert (
            annotations["kubectl.kubernetes.io/default-container"] == annotations["kubectl.kubernetes.io/default-logs-container"] == "web"
        )

    def test_the_status_says_what_was_added(self) -> None:
        status = json.loads(injected()["metadata"]["annotations"]["sidecar.istio.io/status"])
        assert (status["initContainers"], status["containers"]) == (["istio-init", "istio-proxy"], [])
        assert reason_against(injected(), "shop") == "it has been injected already"

    def test_metrics_are_scraped_from_the_proxy_unless_the_pod_says_otherwise(self) -> None:
        assert injected()["metadata"]["annotations"]["prometheus.io/port"] == "15090"
        assert injected({"prometheus.io/port": "8080"})["metadata"]["annotations"]["prometheus.io/port"] == "8080"
        assert "prometheus.io/port" not in injected({"prometheus.istio.io/merge-metrics": "false"})["metadata"]["annotations"]


class TestBootstrap:
    def test_the_kubelet_fills_in_who_the_pod_is(self) -> None:
        node = bootstrap(injected())["node"]
        assert node["id"] == "sidecar~10.1.2.3~web-7d9c5b-x2x4z.shop~shop.svc.cluster.local"
        who = claim(node["id"], node["metadata"])
        assert (who.name, who.namespace, who.service_account, who.node) == ("web-7d9c5b-x2x4z", "shop", "web", "node-1")
        assert who.addresses == ("10.1.2.3", "fd00::3")
        assert who.workload == "web"
        assert who.mode is Mode.REDIRECT
        assert node["metadata"]["OWNER"] == "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"

    def test_nothing_else_in_it_is_replaced(self) -> None:
        result = injected({"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_A: '$(POD_NAME) costs $5 or $$5', OTHER: x}"})
        metadata = bootstrap(result)["node"]["metadata"]
        assert metadata["A"] == "$(POD_NAME) costs $5 or $$5"
        assert "OTHER" not in metadata
        assert set(re.findall(r"(?<!\$)\$\((\w+)\)", option(injected(), "--config-yaml"))) <= FACTS.keys()

    def test_a_proxy_whose_stream_broke_tries_again_within_ten_seconds(self) -> None:
        (service,) = bootstrap(injected())["dynamic_resources"]["ads_config"]["grpc_services"]
        assert service["envoy_grpc"]["retry_policy"]["retry_back_off"] == {"base_interval": "0.500s", "max_interval": "10s"}

    def test_readiness_and_metrics_are_at_the_pods_own_address_only(self) -> None:
        listeners = bootstrap(injected())["static_resources"]["listeners"]
        addresses = {listener["name"]: listener["address"]["socket_address"] for listener in listeners}
        assert addresses == {
            "prometheus": {"address": "10.1.2.3", "port_value": 15090},
            "status": {"address": "10.1.2.3", "port_value": 15021},
        }

    @pytest.mark.parametrize(
        ("annotations", "defaults", "expected"),
        [
            ({}, {}, "istiod.istio-system.svc"),
            ({}, {"discovery_address": "mesh.example:1"}, "mesh.example"),
            ({"proxy.istio.io/config": "discoveryAddress: pod.example:1"}, {"discovery_address": "mesh.example:1"}, "pod.example"),
            ({"sidecar.istio.io/discoveryAddress": "annotated.example:1"}, {}, "annotated.example"),
        ],
    )
    def test_the_nearest_word_on_the_control_plane_counts(
        self, annotations: dict[str, str], defaults: dict[str, Any], expected: str
    ) -> None:
        clusters = bootstrap(injected(annotations, defaults=ProxyConfig(**defaults)))["static_resources"]["clusters"]
        endpoint = clusters[0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        assert endpoint["address"]["socket_address"]["address"] == expected

    @pytest.mark.parametrize(
        ("annotations", "expected"),
        [
            ({}, "istiod.istio-system.svc.cluster.local"),
            ({"sidecar.istio.io/discoveryAddress": "annotated.example:1"}, "annotated.example"),
        ],
    )
    def test_a_pod_without_the_clusters_search_domains_has_the_control_planes_full_name(
        self, annotations: dict[str, str], expected: str
    ) -> None:
        result = injected(annotations, dnsPolicy="None", dnsConfig={"nameservers": ["10.96.0.10"]})
        endpoint = bootstrap(result)["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        assert endpoint["address"]["socket_address"]["address"] == expected

    def test_a_pods_settings_are_over_the_meshs(self) -> None:
        defaults = ProxyConfig(
            concurrency=4, drain_duration=timedelta(seconds=10), proxy_metadata={"ISTIO_META_A": "1", "ISTIO_META_B": "1"}
        )
        result = injected({"proxy.istio.io/config": "concurrency: 1\nproxyMetadata: {ISTIO_META_B: '2'}"}, defaults=defaults)
        assert option(result, "--concurrency") == "1"
        assert option(result, "--drain-time-s") == "10"
        metadata = bootstrap(result)["node"]["metadata"]
        assert (metadata["A"], metadata["B"]) == ("1", "2")

    @pytest.mark.parametrize(("limit", "threads"), [("2000m", "2"), ("1500m", "2"), ("3", "3"), ("100m", "1"), ("", "2")])
    def test_there_are_as_many_threads_as_cpus(self, limit: str, threads: str) -> None:
        settings = msgspec.structs.replace(SETTINGS, resources=Resources(limits={"cpu": limit} if limit else {}))
        assert option(injected(settings=settings), "--concurrency") == threads

    def test_concurrency_0_leaves_the_number_to_envoy(self) -> None:
        assert "--concurrency" not in proxy(injected({"proxy.istio.io/config": "concurrency: 0"}))["args"]

    def test_more_statistics_are_kept_on_request(self) -> None:
        result = injected({"sidecar.istio.io/statsInclusionPrefixes": "cluster.outbound, http"})
        patterns = bootstrap(result)["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
        assert [p["prefix"] for p in patterns][-2:] == ["cluster.outbound", "http"]


class TestProbes:
    TCP = {"tcpSocket": {"port": 8080}, "periodSeconds": 5}

    def web(self, annotations: dict[str, str] | None = None, **probes: Any) -> dict[str, Any]:
        ports = [{"containerPort": 8080, "name": "http"}]
        return injected(annotations, containers=[{"name": "web", "ports": ports, **probes}])

    @pytest.mark.parametrize("port", [8080, "http"])
    def test_a_tcp_probe_asks_the_proxy_which_tries_the_application(self, port: int | str) -> None:
        result = self.web(readinessProbe={"tcpSocket": {"port": port}, "periodSeconds": 5})
        probe = container(result, "web")["readinessProbe"]
        assert probe == {"httpGet": {"path": "/app-health/web/readyz", "port": 15021}, "periodSeconds": 5}
        clusters = {c["name"]: c for c in bootstrap(result)["static_resources"]["clusters"]}
        tried = clusters["tried|8080"]
        assert tried["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] == {
            "address": "10.1.2.3", "port_value": 8080,
        }  # fmt: skip
        assert tried["upstream_bind_config"]["source_address"]["address"] == "127.0.0.6"

    def test_probes_of_each_kind_have_paths_of_their_own(self) -> None:
        web = container(self.web(livenessProbe=self.TCP, startupProbe=self.TCP), "web")
        assert web["livenessProbe"]["httpGet"]["path"] == "/app-health/web/livez"
        assert web["startupProbe"]["httpGet"]["path"] == "/app-health/web/startupz"

    @pytest.mark.parametrize(
        "annotations",
        [
            {"traffic.sidecar.istio.io/excludeInboundPorts": "8080"},
            {"traffic.sidecar.istio.io/includeInboundPorts": "9090"},
            {"sidecar.istio.io/interceptionMode": "NONE"},
            {"sidecar.istio.io/rewriteAppHTTPProbers": "false"},
        ],
    )
    def test_a_probe_that_reaches_the_application_stays(self, annotations: dict[str, str]) -> None:
        assert container(self.web(annotations, readinessProbe=self.TCP), "web")["readinessProbe"] == self.TCP

    @pytest.mark.parametrize(
        "probe",
        [
            {"httpGet": {"port": 8080}},
            {"grpc": {"port": 8080}},
            {"exec": {"command": ["true"]}},
            {"tcpSocket": {"port": 8080, "host": "db"}},
        ],
    )
    def test_other_probes_stay(self, probe: dict[str, Any]) -> None:
        assert container(self.web(readinessProbe=probe), "web")["readinessProbe"] == probe


class TestAnnotations:
    def test_capture_follows_them(self) -> None:
        result = injected(
            {
                "sidecar.istio.io/interceptionMode": "TPROXY",
                "traffic.sidecar.istio.io/includeInboundPorts": "8080,8443",
                "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
                "traffic.sidecar.istio.io/includeOutboundPorts": "443",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
                "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
                "traffic.sidecar.istio.io/excludeInterfaces": "docker0",
            }
        )
        expected = Capture(
            mode=Mode.TPROXY,
            inbound_ports=(8080, 8443),
            excluded_inbound_ports=(9000,),
            outbound_ports=(443,),
            excluded_outbound_ports=(3306,),
            outbound_ranges=("10.0.0.0/8",),
            excluded_outbound_ranges=("10.1.0.0/16",),
            excluded_interfaces=("docker0",),
        )
        assert expanded(container(result, "istio-init")["args"][0]) == script(expected)
        assert bootstrap(result)["node"]["metadata"]["INTERCEPTION_MODE"] == "TPROXY"

    def test_without_interception_nothing_is_captured(self) -> None:
        result = injected({"sidecar.istio.io/interceptionMode": "NONE"})
        assert names(result["spec"]["initContainers"]) == ["istio-proxy", "migrate"]
        assert bootstrap(result)["node"]["metadata"]["INTERCEPTION_MODE"] == "NONE"

    def test_resources_of_annotations_stand_alone(self) -> None:
        result = injected({"sidecar.istio.io/proxyCPU": "50m", "sidecar.istio.io/proxyMemoryLimit": "256Mi"})
        assert proxy(result)["resources"] == {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}}

    def test_image_and_log_levels_are_the_pods_to_choose(self) -> None:
        result = injected(
            {
                "sidecar.istio.io/proxyImage": "mine:2",
                "sidecar.istio.io/logLevel": "debug",
                "sidecar.istio.io/componentLogLevel": "rbac:trace",
            }
        )
        assert proxy(result)["image"] == container(result, "istio-init")["image"] == "mine:2"
        assert option(result, "--log-level") == "debug"
        assert option(result, "--component-log-level") == "rbac:trace"

    def test_readiness_follows_them(self) -> None:
        result = injected(
            {
                "readiness.status.sidecar.istio.io/initialDelaySeconds": "5",
                "readiness.status.sidecar.istio.io/periodSeconds": "3",
                "readiness.status.sidecar.istio.io/failureThreshold": "9",
            }
        )
        probe = proxy(result)["readinessProbe"]
        assert (probe["initialDelaySeconds"], probe["periodSeconds"], probe["failureThreshold"]) == (5, 3, 9)
        assert "readinessProbe" not in proxy(injected({"status.sidecar.istio.io/port": "0"}))

    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            ("traffic.sidecar.istio.io/excludeInboundPorts", "http", "'http' is no port: write numbers from 1 to 65535, or * for all"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "ten", "'ten' is no range of addresses: write 10.96.0.0/12"),
            ("sidecar.istio.io/interceptionMode", "IPTABLES", "must be REDIRECT, TPROXY or NONE"),
            ("sidecar.istio.io/nativeSidecar", "maybe", "must be true or false; it is 'maybe'"),
            ("sidecar.istio.io/proxyCPU", "one", "'one' is no quantity: write 100m, 0.5, 128Mi or 1Gi"),
            ("sidecar.istio.io/userVolume", "[1]", 'must be JSON of objects by name: {"my-volume": {…}}'),
            ("readiness.status.sidecar.istio.io/periodSeconds", "-1", "must be a whole number; it is '-1'"),
            ("proxy.istio.io/config", "concurrency: many", "$.concurrency: must be a whole number; it is `many`"),
            ("inject.istio.io/templates", "sidecar,magic", "there is no template 'magic': there are sidecar, gateway, grpc-simple"),
            ("inject.istio.io/templates", "sidecar,gateway", "a pod is one of them only: sidecar, gateway"),
            ("inject.istio.io/templates", "gateway", "a gateway's pod has a container 'istio-proxy', with the image 'auto'"),
        ],
    )  # fmt: skip
    def test_one_that_cannot_be_followed_is_named(self, key: str, value: str, reason: str) -> None:
        with pytest.raises(ConfigError) as caught:
            injected({key: value})
        assert (caught.value.path, caught.value.reason) == (key, reason)

    def test_one_that_has_no_effect_is_told(self) -> None:
        result: Injected = inject(
            pod({"sidecar.istio.io/agentLogLevel": "all:debug", "proxy.istio.io/config": "concurency: 2"}),
            "shop",
            SETTINGS,
            ProxyConfig(),
            native=True,
        )
        assert [warning.partition(":")[0] for warning in result.warnings] == [
            "proxy.istio.io/config",
            "sidecar.istio.io/agentLogLevel has no effect",
        ]


class TestPolicy:
    @pytest.mark.parametrize(
        ("labels", "annotations", "injects"),
        [
            ({}, {}, True),
            ({"sidecar.istio.io/inject": "false"}, {}, False),
            ({}, {"sidecar.istio.io/inject": "false"}, False),
            ({}, {"sidecar.istio.io/inject": "off"}, False),
            ({"sidecar.istio.io/inject": "true"}, {"sidecar.istio.io/inject": "false"}, True),
            ({"sidecar.istio.io/inject": "false"}, {"sidecar.istio.io/inject": "true"}, False),
        ],
    )
    def test_the_pods_label_wins_over_its_annotation(self, labels: dict[str, str], annotations: dict[str, str], injects: bool) -> None:
        assert (reason_against(pod(annotations, labels), "shop") == "") is injects

    def test_pods_of_the_nodes_network_are_left_alone(self) -> None:
        assert reason_against(pod(hostNetwork=True), "shop") == "it uses the node's own network"

    def test_kubernetes_own_namespaces_are_left_alone(self) -> None:
        assert reason_against(pod(labels={"sidecar.istio.io/inject": "true"}), "kube-system") == "it is in kube-system"

    @pytest.mark.parametrize(
        ("namespace", "labels", "chosen"),
        [
            ({}, {}, False),
            ({"istio-injection": "enabled"}, {}, True),
            ({"istio-injection": "disabled"}, {"sidecar.istio.io/inject": "true"}, False),
            ({"istio-injection": "enabled"}, {"sidecar.istio.io/inject": "false"}, False),
            ({}, {"sidecar.istio.io/inject": "true"}, True),
            ({"istio.io/rev": "default"}, {}, True),
            ({"istio.io/rev": "canary"}, {}, False),
            ({"istio.io/rev": "canary"}, {"istio.io/rev": "default"}, False),
            ({}, {"istio.io/rev": "default"}, True),
            ({}, {"istio.io/rev": "canary", "sidecar.istio.io/inject": "true"}, False),
            ({"istio-injection": "enabled", "istio.io/rev": "canary"}, {}, True),
        ],
    )
    def test_namespaces_choose_and_pods_opt_in_or_out(self, namespace: dict[str, str], labels: dict[str, str], chosen: bool) -> None:
        assert selected(namespace, labels, "default") is chosen


class TestSettings:
    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="imgae"):
            decode("imgae: x", "injection.yaml")

    def test_none_are_needed(self) -> None:
        assert decode("", "injection.yaml") == Settings()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("a/~", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3),
    max_leaves=12,
)


def applied(document: Any, patch: list[dict[str, Any]]) -> Any:
    """`document` with `patch`, by the letter of RFC 6902, for the operations that are used."""
    root = {"": copy.deepcopy(document)}
    for operation in patch:
        *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")]
        target: Any = root
        for step in steps:
            target = target[step]
        if operation["op"] != "add":
            assert last in target
        if operation["op"] == "remove":
            del target[last]
        else:
            target[last] = operation["value"]
    return root[""]


@given(JSON, JSON)
def test_a_patch_makes_the_second_of_the_first(before: Any, after: Any) -> None:
    assert applied(before, json_patch(before, after)) == after
