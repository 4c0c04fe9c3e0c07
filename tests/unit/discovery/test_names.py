"""Names with a scheme, their parameters, and collections of them."""

import pytest

from xds.discovery.names import belongs, is_collection, normal


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("reviews", "reviews"),
        ("a?b=1&a=2", "a?b=1&a=2"),
        ("xdstp://x/T/a", "xdstp://x/T/a"),
        ("xdstp://x/T/a?b=1&a=2", "xdstp://x/T/a?a=2&b=1"),
        ("xdstp://x/T/a?b=1&a=2#alt=y", "xdstp://x/T/a?a=2&b=1#alt=y"),
    ],
)
def test_parameters_stand_in_order(name: str, same: str) -> None:
    assert normal(name) == same
    assert normal(same) == same


def test_a_collection_has_the_names_directly_below_it() -> None:
    collection = "xdstp://x/T/dir/*?env=c"
    assert is_collection(collection)
    assert not is_collection("xdstp://x/T/dir/a")
    assert not is_collection("dir/*")
    assert belongs("xdstp://x/T/dir/a?env=c", collection)
    assert not belongs("xdstp://x/T/dir/a", collection)
    assert not belongs("xdstp://x/T/dir/deep/a?env=c", collection)
    assert not belongs("xdstp://x/T/directory/a?env=c", collection)
    assert not belongs(collection, collection)
