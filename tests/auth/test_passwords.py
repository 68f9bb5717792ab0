"""Hashing within bounds: of processors, of waiting and of the call's time; and in processes that may end at any time."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from kit.errors import DeadlineExceeded, Unavailable
from kit.rpc import deadline
from services.auth.errors import Overloaded
from services.auth.operations.passwords import Passwords
from tests.waiting import until

SLOW = {"memory_kib": 32768, "passes": 4}


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    async with Passwords(memory_kib=64, passes=1, processes=2, wait_seconds=5) as made:
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
    async with Passwords(**SLOW, processes=1, wait_seconds=30) as passwords:
        outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(20)), return_exceptions=True)
    counts = Counter(type(outcome).__name__ for outcome in outcomes)
    # One at work and four waiting for each processor.
    assert counts == {"str": 5, "Overloaded": 15}
    refusal = next(outcome for outcome in outcomes if isinstance(outcome, Overloaded))
    assert refusal.retry_after


async def test_waiting_is_bounded_in_time() -> None:
    async with Passwords(**SLOW, processes=1, wait_seconds=0.001) as passwords:
        outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(3)), return_exceptions=True)
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"str": 1, "Overloaded": 2}


async def test_a_given_up_call_keeps_its_place_until_its_process_is_done() -> None:
    async with (
        Passwords(**SLOW, processes=1, wait_seconds=0.001) as passwords,
        Passwords(**SLOW, processes=1, wait_seconds=30) as patient,
    ):
        for each in (passwords, patient):
            first = asyncio.create_task(each.hash("x"))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        with pytest.raises(Overloaded):
            await passwords.hash("x")
        # The next one gets its own answer, not that of the call before.
        stored = await patient.hash("y")
        assert await patient.verify("y", stored)


async def test_a_call_that_ends_before_a_hash_could_is_refused_without_hashing() -> None:
    async with Passwords(memory_kib=65536, passes=10, processes=1, wait_seconds=5) as passwords:
        with pytest.raises(DeadlineExceeded):
            async with deadline.within(0.13, 0.13):
                await passwords.hash("x")
        async with deadline.within(None, 30):
            assert await passwords.hash("x")


class TestProcesses:
    async def test_as_many_run_as_hash_at_a_time_and_none_is_left_behind(self) -> None:
        with started() as processes:
            async with Passwords(memory_kib=64, passes=1, processes=3, wait_seconds=5):
                assert len(processes()) == 3
            assert processes() == []

    async def test_they_end_at_once_with_whoever_gave_up_waiting_for_them(self) -> None:
        with started() as processes:
            async with Passwords(**SLOW, processes=1, wait_seconds=5) as passwords:
                (process,) = processes()
                given_up = asyncio.create_task(passwords.hash("x"))
                await at_work(process)
                given_up.cancel()
            assert processes() == []

    async def test_they_show_no_password_and_inherit_no_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORYMESH_SEAL_KEY", "a secret")
        with started() as processes:
            async with Passwords(**SLOW, processes=1, wait_seconds=5) as passwords:
                (process,) = processes()
                hashed = asyncio.create_task(passwords.hash("correct horse battery staple"))
                await at_work(process)
                assert not any("correct" in argument for argument in process.cmdline())
                assert "STORYMESH_SEAL_KEY" not in process.environ()
                await hashed

    @pytest.mark.skipif(sys.platform != "linux", reason="others have no such limits to look at")
    async def test_they_step_back_behind_the_event_loop_and_leave_no_core(self) -> None:
        with started() as processes:
            async with Passwords(memory_kib=64, passes=1, processes=1, wait_seconds=5):
                (process,) = processes()
                assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
                assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_they_hash_on_while_a_signal_to_all_drains_the_service(self, number: signal.Signals) -> None:
        with started() as processes:
            async with Passwords(memory_kib=64, passes=1, processes=1, wait_seconds=5) as passwords:
                (process,) = processes()
                process.send_signal(number)
                stored = await passwords.hash("x")
                assert await passwords.verify("x", stored)
                assert processes() == [process]

    async def test_a_call_whose_process_is_killed_gets_its_answer_from_the_next_one(self) -> None:
        with started() as processes:
            async with Passwords(**SLOW, processes=1, wait_seconds=5) as passwords:
                (process,) = processes()
                hashed = asyncio.create_task(passwords.hash("x"))
                await at_work(process)
                process.kill()
                stored = await hashed
                assert process not in processes()
                assert await passwords.verify("x", stored)

    async def test_one_that_died_while_idle_is_not_missed(self) -> None:
        with started() as processes:
            async with Passwords(memory_kib=64, passes=1, processes=2, wait_seconds=5) as passwords:
                for process in processes():
                    process.kill()
                assert all(await asyncio.gather(*(passwords.hash("x") for _ in range(4))))

    async def test_a_call_that_outlives_two_processes_is_unavailable_and_its_place_is_free_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with started() as processes:
            async with Passwords(memory_kib=64, passes=1, processes=1, wait_seconds=0.001) as passwords:
                processes()[0].kill()
                for instead in ("/bin/false", "/nowhere/python"):
                    with monkeypatch.context() as broken:
                        broken.setattr(sys, "executable", instead)
                        with pytest.raises(Unavailable):
                            await passwords.hash("x")
                assert await passwords.hash("x")
                assert len(processes()) == 1

    async def test_without_any_process_nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(OSError, match="can be started"):
            async with Passwords(memory_kib=64, passes=1, processes=2, wait_seconds=5):
                pass

    async def test_those_that_could_be_started_do_without_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start, left = subprocess.Popen, iter([None])

        def limited(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            if next(left, False) is False:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return start(*arguments, **options)

        with monkeypatch.context() as few:
            few.setattr(subprocess, "Popen", limited)
            async with Passwords(**SLOW, processes=3, wait_seconds=30) as passwords:
                outcomes = await asyncio.gather(*(passwords.hash("x") for _ in range(8)), return_exceptions=True)
        assert Counter(type(outcome).__name__ for outcome in outcomes) == {"str": 5, "Overloaded": 3}

    async def test_they_end_when_the_service_is_killed(self) -> None:
        script = (
            "import asyncio\n"
            "from services.auth.operations.passwords import Passwords\n"
            "async def main():\n"
            "    async with Passwords(memory_kib=32768, passes=4, processes=2, wait_seconds=5) as passwords:\n"
            "        asyncio.create_task(passwords.hash('x'))\n"
            "        print('ready', flush=True)\n"
            "        await asyncio.Event().wait()\n"
            "asyncio.run(main())\n"
        )
        with subprocess.Popen(  # noqa: ASYNC220, it is not waited for
            [sys.executable, "-c", script], stdout=subprocess.PIPE
        ) as service:
            assert service.stdout
            assert await asyncio.to_thread(service.stdout.readline) == b"ready\n"
            processes = psutil.Process(service.pid).children()
            assert len(processes) == 2
            service.kill()
        await until(lambda: not any(is_running(process) for process in processes))


@contextmanager
def started() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Tells which of the processes begun in the block are alive."""
    before = set(psutil.Process().children())
    yield lambda: [process for process in psutil.Process().children() if process not in before and is_running(process)]


async def at_work(process: psutil.Process) -> None:
    """Waits until it hashes; without work it sleeps."""
    await until(lambda: process.status() == psutil.STATUS_RUNNING)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
