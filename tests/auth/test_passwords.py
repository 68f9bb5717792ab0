"""Hashing within bounds: of processors, of waiting and of the call's time."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from services.auth.errors import Overloaded
from services.auth.passwords import Passwords
from services.kit import deadline
from services.kit.errors import DeadlineExceeded

SLOW = {"memory_kib": 32768, "passes": 4}


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(memory_kib=64, passes=1, threads=2, wait_seconds=5)
    yield made
    made.close()


async def test_a_hash_verifies_its_password_and_no_other(passwords: Passwords) -> None:
    stored = await passwords.hash("correct horse battery staple")
    assert await passwords.verify("correct horse battery staple", stored)
    assert not await passwords.verify("correct horse battery staples", stored)
    assert stored != await passwords.hash("correct horse battery staple")


async def test_the_hash_for_nobody_verifies_nothing(passwords: Passwords) -> None:
    assert not await passwords.verify("", None)
    assert not await passwords.verify("", "")


async def test_more_than_fit_into_the_queue_are_refused_at_once() -> None:
    passwords = Passwords(**SLOW, threads=1, wait_seconds=30)
    outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(20)), return_exceptions=True)
    counts = Counter(type(outcome).__name__ for outcome in outcomes)
    # One at work and four waiting for each processor.
    assert counts == {"str": 5, "Overloaded": 15}
    refusal = next(outcome for outcome in outcomes if isinstance(outcome, Overloaded))
    assert refusal.retry_after
    passwords.close()


async def test_waiting_is_bounded_in_time() -> None:
    passwords = Passwords(**SLOW, threads=1, wait_seconds=0.001)
    outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(3)), return_exceptions=True)
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"str": 1, "Overloaded": 2}
    passwords.close()


async def test_no_more_threads_hash_than_there_are_processors() -> None:
    passwords = Passwords(**SLOW, threads=2, wait_seconds=30)
    await asyncio.gather(*(passwords.hash("x") for _ in range(8)))
    assert sum(thread.name.startswith("argon2") for thread in threading.enumerate()) <= 2
    passwords.close()


async def test_a_given_up_call_keeps_its_place_until_its_thread_is_done() -> None:
    passwords = Passwords(**SLOW, threads=1, wait_seconds=0.001)
    first = asyncio.create_task(passwords.hash("x"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    with pytest.raises(Overloaded):
        await passwords.hash("x")
    patient = Passwords(**SLOW, threads=1, wait_seconds=30)
    assert await patient.hash("x")
    passwords.close()
    patient.close()


async def test_a_call_that_ends_before_a_hash_could_is_refused_without_hashing() -> None:
    passwords = Passwords(memory_kib=65536, passes=10, threads=1, wait_seconds=5)
    with pytest.raises(DeadlineExceeded):
        async with deadline.within(0.13, 0.13):
            await passwords.hash("x")
    async with deadline.within(None, 30):
        assert await passwords.hash("x")
    passwords.close()
