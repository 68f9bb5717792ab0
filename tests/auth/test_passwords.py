"""Password hashing with bounded threads, queue and deadline."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from argon2 import PasswordHasher

from kit.errors import DeadlineExceeded, Unavailable
from kit.rpc import deadline
from services.auth.errors import Overloaded
from services.auth.operations.passwords import Passwords
from tests.waiting import until

pytestmark = pytest.mark.slow

SLOW = {"memory_kib": 32768, "passes": 4}
CHEAP = {"memory_kib": 64, "passes": 1}


class Held:
    """Keeps argon2 from beginning a hash until `go_on` is set, and counts the hashes at work."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.at_work = self.most = self.done = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        self.go_on.wait()

    def end(self) -> None:
        with self._lock:
            self.at_work -= 1
            self.done += 1


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Hold each hash of a given password back; hashes of random bytes are made at once."""
    holding, hash_ = Held(), PasswordHasher.hash

    def hashed(hasher: PasswordHasher, password: str | bytes) -> str:
        if isinstance(password, bytes):
            return hash_(hasher, password)
        holding.begin()
        try:
            return hash_(hasher, password)
        finally:
            holding.end()

    monkeypatch.setattr(PasswordHasher, "hash", hashed)
    yield holding
    holding.go_on.set()


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    async with Passwords(**CHEAP, threads=2, wait_seconds=5) as made:
        yield made


async def test_a_hash_verifies_its_password_and_no_other(passwords: Passwords) -> None:
    stored = await passwords.hash("correct horse battery staple")
    assert await passwords.verify("correct horse battery staple", stored)
    assert not await passwords.verify("correct horse battery staples", stored)
    assert stored != await passwords.hash("correct horse battery staple")


async def test_the_hash_for_nobody_verifies_nothing(passwords: Passwords) -> None:
    assert not await passwords.verify("", None)
    assert not await passwords.verify("", "")


async def test_a_password_may_hold_any_character(passwords: Passwords) -> None:
    stored = await passwords.hash("NUL \0, emoji \N{GRINNING FACE}, newline \n")
    assert await passwords.verify("NUL \0, emoji \N{GRINNING FACE}, newline \n", stored)
    assert not await passwords.verify("NUL ", stored)


async def test_more_than_fit_into_the_queue_are_refused_at_once() -> None:
    async with Passwords(**SLOW, threads=1, wait_seconds=30) as passwords:
        outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(20)), return_exceptions=True)
    counts = Counter(type(outcome).__name__ for outcome in outcomes)
    # For each processor one at work and four waiting.
    assert counts == {"str": 5, "Overloaded": 15}
    refusal = next(outcome for outcome in outcomes if isinstance(outcome, Overloaded))
    assert refusal.retry_after


async def test_waiting_is_bounded_in_time() -> None:
    async with Passwords(**SLOW, threads=1, wait_seconds=0.001) as passwords:
        outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(3)), return_exceptions=True)
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"str": 1, "Overloaded": 2}


async def test_a_given_up_call_keeps_its_place_until_its_thread_is_done(held: Held) -> None:
    async with Passwords(**CHEAP, threads=1, wait_seconds=0.001) as passwords:
        await give_up(await at_work(passwords, held))
        with pytest.raises(Overloaded):
            await passwords.hash("x")
        held.go_on.set()
        await until(lambda: held.done == 1)
        # The next call gets its own answer, not that of the call before.
        stored = await eventually_hashed(passwords, "y")
        assert await passwords.verify("y", stored)


async def test_a_call_that_is_given_up_while_it_waits_leaves_its_place_to_another(held: Held) -> None:
    async with Passwords(**CHEAP, threads=1, wait_seconds=30) as passwords:
        first = await at_work(passwords, held)
        for _ in range(3):
            waiting = [asyncio.create_task(passwords.hash("x")) for _ in range(4)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await passwords.hash("x")
            for each in waiting:
                await give_up(each)
        held.go_on.set()
        assert await first


async def test_a_call_that_ends_before_a_hash_could_is_refused_without_hashing() -> None:
    async with Passwords(memory_kib=65536, passes=10, threads=1, wait_seconds=5) as passwords:
        with pytest.raises(DeadlineExceeded):
            async with deadline.within(0.13, 0.13):
                await passwords.hash("x")
        async with deadline.within(None, 30):
            assert await passwords.hash("x")


class TestThreads:
    async def test_as_many_hash_at_a_time_as_the_setting_says_and_none_is_left_behind(self, held: Held) -> None:
        before = hashing_threads()
        async with Passwords(**CHEAP, threads=3, wait_seconds=30) as passwords:
            calls = [asyncio.create_task(passwords.hash("x")) for _ in range(15)]
            await until(lambda: held.at_work == 3)
            assert len(hashing_threads() - before) == 3
            held.go_on.set()
            assert all(await asyncio.gather(*calls))
        assert held.most == 3
        assert hashing_threads() == before

    async def test_leaving_waits_for_a_hash_that_was_given_up_and_for_no_other(self, held: Held) -> None:
        before = hashing_threads()
        async with Passwords(**CHEAP, threads=1, wait_seconds=30) as passwords:
            await give_up(await at_work(passwords, held))
            held.go_on.set()
        assert hashing_threads() == before
        assert (held.at_work, held.done) == (0, 1)

    @pytest.mark.skipif(sys.platform != "linux", reason="others have no priorities of threads")
    async def test_they_step_back_behind_the_event_loop(self, passwords: Passwords) -> None:
        await passwords.hash("x")
        own = os.getpriority(os.PRIO_PROCESS, 0)
        niceness = {os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in hashing_threads()}
        assert min(niceness) > own

    async def test_without_threads_nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(Unavailable):
            async with Passwords(**CHEAP, threads=2, wait_seconds=5):
                pass

    async def test_a_password_without_a_thread_is_unavailable_and_costs_no_place(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Passwords(**CHEAP, threads=1, wait_seconds=0.001) as passwords:
            with monkeypatch.context() as full:
                full.setattr(ThreadPoolExecutor, "submit", no_more_threads)
                for _ in range(3):
                    with pytest.raises(Unavailable):
                        await passwords.hash("x")
            assert await passwords.hash("x")


def hashing_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("argon2")}


async def at_work(passwords: Passwords, held: Held) -> asyncio.Task[str]:
    """A call whose hash has begun."""
    call = asyncio.create_task(passwords.hash("x"))
    await until(lambda: held.at_work == 1)
    return call


async def give_up(call: asyncio.Task[str]) -> None:
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def eventually_hashed(passwords: Passwords, password: str) -> str:
    """Retried, because the loop learns a moment later that a thread is free."""
    stored: list[str] = []

    async def tried() -> bool:
        with suppress(Overloaded):
            stored.append(await passwords.hash(password))
        return bool(stored)

    await until(tried)
    return stored[0]


def no_more_threads(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")
