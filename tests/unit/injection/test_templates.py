"""Templates: the built-in ones, and the operator's, which are laid over a pod."""

import json
from typing import Any

import msgspec
import pytest

from xds.errors import ConfigError
from xds.injection.pods import inject
from xds.injection.settings import Settings, decode
from xds.injection.templates import merge
from xds.mesh.workloads import claim
from xds.objects import ProxyConfig

GREETING = """
metadata:
  labels: {greeted: "true"}
  annotations: {greeted: by the operator}
spec:
  priorityClassName: high
  volumes:
  - name: greetings
    emptyDir: {}
  initContainers:
  - name: greeter
    image: greeter:1
  containers:
  - name: istio-proxy
    env:
    - {name: GREETING, value: hello}
    resources: {limits: {cpu: "4"}}
  - name: web
    image: never
    env:
    - {name: GREETING, value: hello}
    - {name: OWN, value: changed}
"""
WEB = {"name": "web", "image": "web:1", "env": [{"name": "OWN", "value": "kept"}]}
PROXY = {"name": "istio-proxy", "image": "auto"}


def settings(**fields: Any) -> Settings:
    return decode(json.dumps({"image": "xds-proxy:1", **fields}), "settings.yaml")


def injected(wanted: str, *containers: dict[str, Any], spec: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    annotations = {"inject.istio.io/templates": wanted} if wanted else {}
    pod = {
        "metadata": {"labels": {"app": "web"}, "annotations": annotations},
        "spec": {"containers": list(containers or [WEB]), **(spec or {})},
    }
    return inject(pod, "shop", settings(**fields), ProxyConfig(), native=True).pod


def named(containers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(c for c in containers if c["name"] == name)


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {v["name"]: v.get("value", "") for v in container["env"]}


class TestCustom:
    def test_it_is_laid_over_the_sidecars_pod(self) -> None:
        pod = injected("sidecar, greeting", templates={"greeting": GREETING})
        inits = pod["spec"]["initContainers"]
        assert [c["name"] for c in inits] == ["istio-init", "istio-proxy", "greeter"]
        assert pod["metadata"]["labels"]["greeted"] == "true"
        assert pod["metadata"]["annotations"]["greeted"] == "by the operator"
        assert (pod["spec"]["priorityClassName"], pod["spec"]["volumes"]) == ("high", [{"name": "greetings", "emptyDir": {}}])

    def test_containers_are_told_by_their_names_wherever_the_proxy_is(self) -> None:
        pod = injected("sidecar,greeting", templates={"greeting": GREETING})
        proxy = named(pod["spec"]["initContainers"], "istio-proxy")
        assert variables(proxy)["GREETING"] == "hello"
        assert variables(proxy).keys() > {"POD_NAME", "GREETING"}
        assert proxy["resources"]["limits"] == {"cpu": "4", "memory": "1024Mi"}
        assert [c["name"] for c in pod["spec"]["containers"]] == ["web"]

    def test_what_a_container_says_itself_stays(self) -> None:
        pod = injected("sidecar,greeting", templates={"greeting": GREETING})
        web = named(pod["spec"]["containers"], "web")
        assert web["image"] == "web:1"
        assert variables(web) == {"GREETING": "hello", "OWN": "kept"}

    def test_what_the_pod_says_of_its_proxy_goes_before_the_template(self) -> None:
        own = {**PROXY, "env": [{"name": "GREETING", "value": "my own"}]}
        pod = injected("sidecar,greeting", WEB, own, templates={"greeting": GREETING})
        proxy = named(pod["spec"]["initContainers"], "istio-proxy")
        assert variables(proxy)["GREETING"] == "my own"
        assert proxy["image"] == "xds-proxy:1"
        assert proxy["resources"]["limits"]["cpu"] == "4"

    def test_the_operators_defaults_hold_where_a_pod_names_none(self) -> None:
        both = {"templates": {"greeting": GREETING}, "defaultTemplates": ["sidecar", "greeting"]}
        assert injected("", **both)["metadata"]["labels"]["greeted"] == "true"
        assert "greeted" not in injected("sidecar", **both)["metadata"]["labels"]

    def test_later_ones_go_before_earlier_ones(self) -> None:
        templates = {name: {"spec": {"priorityClassName": name}} for name in ("a", "b")}
        assert injected("a,sidecar,b", templates=templates)["spec"]["priorityClassName"] == "b"
        assert injected("b,sidecar,a", templates=templates)["spec"]["priorityClassName"] == "a"

    def test_alone_it_adds_no_proxy(self) -> None:
        pod = injected("plain", templates={"plain": {"spec": {"nodeSelector": {"disk": "fast"}}}})
        assert pod["spec"] == {"containers": [WEB], "nodeSelector": {"disk": "fast"}}
        assert "sidecar.istio.io/status" in pod["metadata"]["annotations"]

    def test_null_removes(self) -> None:
        template = {"spec": {"containers": [{"name": "istio-proxy", "lifecycle": None}]}}
        pod = injected("sidecar,plain", templates={"plain": template})
        assert "lifecycle" not in named(pod["spec"]["initContainers"], "istio-proxy")

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("metadata: {labels: {a: '{{ .ObjectMeta.Name }}'}}", "$.templates.t: templates are plain YAML here: {{…}} of Go is not run"),
            ("metadata: [", "$.templates.t: not YAML"),
            ("[]", "$.templates.t: must be a part of a pod"),
            ({"kind": "Pod"}, "$.templates.t.kind: must be metadata or spec"),
            ({"spec": []}, "$.templates.t.spec: must be a map"),
            ({"metadata": {"name": "x"}}, "$.templates.t.metadata.name: must be labels or annotations"),
            ({"metadata": {"labels": {"x": 1}}}, "$.templates.t.metadata.labels: must be a map of strings"),
            ({"spec": {"containers": [{"image": "x"}]}}, "$.templates.t.spec.containers: must be a list of maps, each with its name"),
            ({"spec": {"containers": {"name": "x"}}}, "$.templates.t.spec.containers: must be a list of maps, each with its name"),
            ({"spec": {"$patch": "replace"}}, "$.templates.t.spec.$patch: directives are not understood"),
        ],
    )
    def test_what_would_not_do_what_it_looks_like_is_refused(self, template: Any, reason: str) -> None:
        with pytest.raises(ConfigError) as error:
            settings(templates={"t": template})
        assert reason in str(error.value)

    def test_a_built_in_name_is_not_to_be_had(self) -> None:
        with pytest.raises(ConfigError, match=r"\$\.templates\.sidecar: this template is built in"):
            settings(templates={"sidecar": {}})

    def test_defaults_must_exist(self) -> None:
        with pytest.raises(ConfigError, match="there is no template 'magic'"):
            settings(defaultTemplates=["sidecar", "magic"])

    def test_other_lists_are_replaced(self) -> None:
        assert merge({"args": ["a"], "tolerations": [{"key": "a"}]}, {"args": ["b"], "tolerations": []}) == {
            "args": ["b"],
            "tolerations": [],
        }


class TestGateway:
    def test_the_pods_own_container_becomes_a_routers_proxy(self) -> None:
        pod = injected("gateway", {**PROXY, "ports": [{"containerPort": 443}]})
        (proxy,) = pod["spec"]["containers"]
        assert "initContainers" not in pod["spec"]
        assert proxy["image"] == "xds-proxy:1"
        assert {port["containerPort"] for port in proxy["ports"]} == {443, 15090}
        assert proxy["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "restartPolicy" not in proxy
        assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "istio-proxy"

    def test_how_its_image_is_pulled_is_the_operators_choice(self) -> None:
        (proxy,) = injected("gateway", {**PROXY, "imagePullPolicy": "Always"}, imagePullPolicy="IfNotPresent")["spec"]["containers"]
        assert proxy["imagePullPolicy"] == "IfNotPresent"

    def test_it_is_a_router_for_the_control_plane(self) -> None:
        (proxy,) = injected("gateway", PROXY)["spec"]["containers"]
        node = json.loads(proxy["args"][proxy["args"].index("--config-yaml") + 1])["node"]
        assert claim(node["id"], node["metadata"]).kind == "router"

    def test_it_may_listen_on_low_ports(self) -> None:
        own = {"securityContext": {"fsGroup": 7, "sysctls": [{"name": "net.core.somaxconn", "value": "9"}]}}
        security = injected("gateway", PROXY, spec=own)["spec"]["securityContext"]
        low = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
        assert security == {"fsGroup": 7, "sysctls": [{"name": "net.core.somaxconn", "value": "9"}, low]}


class TestGrpc:
    def test_every_container_finds_its_control_plane_and_none_has_a_proxy(self) -> None:
        pod = injected("grpc-simple", WEB, spec={"initContainers": [{"name": "migrate", "image": "m"}]})
        writer, migrate = pod["spec"]["initContainers"]
        for container in (migrate, pod["spec"]["containers"][0]):
            assert variables(container)["GRPC_XDS_BOOTSTRAP"] == "/var/lib/grpc/data/bootstrap.json"
            assert {"name": "grpc-io-proxyless-bootstrap", "mountPath": "/var/lib/grpc/data", "readOnly": True} in container["volumeMounts"]
        assert writer["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        file = json.loads(writer["args"][0].replace("$(INSTANCE_IP)", "10.1.2.3"))
        assert file["xds_servers"][0]["server_uri"] == "istiod.istio-system.svc:15010"
        assert file["node"]["id"].startswith("sidecar~10.1.2.3~$(POD_NAME).$(POD_NAMESPACE)~")

    def test_a_file_of_its_own_is_kept(self) -> None:
        own = {**WEB, "env": [{"name": "GRPC_XDS_BOOTSTRAP", "value": "/mine"}]}
        (web,) = injected("grpc-simple", own)["spec"]["containers"]
        assert variables(web) == {"GRPC_XDS_BOOTSTRAP": "/mine"}
        assert "volumeMounts" not in web


def test_settings_without_templates_are_as_before() -> None:
    assert msgspec.structs.asdict(settings())["default_templates"] == ("sidecar",)
