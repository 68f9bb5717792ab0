"""Begins lives, hears of their ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

from .lives import Life


class Member:
    """A process that was begun."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.began: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def end(self) -> int:
        """Waits for it, and says how it was: minus the signal, or the exit code."""
        # One who does not wait any more must not end it for the others.
        return await asyncio.shield(self.ended)

    async def kill(self) -> None:
        await self._send(signal.SIGKILL)
        await self.end()

    async def thaw(self) -> None:
        await self._send(signal.SIGCONT)

    async def _send(self, number: signal.Signals) -> None:
        pid = await asyncio.shield(self.began)
        # Its number is taken by nobody else before the end is known here, and for a long time after.
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Crew:
    """All processes of all worlds; they end with it."""

    def __init__(self, zygote: asyncio.subprocess.Process) -> None:
        self._zygote = zygote
        self._members: dict[int, Member] = {}
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    def begin(self, life: Life) -> Member:
        member = self._members[life.number] = Member(life)
        assert self._zygote.stdin
        self._zygote.stdin.write(json.dumps({"begin": asdict(life)}, default=str).encode() + b"\n")
        return member

    async def listen(self) -> None:
        assert self._zygote.stdout
        while line := await self._zygote.stdout.readline():
            told = json.loads(line)
            member = self._members[told["life"]]
            if "pid" in told:
                member.began.set_result(told["pid"])
            else:
                del self._members[told["life"]]
                member.ended.set_result(os.waitstatus_to_exitcode(told["status"]))


@asynccontextmanager
async def crew() -> AsyncIterator[Crew]:
    zygote = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.pipeline.zygote"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    begun = Crew(zygote)
    listening = asyncio.create_task(begun.listen())
    try:
        yield begun
    finally:
        assert zygote.stdin
        zygote.stdin.close()
        await zygote.wait()
        await listening
