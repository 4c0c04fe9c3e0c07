"""VirtualServices for the tests of one module, which say what they want where they use it and share one client.

Each rule has a host of its own that no service has, so all are called at one address and told apart by the Host header.

    RULES = Rules("redirects")

    class TestRedirect:
        MOVED = RULES.add("- redirect: {uri: /new}")

        def test_location(self, client: Pod) -> None:
            assert client.get("http://app/", host=self.MOVED).status == 301
"""

import textwrap
from typing import Any

import yaml
from support.traffic import Mesh

SUBSETS = """
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {name: app}
    spec:
      host: app
      subsets:
      - {name: v1, labels: {version: v1}}
      - {name: v2, labels: {version: v2}}
"""
TO_APP = "route: [{destination: {host: app}}]"
TO_V1 = "route: [{destination: {host: app, subset: v1}}]"
TO_V2 = "route: [{destination: {host: app, subset: v2}}]"


def virtual_service(name: str, routes: str, *, hosts: str = "", kind: str = "http", namespace: str = "", more: str = "") -> str:
    """A VirtualService with these routes of a `kind` (a YAML list in flow style); a delegate where it has no `hosts`."""
    return f"""
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {{name: {name}{f", namespace: {namespace}" if namespace else ""}}}
    spec:
      {f"hosts: {hosts}" if hosts else ""}
      {more}
      {kind}: {routes}
    """


class Rules:
    """The rules of a module. `name` tells its hosts from those of others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._specs: list[dict[str, Any]] = []

    def add(self, http: str, **spec: Any) -> str:
        """A VirtualService with these `http` routes (a YAML list): the host to call."""
        host = f"{self.name}-{len(self._specs)}.test"
        self._specs.append({"hosts": [host], "http": yaml.safe_load(textwrap.dedent(http)), **spec})
        return host

    def matching(self, conditions: str) -> str:
        """A host whose requests go to v2 where `conditions` (a YAML list of matches) hold, else to v1."""
        return self.add(f"- match: {conditions}\n  {TO_V2}\n- {TO_V1}")

    def apply(self, mesh: Mesh) -> None:
        """Write them all, and the service `app` with the subsets v1 and v2 that they lead to."""
        mesh.apply(SUBSETS, quiet=True)
        for number, spec in enumerate(self._specs):
            document = {
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": {"name": f"rule-{number}"},
                "spec": spec,
            }
            mesh.put(document, quiet=True)
        mesh.service("app", ("v1", "v2"))
