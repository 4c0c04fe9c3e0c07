"""Durations, references and metadata."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.objects.meta import Ref, duration, duration_text


class TestDuration:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("5s", timedelta(seconds=5)),
            ("1.5s", timedelta(seconds=1.5)),
            ("100ms", timedelta(milliseconds=100)),
            ("1h30m", timedelta(hours=1.5)),
            ("1m0.5s", timedelta(seconds=60.5)),
            ("250us", timedelta(microseconds=250)),
            ("3000ns", timedelta(microseconds=3)),
            ("-2s", timedelta(seconds=-2)),
            ("+.5h", timedelta(minutes=30)),
            ("0", timedelta()),
            ("0s", timedelta()),
        ],
    )
    def test_go_s_form(self, text: str, value: timedelta) -> None:
        assert duration(text) == value

    @pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5x", "1h30", ".s", "1,5s", "PT5S", "５s", "99999999999999h", "2562048h"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="duration"):
            duration(text)

    @given(st.timedeltas(min_value=timedelta(days=-3650), max_value=timedelta(days=3650)))
    def test_its_text_is_read_as_the_same(self, value: timedelta) -> None:
        assert duration(duration_text(value)) == value


def test_a_reference_reads_like_kubectl_s() -> None:
    assert [str(Ref("Service", "shop", "a")), str(Ref("Node", "", "n"))] == ["Service a.shop", "Node n"]
