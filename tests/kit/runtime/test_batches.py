"""Batches: what many tasks want at the same moment is done together, and each gets its own result or error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kit.runtime.batches import Batcher


class Work:
    """Doubles numbers, batch by batch, when the test lets it."""

    def __init__(self, *, open_: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.begun = asyncio.Event(), asyncio.Event()
        self.poison: dict[int, Exception] = {}
        self.finished = 0
        if open_:
            self.gate.set()

    async def __call__(self, numbers: Sequence[int]) -> Sequence[int]:
        self.task = asyncio.current_task()
        self.batches.append(list(numbers))
        self.begun.set()
        await self.gate.wait()
        self.finished += 1
        for number in numbers:
            if number in self.poison:
                raise self.poison[number]
        return [2 * number for number in numbers]


async def test_what_is_wanted_in_one_turn_of_the_loop_is_one_batch() -> None:
    work = Work()
    batcher = Batcher(work)
    assert await asyncio.gather(*map(batcher.add, range(5))) == [0, 2, 4, 6, 8]
    assert work.batches == [[0, 1, 2, 3, 4]]


async def test_what_comes_during_a_batch_is_the_next_one_and_what_comes_later_begins_at_once() -> None:
    work = Work(open_=False)
    batcher = Batcher(work)
    first = asyncio.create_task(batcher.add(1))
    await work.begun.wait()
    others = [asyncio.create_task(batcher.add(number)) for number in (2, 3)]
    await asyncio.sleep(0)
    work.gate.set()
    assert (await first, await asyncio.gather(*others), await batcher.add(4)) == (2, [4, 6], 8)
    assert work.batches == [[1], [2, 3], [4]]


async def test_a_batch_has_a_largest_size() -> None:
    work = Work()
    batcher = Batcher(work, most=2)
    assert await asyncio.gather(*map(batcher.add, range(5))) == [0, 2, 4, 6, 8]
    assert work.batches == [[0, 1], [2, 3], [4]]


async def test_an_item_that_fails_fails_alone() -> None:
    work = Work()
    work.poison[2] = ZeroDivisionError()
    batcher = Batcher(work)
    seen = await asyncio.gather(*map(batcher.add, (1, 2, 3)), return_exceptions=True)
    assert seen == [2, work.poison[2], 6]
    assert work.batches == [[1, 2, 3], [1], [2], [3]]


async def test_a_shared_error_is_everybodys_at_once() -> None:
    work = Work()
    work.poison[2] = ConnectionError()
    batcher = Batcher(work, shared=(OSError,))
    seen = await asyncio.gather(*map(batcher.add, (1, 2, 3)), return_exceptions=True)
    assert seen == [work.poison[2]] * 3
    assert work.batches == [[1, 2, 3]]
    assert await batcher.add(4) == 8


async def test_a_caller_that_is_cancelled_before_its_batch_takes_its_item_back() -> None:
    work = Work(open_=False)
    batcher = Batcher(work)
    first = asyncio.create_task(batcher.add(1))
    await work.begun.wait()
    second = asyncio.create_task(batcher.add(2))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.gate.set()
    assert await first == 2
    assert await batcher.add(3) == 6
    assert work.batches == [[1], [3]]


async def test_a_caller_that_is_cancelled_during_its_batch_leaves_after_the_batch_which_goes_on_for_the_others() -> (
    None
):
    work = Work(open_=False)
    batcher = Batcher(work)
    callers = [asyncio.create_task(batcher.add(number)) for number in (1, 2)]
    await work.begun.wait()
    callers[0].cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not callers[0].done()
    work.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    assert (work.finished, await callers[1]) == (1, 4)


async def test_work_that_answers_too_few_fails_instead_of_leaving_callers_waiting() -> None:
    async def forgetful(numbers: Sequence[int]) -> Sequence[int]:
        return []

    with pytest.raises(ValueError, match="zip"):
        await Batcher(forgetful).add(1)


async def test_a_batch_that_takes_too_long_lets_the_next_one_begin_beside_it() -> None:
    work = Work(open_=False)
    batcher = Batcher(work, patience_seconds=0.001)
    slow = asyncio.create_task(batcher.add(1))
    await work.begun.wait()
    work.gate, gate = asyncio.Event(), work.gate
    work.gate.set()
    assert await batcher.add(2) == 4
    assert not slow.done()
    gate.set()
    assert await slow == 2
    assert await batcher.add(3) == 6
    assert work.batches == [[1], [2], [3]]


async def test_a_caller_may_leave_its_batch_at_once_which_goes_on_for_the_others() -> None:
    work = Work(open_=False)
    batcher = Batcher(work, leaves_at_once=True)
    during = [asyncio.create_task(batcher.add(number)) for number in (1, 2)]
    await work.begun.wait()
    before = [asyncio.create_task(batcher.add(number)) for number in (3, 4)]
    await asyncio.sleep(0)
    for gone in (during[0], before[0]):
        gone.cancel()
    left = await asyncio.gather(during[0], before[0], return_exceptions=True)
    assert [type(each) for each in left] == [asyncio.CancelledError] * 2
    work.gate.set()
    assert [await during[1], await before[1]] == [4, 8]
    assert work.batches == [[1, 2], [4]]


async def test_nothing_is_begun_for_callers_that_have_all_left() -> None:
    work = Work()
    batcher = Batcher(work, leaves_at_once=True)
    gone = asyncio.create_task(batcher.add(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert await batcher.add(2) == 4
    assert work.batches == [[2]]


async def test_callers_of_a_batch_that_is_itself_cancelled_are_cancelled() -> None:
    work = Work(open_=False)
    batcher = Batcher(work)
    callers = [asyncio.create_task(batcher.add(1))]
    await work.begun.wait()
    callers.append(asyncio.create_task(batcher.add(2)))
    await asyncio.sleep(0)
    assert work.task
    work.task.cancel()
    for caller in callers:
        with pytest.raises(asyncio.CancelledError):
            await caller
