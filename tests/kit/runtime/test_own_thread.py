"""Blocking work in a thread of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kit.runtime.own_thread import OwnThread
from tests.waiting import until


async def test_work_begins_after_the_one_before_it_although_its_caller_was_cancelled() -> None:
    thread, done = OwnThread("test"), []
    began, go_on = threading.Event(), threading.Event()

    def first() -> None:
        began.set()
        assert go_on.wait(10)
        done.append("first")

    cancelled = asyncio.create_task(thread.run(first))
    await until(began.is_set)
    dropped = asyncio.create_task(thread.run(done.append, "dropped"))
    second = asyncio.create_task(thread.run(done.append, "second"))
    await asyncio.sleep(0)
    for each in cancelled, dropped:
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    assert not done
    go_on.set()
    await second
    assert done == ["first", "second"]
