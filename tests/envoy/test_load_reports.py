"""Load reports (LRS) of a real Envoy and of grpcio, with real traffic, as metrics of a running product (X10)."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from support.discovery import Envoy, backends, cluster, endpoints, eventually, listener, routes
from support.grpc_client import Backend, Client
from support.product import Product

from xds import pb

SECONDS = 60  # reports come every ten
ADS = {"ads": {}, "resource_api_version": "V3"}
REPORT_TO_US = {
    "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
}  # fmt: skip


def document(message: Any) -> dict[str, Any]:
    return {"@type": pb.type_url(message), **json_format.MessageToDict(message, descriptor_pool=pb.POOL)}


def placed(name: str, **ports: int) -> dict[str, Any]:
    """An assignment with a locality for each zone."""
    made = pb.ClusterLoadAssignment(cluster_name=name)
    for zone, port in ports.items():
        each = made.endpoints.add()
        each.CopyFrom(endpoints(name, port).endpoints[0])
        each.locality.region, each.locality.zone = "eu", zone
        each.load_balancing_weight.value = 1
    return document(made)


def counted(product: Product, name: str, **labels: str) -> float:
    """The value of a metric; 0 where there is none."""
    pairs = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    wanted = f"{name}{{{pairs}}} "
    with urllib.request.urlopen(f"http://127.0.0.1:{product.http}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), 0.0)


def test_an_envoy_reports_its_requests_by_cluster_and_locality() -> None:
    with Product() as product, backends("one", "two") as ports:
        product.write("c1.yaml", document(cluster("c1")), placed("c1", a=ports["one"]))
        product.write("c2.yaml", document(cluster("c2")), placed("c2", b=ports["two"]))
        product.publish("web.yaml", document(listener("web", "r")), document(routes("r", default="c1", other="c2")))
        with Envoy(product.port, extra={"cluster_manager": {"load_stats_config": REPORT_TO_US}}) as envoy:
            eventually(lambda: envoy.ready() and envoy.call("web") == (200, "one"))
            where = {"cluster": "c2", "locality": "eu/b"}

            def reported(result: str) -> float:
                return counted(product, "xds_load_requests_total", **where, result=result)

            # Envoy starts to count a cluster's requests with the report after the one that found it.
            eventually(lambda: envoy.call("web", "/other") == (200, "two") and reported("success"), SECONDS)
            for _ in range(3):
                assert envoy.call("web", "/other/status/503")[0] == 503
            eventually(lambda: reported("error") == 3, SECONDS)
            assert counted(product, "xds_load_requests_issued_total", **where) == reported("success") + reported("error")
            assert counted(product, "xds_load_requests_in_progress", **where) == 0


def test_a_grpc_client_reports_its_calls_by_cluster_and_locality(tmp_path: Path) -> None:
    """Where its clusters say so: `lrs_server: {self: {}}` (gRFC A27)."""
    one, two = Backend("one"), Backend("two")
    manager = pb.HttpConnectionManager(
        stat_prefix="grpc",
        rds={"route_config_name": "r", "config_source": ADS},
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": pb.any(pb.Router())}],
    )
    reporting = cluster("c", lrs_server={"self": {}, "resource_api_version": "V3"})
    with Product() as product:
        bootstrap = tmp_path / "grpc.json"
        server = {"server_uri": f"127.0.0.1:{product.port}", "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        bootstrap.write_text(json.dumps({"xds_servers": [server], "node": {"id": "grpc"}}))
        table = pb.RouteConfiguration(
            name="r", virtual_hosts=[{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": {"cluster": "c"}}]}]
        )
        product.publish(
            "grpc.yaml", document(pb.Listener(name="echo", api_listener={"api_listener": pb.any(manager)})), document(table),
            document(reporting), placed("c", a=one.port, b=two.port),
        )  # fmt: skip
        client = Client(bootstrap, "xds:///echo")
        try:
            eventually(lambda: {client.say() for _ in range(10)} == {"one", "two"})
            assert client.say(("fail-there", "yes")) == "INTERNAL"
            success = {"cluster": "c", "result": "success"}
            eventually(lambda: counted(product, "xds_load_requests_total", **success, locality="eu/a") >= 1, SECONDS)
            eventually(lambda: counted(product, "xds_load_requests_total", **success, locality="eu/b") >= 1, SECONDS)
            eventually(lambda: _errors(product) == 1, SECONDS)
        finally:
            client.stop()
            for backend in (one, two):
                backend.server.stop(None).wait()


def _errors(product: Product) -> float:
    return sum(counted(product, "xds_load_requests_total", cluster="c", locality=f"eu/{zone}", result="error") for zone in "ab")
