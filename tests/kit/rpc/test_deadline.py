"""The time that is left."""

from __future__ import annotations

import asyncio

import pytest

from kit.errors import DeadlineExceeded
from kit.rpc import deadline


async def test_some_of_the_callers_time_is_kept_for_the_answer() -> None:
    async with deadline.within(1.0, longest=15.0):
        left = deadline.remaining()
        assert left is not None
        assert 0.9 < left <= 0.98


async def test_no_call_takes_longer_than_the_longest() -> None:
    async with deadline.within(100.0, longest=2.0):
        assert 1.9 < (deadline.remaining() or 0) <= 2.0
    async with deadline.within(None, longest=2.0):
        assert 1.9 < (deadline.remaining() or 0) <= 2.0


@pytest.mark.parametrize("seconds", [0.0, -0.1])
async def test_with_no_time_left_nothing_is_begun(seconds: float) -> None:
    with pytest.raises(DeadlineExceeded):
        async with deadline.within(seconds, longest=15.0):
            pytest.fail("it was begun")


@pytest.mark.parametrize("seconds", [0.09, 0.02, 0.001])
async def test_a_short_time_is_halved_at_most(seconds: float) -> None:
    async with deadline.within(seconds, longest=15.0):
        # Nothing is waited for, so that the clock cannot end the block on a busy machine.
        assert (deadline.remaining() or 0) <= max(seconds - 0.02, seconds / 2) + 1e-9


async def test_the_block_ends_when_its_time_has_run_out() -> None:
    with pytest.raises(TimeoutError):
        async with deadline.within(0.15, longest=15.0):
            await asyncio.Event().wait()


async def test_outside_of_a_call_no_time_is_set() -> None:
    assert deadline.remaining() is None
    async with deadline.within(1.0, longest=1.0):
        assert deadline.remaining() is not None
    assert deadline.remaining() is None


async def test_time_that_has_run_out_is_none_left_rather_than_less_than_none() -> None:
    left: list[float | None] = []

    async def look_too_late() -> None:
        async with deadline.within(0.12, longest=15.0):
            try:
                await asyncio.Event().wait()
            finally:
                left.append(deadline.remaining())

    with pytest.raises(TimeoutError):
        await look_too_late()
    assert left == [0.0]
