"""Two tests that never end, and one that sees what they leave behind. Run by test_broken_off.py."""

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


async def test_that_comes_next() -> None:
    assert cleaned_up == ["waits", "turns"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
