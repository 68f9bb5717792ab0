"""The queue from the generating thread to the event loop: bounded, ordered, and no obstacle to a shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from services.story.adapters.writers.llama import _CAPACITY, _Handover


def offering(handover: _Handover, chunks: int, full: threading.Event) -> list[bool]:
    """Offer chunks as a generating thread does; `full` is set when the queue is full."""
    answers = []
    for number in range(chunks):
        answers.append(handover.offer({"number": number}))
        if answers[-1]:
            break
        if number + 1 == _CAPACITY:
            full.set()
    return answers


async def test_the_thread_waits_while_nobody_reads() -> None:
    full = threading.Event()
    handover = _Handover(asyncio.get_running_loop())
    thread = asyncio.create_task(asyncio.to_thread(offering, handover, _CAPACITY + 10, full))
    thread.add_done_callback(handover.close)
    await asyncio.to_thread(full.wait, 5)

    done, _ = await asyncio.wait([thread], timeout=0.2)
    chunks: list[Mapping[str, Any]] = [chunk async for chunk in handover]

    assert not done
    assert [chunk["number"] for chunk in chunks] == list(range(_CAPACITY + 10))
    assert await thread == [False] * (_CAPACITY + 10)


async def test_a_thread_that_waits_is_released_when_the_reader_leaves() -> None:
    full = threading.Event()
    handover = _Handover(asyncio.get_running_loop())
    thread = asyncio.create_task(asyncio.to_thread(offering, handover, _CAPACITY + 10, full))
    await asyncio.to_thread(full.wait, 5)

    handover.stop()

    async with asyncio.timeout(5):
        assert await thread == [*[False] * _CAPACITY, True]
    assert [chunk async for chunk in handover] == []


def test_a_thread_that_outlives_its_loop_stops() -> None:
    loop = asyncio.new_event_loop()
    handover = _Handover(loop)
    loop.close()

    assert handover.offer({}) is True
    for _ in range(_CAPACITY - 1):
        handover.offer({})
    assert handover.offer({}) is True
