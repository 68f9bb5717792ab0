"""Starts the processes of the pipelines through a fork server, and learns how each of them ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

from .processes import ProcessSpec


class ChildProcess:
    """A process that was started."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """The exit code, or minus the signal that killed it."""
        # A caller that is cancelled must not cancel the future that others wait for.
        return await asyncio.shield(self.exit_code)

    async def kill(self) -> None:
        await self._send(signal.SIGKILL)
        await self.wait()

    async def resume(self) -> None:
        await self._send(signal.SIGCONT)

    async def _send(self, number: signal.Signals) -> None:
        pid = await asyncio.shield(self.pid)
        # Until the fork server has reported the end, the kernel gives the pid to no other process; and not soon afterwards.
        if not self.exit_code.done():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class ForkServer:
    """Starts the processes of all pipelines. They are killed when it ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._children: dict[int, ChildProcess] = {}
        self._number = 0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def start(self, spec: ProcessSpec) -> ChildProcess:
        child = self._children[spec.number] = ChildProcess(spec)
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"start": asdict(spec)}, default=str).encode() + b"\n")
        return child

    async def listen(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            report = json.loads(line)
            child = self._children[report["process"]]
            if "pid" in report:
                child.pid.set_result(report["pid"])
            else:
                del self._children[report["process"]]
                child.exit_code.set_result(os.waitstatus_to_exitcode(report["status"]))


@asynccontextmanager
async def fork_server() -> AsyncIterator[ForkServer]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.pipeline.forkserver_process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    server = ForkServer(process)
    listening = asyncio.create_task(server.listen())
    try:
        yield server
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()
        await listening
