"""Pods of the tests: Istio's bookinfo in shape, with a service of our own for each of its four."""

from pathlib import Path
from typing import Any

import yaml

IMAGE = "docker.io/library/xds:0.1.0"  # it has a Python
CALLS = {
    "productpage": ["http://details:9080/", "http://reviews:9080/"],
    "details": [],
    "reviews": ["http://ratings:9080/"],
    "ratings": [],
}
PROBES = ({"httpGet": {"path": "/healthz", "port": 9080}}, {"tcpSocket": {"port": 9080}})
# As the "restricted" Pod Security level demands; the image's user is no root.
SECURITY = {
    "allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
PATIENT = {"timeoutSeconds": 10, "failureThreshold": 30}  # a busy machine is no reason to take a pod out of service
RULES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 75}
    - {destination: {host: reviews, subset: v3}, weight: 25}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - match: [{headers: {end-user: {exact: unlucky}}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 555}}
    route: [{destination: {host: ratings}}]
  - route: [{destination: {host: ratings}}]
"""


def program(name: str) -> str:
    """The text of a program of `programs/`."""
    return (Path(__file__).parent / "programs" / f"{name}.py").read_text()


def application(name: str, version: str, annotations: dict[str, str] | None = None, calls: list[str] | None = None) -> dict[str, Any]:
    """A pod (as a template) with one version of a service."""
    command = ["python3.11", "-Ic", program("application"), name, version, "9080", *(CALLS.get(name, []) if calls is None else calls)]
    container = {
        "name": name,
        "image": IMAGE,
        "command": command,
        "ports": [{"containerPort": 9080}],
        "securityContext": SECURITY,
        "readinessProbe": {**PROBES[name == "reviews"], "periodSeconds": 1, **PATIENT},
    }
    return {
        "metadata": {"labels": {"app": name, "version": version}, "annotations": annotations or {}},
        "spec": {"containers": [container]},
    }


def service(name: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": 9080}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": ports}}


def deployment(name: str, version: str, replicas: int = 1) -> dict[str, Any]:
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name, "version": version}}, "template": application(name, version)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": f"{name}-{version}"}, "spec": spec}


def pod(name: str, *command: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod that runs a program with this image's Python."""
    container = {"name": name, "image": IMAGE, "command": ["python3.11", *command], "securityContext": SECURITY}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": {"containers": [container]}}


def manifests(*objects: dict[str, Any]) -> str:
    return yaml.safe_dump_all(objects)


def bookinfo() -> str:
    """Services and Deployments: three versions of reviews, one of the others."""
    versions = {"reviews": ["v1", "v2", "v3"]}
    return manifests(*map(service, CALLS), *(deployment(name, version) for name in CALLS for version in versions.get(name, ["v1"])))
