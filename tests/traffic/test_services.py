"""Plain Services, without any rule."""

from support.traffic import Mesh


def test_a_service_is_called_by_its_name(mesh: Mesh) -> None:
    mesh.service("reviews")
    client = mesh.pod("client")
    for host in ("reviews", f"reviews.{mesh.namespace}", f"reviews.{mesh.namespace}.svc.cluster.local"):
        reply = client.get(f"http://{host}/ratings")
        assert (reply.status, reply.server) == (200, "reviews-v1")
        assert reply.call is not None
        assert reply.call.path == "/ratings"


def test_all_endpoints_share_the_load(mesh: Mesh) -> None:
    mesh.service("reviews", {"v1": 2, "v2": 1})
    seen = mesh.pod("client").many("http://reviews/", 60)
    assert set(seen) == {"reviews-v1-0", "reviews-v1-1", "reviews-v2"}
