"""Three tests that never end, and one that sees what they leave behind. Run by test_broken_off.py."""

from __future__ import annotations

import asyncio

import pytest

cleaned_up: list[str] = []


@pytest.mark.timeout(1)
async def test_that_waits_for_ever() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        cleaned_up.append("waits")


@pytest.mark.timeout(1)
async def test_that_turns_for_ever() -> None:
    try:
        while True:  # noqa: ASYNC110  # it keeps the event loop turning
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)
        cleaned_up.append("turns")


@pytest.mark.timeout(1)
async def test_whose_callback_repeats_itself_for_ever() -> None:
    loop = asyncio.get_running_loop()
    repeats = True

    def repeat() -> None:
        if repeats:
            loop.call_soon(repeat)

    repeat()
    try:
        await asyncio.Event().wait()
    finally:
        repeats = False
        cleaned_up.append("repeats")


async def test_that_comes_next() -> None:
    assert cleaned_up == ["waits", "turns", "repeats"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
