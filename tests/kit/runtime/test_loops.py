"""Work that a process repeats in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kit.runtime.loops import every
from tests.waiting import until

FOR_EVER = 3600.0


class Rounds:
    """Counts rounds, each of which does what `act` says of its number."""

    def __init__(self, act: Callable[[int], Awaitable[bool | None]]) -> None:
        self.begun = 0
        self._act = act

    async def work(self) -> bool | None:
        self.begun += 1
        return await self._act(self.begun)


@asynccontextmanager
async def looping(rounds: Rounds, seconds: float, **options: Any) -> AsyncIterator[asyncio.Event]:
    stopping = asyncio.Event()
    loop = asyncio.create_task(every(seconds, stopping, rounds.work, failure="it cannot be done now", **options))
    try:
        yield stopping
        stopping.set()
        async with asyncio.timeout(20):
            await loop
    finally:
        loop.cancel()


async def nothing(_number: int) -> None:
    return


async def test_work_is_repeated_until_the_loop_is_told_to_stop() -> None:
    rounds = Rounds(nothing)
    async with looping(rounds, 0.001) as stopping:
        await until(lambda: rounds.begun >= 3)
        stopping.set()
    ended_with = rounds.begun
    await asyncio.sleep(0)
    assert rounds.begun == ended_with


async def test_a_loop_that_pauses_stops_at_once() -> None:
    rounds = Rounds(nothing)
    async with looping(rounds, FOR_EVER):
        await until(lambda: rounds.begun == 1)
    assert rounds.begun == 1


async def test_a_loop_that_pauses_before_its_first_round_stops_without_one() -> None:
    rounds = Rounds(nothing)
    async with looping(rounds, FOR_EVER, at_once=False):
        await asyncio.sleep(0)
    assert rounds.begun == 0


async def test_a_round_that_runs_when_the_loop_is_told_to_stop_is_the_last_one_and_comes_to_its_end() -> None:
    let, ended = asyncio.Event(), []

    async def wait(number: int) -> bool:
        await let.wait()
        ended.append(number)
        return True

    rounds = Rounds(wait)
    async with looping(rounds, FOR_EVER) as stopping:
        await until(lambda: rounds.begun == 1)
        stopping.set()
        let.set()
    assert ended == [1]


async def test_a_failure_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail_twice(number: int) -> None:
        if number <= 2:
            raise ConnectionError("refused")

    rounds = Rounds(fail_twice)
    async with looping(rounds, 0.001):
        await until(lambda: rounds.begun >= 4)
    told = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    assert told == [(__name__, logging.WARNING, "it cannot be done now: refused")] * 2


async def test_failures_in_a_row_back_off_and_a_success_begins_the_count_anew() -> None:
    asked: list[int] = []

    def retry(failures: int) -> float:
        asked.append(failures)
        return 0.0

    async def fail_but_the_third(number: int) -> bool:
        if number != 3:
            raise TimeoutError
        return True

    rounds = Rounds(fail_but_the_third)
    async with looping(rounds, FOR_EVER, retry=retry):
        await until(lambda: rounds.begun >= 6)
    assert asked[:4] == [1, 2, 1, 2]


async def test_a_round_that_says_that_there_is_more_is_followed_by_the_next_without_a_pause() -> None:
    async def more_until_the_fifth(number: int) -> bool:
        return number < 5

    rounds = Rounds(more_until_the_fifth)
    async with looping(rounds, FOR_EVER):
        await until(lambda: rounds.begun == 5)


async def test_a_wake_up_ends_the_pause_and_one_during_a_round_is_not_lost() -> None:
    wake, let = asyncio.Event(), asyncio.Event()

    async def wait_in_the_second(number: int) -> None:
        if number == 2:
            await let.wait()

    rounds = Rounds(wait_in_the_second)
    async with looping(rounds, FOR_EVER, wake=wake):
        await until(lambda: rounds.begun == 1)
        wake.set()
        await until(lambda: rounds.begun == 2)
        wake.set()
        let.set()
        await until(lambda: rounds.begun == 3)


async def test_cancellation_leaves_a_round_and_the_loop() -> None:
    stopping, let, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hang(_number: int) -> None:
        try:
            await let.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    rounds = Rounds(hang)
    loop = asyncio.create_task(every(FOR_EVER, stopping, rounds.work, failure="never"))
    await until(lambda: rounds.begun == 1)
    loop.cancel()
    await asyncio.wait([loop], timeout=15)
    # A loop that kept the cancellation to itself ends all the same, so that the test fails instead of hanging.
    stopping.set()
    let.set()
    assert loop.cancelled()
    assert cancelled.is_set()
    assert rounds.begun == 1
