"""VirtualService `hosts`, `gateways` and `exportTo`: which calls of whom a VirtualService is for."""

import pytest
from support.traffic import Mesh, Pod, eventually
from support.traffic_rules import virtual_service


def rule(hosts: str, subset: str, *, name: str = "rule", namespace: str = "", target: str = "app", more: str = "") -> str:
    """A VirtualService that sends the calls to `hosts` (a YAML list) to a version of `app`, and says so in the answer."""
    route = f"headers: {{response: {{set: {{x-rule: {name}}}}}}}, route: [{{destination: {{host: {target}, subset: '{subset}'}}}}]"
    return virtual_service(name, f"[{{{route}}}]", hosts=hosts, namespace=namespace, more=more)


def subsets(host: str, namespace: str = "") -> str:
    return f"""
    apiVersion: networking.istio.io/v1
    kind: DestinationRule
    metadata: {{name: {host.partition(".")[0]}{f", namespace: {namespace}" if namespace else ""}}}
    spec:
      host: {host}
      subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
    """


@pytest.fixture
def app(mesh: Mesh) -> Mesh:
    """A mesh with the service `app` of the versions v1 and v2."""
    mesh.apply(subsets("app"), quiet=True)
    mesh.service("app", ("v1", "v2"))
    return mesh


def ruled(client: Pod, url: str, **more: str) -> str | None:
    """The name of the rule that took a request."""
    return client.get(url, **more).header("x-rule")  # type: ignore[arg-type]


class TestHosts:
    @pytest.mark.parametrize("host", ["app", "app.{}.svc.cluster.local", "'*.{}.svc.cluster.local'", "'*.svc.cluster.local'"])
    def test_a_service_by_its_names(self, app: Mesh, host: str) -> None:
        app.apply(rule(f"[{host.format(app.namespace)}]", "v2"))
        client = app.pod("client")
        for name in ("app", f"app.{app.namespace}", f"app.{app.namespace}.svc", f"app.{app.namespace}.svc.cluster.local"):
            assert client.many(f"http://{name}/", 4) == {"app-v2": 4}
        assert client.many("http://app:80/", 4) == {"app-v2": 4}
        assert client.many("http://app/", 4, host=app.resolves[f"app.{app.namespace}.svc.cluster.local"]) == {"app-v2": 4}

    def test_a_short_name_means_the_rule_s_own_namespace(self, app: Mesh) -> None:
        other = f"{app.namespace}-other"
        app.service("app", namespace=other)
        app.apply(rule("[app]", "v2", name="elsewhere", namespace=other, target=f"app.{app.namespace}.svc.cluster.local"))
        client = app.pod("client")
        assert ruled(client, "http://app/") is None
        assert ruled(client, f"http://app.{other}/") == "elsewhere"

    def test_several_hosts_share_the_rules(self, app: Mesh) -> None:
        app.service("more")
        app.apply(rule("[app, more, nobody.test]", "v2"))
        client = app.pod("client")
        assert client.many("http://app/", 4) == client.many("http://more/", 4) == {"app-v2": 4}
        assert client.get("http://app/", host="nobody.test").server == "app-v2"

    def test_the_most_specific_host_wins(self, app: Mesh) -> None:
        domain = f"{app.namespace}.svc.cluster.local"
        app.service("more")
        app.apply(rule("['*.svc.cluster.local']", "v1", name="a-widest"), quiet=True)
        app.apply(rule(f"['*.{domain}']", "v1", name="b-wide"), quiet=True)
        app.apply(rule(f"[app.{domain}]", "v1", name="c-exact"))
        client = app.pod("client")
        assert ruled(client, "http://app/") == "c-exact"
        assert ruled(client, "http://more/") == "b-wide"

    def test_a_name_that_no_service_has_is_served_on_port_80(self, app: Mesh) -> None:
        app.apply(rule("[nobody.test, '*.wild.test']", "v2"))
        client = app.pod("client")
        for host in ("nobody.test", "NOBODY.test", "nobody.test:80", "a.wild.test", "a.b.wild.test"):
            assert ruled(client, "http://app/", host=host) == "rule", host
        assert ruled(client, "http://app/", host="wild.test") is None

    def test_a_name_with_a_dot_is_no_short_name(self, app: Mesh) -> None:
        app.apply(rule(f"[app.{app.namespace}]", "v2"))
        client = app.pod("client")
        assert ruled(client, f"http://app.{app.namespace}/") == "rule"
        assert ruled(client, "http://app/") is None

    def test_an_address_that_no_service_has(self, app: Mesh) -> None:
        app.apply(rule("[203.0.113.9]", "v2"))
        assert app.pod("client").many("http://203.0.113.9/", 4) == {"app-v2": 4}

    def test_every_service(self, app: Mesh) -> None:
        app.service("more")
        app.apply(rule("['*']", "v2", more="exportTo: ['.']"))
        client = app.pod("client")
        assert client.many("http://app/", 4) == client.many("http://more/", 4) == {"app-v2": 4}

    def test_a_name_that_no_service_has_is_served_on_the_ports_of_the_rule_s_services(self, app: Mesh) -> None:
        app.service("more", ports=[{"name": "http", "port": 9080, "targetPort": 8080}])
        app.apply(rule("[more, nobody.test]", "v2"))
        client = app.pod("client")
        assert ruled(client, "http://more:9080/", host="nobody.test") == "rule"
        assert ruled(client, "http://app/", host="nobody.test") is None

    def test_a_host_of_a_service_entry(self, app: Mesh) -> None:
        app.application("outside", "198.51.100.20")
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: outside}}
            spec:
              hosts: [api.{app.namespace}.test]
              addresses: [203.0.113.20]
              ports: [{{number: 80, name: http, protocol: HTTP}}]
              resolution: STATIC
              endpoints: [{{address: 198.51.100.20}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: outside}}
            spec:
              hosts: [api.{app.namespace}.test]
              http:
              - match: [{{uri: {{prefix: /in}}}}]
                route: [{{destination: {{host: app, subset: v1}}}}]
              - headers: {{response: {{set: {{x-rule: outside}}}}}}
                route: [{{destination: {{host: api.{app.namespace}.test}}}}]
        """)
        client = app.pod("client")
        reply = client.get(f"http://api.{app.namespace}.test/", at="203.0.113.20")
        assert (reply.server, reply.header("x-rule")) == ("outside", "outside")
        assert client.get(f"http://api.{app.namespace}.test/in", at="203.0.113.20").server == "app-v1"

    def test_requests_that_leave_by_tls_on_another_port(self, app: Mesh) -> None:
        host = f"secure.{app.namespace}.test"
        app.application("outside", "198.51.100.21", [443])
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: outside}}
            spec:
              hosts: [{host}]
              ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: https, protocol: HTTPS}}]
              resolution: STATIC
              endpoints: [{{address: 198.51.100.21}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: outside}}
            spec:
              hosts: [{host}]
              http:
              - match: [{{port: 80}}]
                route: [{{destination: {{host: {host}, subset: encrypted, port: {{number: 443}}}}}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: DestinationRule
            metadata: {{name: outside}}
            spec:
              host: {host}
              subsets:
              - name: encrypted
                trafficPolicy:
                  portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: SIMPLE, insecureSkipVerify: true}}}}]
        """)
        call = app.pod("client").get(f"http://{host}/").call
        assert call is not None
        assert (call.server, call.port, call.tls, call.sni, call.authority) == ("outside", 443, True, host, host)

    def test_hosts_of_a_wildcard_service_entry(self, app: Mesh) -> None:
        app.application("outside", "198.51.100.20")
        domain = f"{app.namespace}.test"
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata: {{name: outside}}
            spec:
              hosts: ['*.{domain}']
              ports: [{{number: 80, name: http, protocol: HTTP}}]
              resolution: STATIC
              endpoints: [{{address: 198.51.100.20}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: all}}
            spec:
              hosts: ['*.{domain}']
              http:
              - headers: {{response: {{set: {{x-rule: all}}}}}}
                route: [{{destination: {{host: '*.{domain}'}}}}]
            ---
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: one}}
            spec:
              hosts: [one.{domain}]
              http: [{{route: [{{destination: {{host: app, subset: v1}}}}]}}]
        """)
        client = app.pod("client")
        reply = client.get("http://app/", host=f"any.{domain}")
        assert (reply.server, reply.header("x-rule")) == ("outside", "all")
        assert client.get("http://app/", host=f"one.{domain}").server == "app-v1"

    def test_a_headless_service(self, app: Mesh) -> None:
        app.service("pods", headless=True)
        app.apply(rule("[pods]", "v2"))
        client = app.pod("client")
        assert client.many("http://pods/", 4) == {"app-v2": 4}

    def test_a_subset_of_a_headless_service(self, app: Mesh) -> None:
        app.apply(subsets("pods"), quiet=True)
        app.service("pods", ("v1", "v2"), headless=True)
        app.apply(rule("[pods]", "v2", target="pods"))
        client = app.pod("client")
        for pod in app.services["pods"].applications.values():
            assert client.many("http://pods/", 4, at=pod.address) == {"pods-v2": 4}

    def test_a_headless_service_whose_callers_choose_a_pod(self, app: Mesh) -> None:
        app.service("pods", {"v1": 2}, headless=True)
        app.apply(rule("[pods]", "", target="pods"))
        client = app.pod("client")
        for name, pod in app.services["pods"].applications.items():
            reply = client.get("http://pods/", at=pod.address)
            assert (reply.server, reply.header("x-rule")) == (name, "rule")

    def test_a_rule_that_leads_to_a_headless_service(self, app: Mesh) -> None:
        app.service("pods", {"v1": 2}, headless=True)
        app.apply(rule("[app]", "", target="pods"))
        client = app.pod("client")
        assert client.many("http://app/", 40).keys() == {"pods-v1-0", "pods-v1-1"}

    def test_the_alias_of_a_service(self, app: Mesh) -> None:
        target = f"app.{app.namespace}.svc.cluster.local"
        app.service("alias", (), spec={"type": "ExternalName", "externalName": target, "clusterIP": ""})
        app.apply(rule("[app]", "v2"))
        client = app.pod("client")
        assert client.many("http://app/", 4, host="alias") == {"app-v2": 4}

    def test_a_rule_for_an_alias_is_not_used(self, app: Mesh) -> None:
        """Istio 1.21, "ExternalName support changes": the rules of the service that it stands for are."""
        target = f"app.{app.namespace}.svc.cluster.local"
        app.service("alias", (), spec={"type": "ExternalName", "externalName": target, "clusterIP": ""})
        app.apply(rule("[alias]", "v2"))
        client = app.pod("client")
        assert ruled(client, "http://app/", host="alias") is None
        assert ruled(client, "http://app/") is None


class TestGateways:
    @pytest.mark.parametrize(
        ("gateways", "applies"),
        [("[mesh]", True), ("[edge, mesh]", True), ("[edge]", False), ("[istio-system/edge]", False), ("[]", True)],
    )
    def test_mesh_means_sidecars(self, app: Mesh, gateways: str, applies: bool) -> None:
        app.apply(rule("[app]", "v2", more=f"gateways: {gateways}"))
        assert ruled(app.pod("client"), "http://app/") == ("rule" if applies else None)

    def test_a_rule_for_gateways_alone_hides_none_for_the_mesh(self, app: Mesh) -> None:
        app.apply(rule("[app]", "v2", name="a-edge", more="gateways: [edge]"), quiet=True)
        app.apply(rule("[app]", "v2", name="b-mesh"))
        assert ruled(app.pod("client"), "http://app/") == "b-mesh"

    def test_sources_need_the_mesh(self, app: Mesh) -> None:
        app.apply("""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: rule}
            spec:
              hosts: [app]
              gateways: [edge, mesh]
              http:
              - match: [{sourceLabels: {app: client}, gateways: [edge]}]
                directResponse: {status: 418}
              - match: [{sourceLabels: {app: client}}]
                route: [{destination: {host: app, subset: v2}}]
        """)
        assert app.pod("client").many("http://app/", 4) == {"app-v2": 4}


class TestExportTo:
    @pytest.mark.parametrize(
        ("export_to", "own", "other"),
        [("['.']", "rule", None), ("['*']", "rule", "rule"), ("[]", "rule", "rule"), ("[{}-other]", None, "rule"),
         ("['.', {}-other]", "rule", "rule"), ("[nowhere]", None, None), ("['~']", None, None)],
    )  # fmt: skip
    def test_namespaces(self, app: Mesh, export_to: str, own: str | None, other: str | None) -> None:
        app.apply(rule("[app]", "v2", more=f"exportTo: {export_to.format(app.namespace)}"))
        near, far = app.pod("near"), app.pod("far", namespace=f"{app.namespace}-other")
        assert (ruled(near, "http://app/"), ruled(far, f"http://app.{app.namespace}/")) == (own, other)

    def test_a_source_namespace(self, app: Mesh) -> None:
        app.apply(f"""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {{name: rule}}
            spec:
              hosts: [app]
              http:
              - match: [{{sourceNamespace: {app.namespace}-other}}]
                route: [{{destination: {{host: app, subset: v2}}}}]
              - route: [{{destination: {{host: app, subset: v1}}}}]
        """)
        near, far = app.pod("near"), app.pod("far", namespace=f"{app.namespace}-other")
        assert near.many("http://app/", 4) == {"app-v1": 4}
        assert far.many(f"http://app.{app.namespace}/", 4) == {"app-v2": 4}

    def test_clients_of_one_namespace_may_differ_in_labels(self, app: Mesh) -> None:
        app.apply("""
            apiVersion: networking.istio.io/v1
            kind: VirtualService
            metadata: {name: rule}
            spec:
              hosts: [app]
              http:
              - match: [{sourceLabels: {tier: front}}]
                route: [{destination: {host: app, subset: v2}}]
              - route: [{destination: {host: app, subset: v1}}]
        """)
        front, back = app.pod("front", {"tier": "front"}), app.pod("back", {"tier": "back"}, known=False)
        stranger = app.pod("stranger", {"tier": "front"}, known=False)  # what its labels are just its proxy says
        found = [pod.many("http://app/", 4) for pod in (front, back, stranger)]
        assert found == [{"app-v2": 4}, {"app-v1": 4}, {"app-v2": 4}]


class TestRivals:
    """Two VirtualServices for one host of the mesh are not merged."""

    def test_the_older_one_governs(self, app: Mesh) -> None:
        for name, created in (("a-young", "2025-01-01T00:00:00Z"), ("b-old", "2020-01-01T00:00:00Z")):
            document = rule("[app]", "v2", name=name).replace(f"name: {name}", f"name: {name}, creationTimestamp: '{created}'", 1)
            app.apply(document, quiet=True)
        app.write()
        client = app.pod("client")
        assert ruled(client, "http://app/") == "b-old"
        app.delete("VirtualService", "b-old")
        eventually(lambda: ruled(client, "http://app/") == "a-young")

    def test_of_one_age_the_first_by_name_governs(self, app: Mesh) -> None:
        for name in ("b-second", "a-first"):
            app.apply(rule("[app]", "v2", name=name), quiet=True)
        app.write()
        assert ruled(app.pod("client"), "http://app/") == "a-first"

    def test_a_private_rule_of_the_caller_s_namespace_comes_first(self, app: Mesh) -> None:
        host, other = f"app.{app.namespace}.svc.cluster.local", f"{app.namespace}-other"
        app.apply(rule("[app]", "v2", name="a-public"), quiet=True)
        private = {"name": "b-private", "namespace": other, "target": host, "more": "exportTo: ['.']"}
        app.apply(rule(f"[{host}]", "v2", **private))  # type: ignore[arg-type]
        near, far = app.pod("near"), app.pod("far", namespace=other)
        assert (ruled(near, "http://app/"), ruled(far, f"http://app.{app.namespace}/")) == ("a-public", "b-private")
