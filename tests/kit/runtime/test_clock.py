"""Times as whole milliseconds, as scripts in Redis keep them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.runtime.clock import from_unix_milliseconds, milliseconds, unix_milliseconds


@given(st.integers(min_value=-62_135_596_800_000, max_value=253_402_300_799_999))
def test_milliseconds_since_1970_tell_their_moment_exactly(number: int) -> None:
    assert unix_milliseconds(from_unix_milliseconds(number)) == number


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(2001, 9, 9, 1, 46, 40, 999, tzinfo=UTC), 1_000_000_000_000),
        (datetime(2001, 9, 9, 3, 46, 40, 1000, tzinfo=timezone(timedelta(hours=2))), 1_000_000_000_001),
    ],
)
def test_a_moment_is_rounded_down_in_whatever_zone(moment: datetime, number: int) -> None:
    assert unix_milliseconds(moment) == number


@pytest.mark.parametrize(
    ("seconds", "number"), [(0.0, 0), (0.0009, 0), (1.005, 1005), (0.29, 290), (86_400.0, 86_400_000)]
)
def test_a_duration_is_rounded_down_and_not_by_the_error_of_a_float(seconds: float, number: int) -> None:
    assert milliseconds(timedelta(seconds=seconds)) == number
