"""Runs real meshes for tests: by the command line, or with a supervisor in the test's own process."""

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

from local.layout import Layout, port_offsets
from local.supervision.component import Component, Mesh
from local.supervision.process import Identity
from local.supervision.state import ComponentState, MeshRecord, Phase
from local.supervision.supervisor import Supervisor, locked
from local.terminal import cli

STORES = ("--only", "postgres", "--only", "redis", "--only", "mail")


@dataclass
class CommandLine:
    """Runs `python -m local` for one mesh."""

    layout: Layout
    environment: dict[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
        return clean | self.layout.settings.environment() | self.environment

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "local", *arguments],
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        """Run a command and return its output. Commands that leave processes or call exec run in a process of their own."""
        if arguments[0] in ("up", "run", "exec", "restart"):
            with self.popen(*arguments) as process:
                output, _ = process.communicate(timeout=60)
            code = process.returncode
        else:
            printed = io.StringIO()
            with (
                patch.dict(os.environ, self.variables(), clear=True),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                code = cli.main(arguments)
            output = printed.getvalue()
        assert code == expect, output
        return output

    def record(self) -> MeshRecord:
        record = MeshRecord.read(self.layout.state)
        assert record is not None
        return record

    def processes(self) -> dict[str, Identity]:
        """The supervisor and its children, as currently recorded."""
        record = self.record()
        children = {each.name: each.process for each in record.components if each.process}
        return {"supervisor": record.supervisor} | children


def assert_all_gone(processes: dict[str, Identity], layout: Layout) -> None:
    """Assert that none of the processes is alive, and that no process listens on a port of the mesh."""
    assert [name for name, identity in processes.items() if identity.find() is not None] == []
    for offset in port_offsets().values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", layout.settings.base_port + offset)) != 0


@dataclass
class Supervised:
    """A supervisor in this process, with its output."""

    layout: Layout
    said: list[str]

    def record(self, name: str) -> tuple[ComponentState, int | None, int]:
        record = MeshRecord.read(self.layout.state)
        assert record is not None
        component = record.component(name)
        assert component is not None
        return component.state, component.process.pid if component.process else None, component.restarts

    def settings(self) -> dict[str, str]:
        record = MeshRecord.read(self.layout.state)
        assert record is not None
        return record.settings

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110, the condition depends on other processes
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def supervised(
    layout: Layout, components: Sequence[Component], rebuilt: Callable[[str], Mesh] | None = None
) -> AsyncIterator[Supervised]:
    """Run components until the block ends. Raises the supervisor's error if they do not start."""
    layout.create()
    said: list[str] = []
    stopped = asyncio.Event()
    with locked(layout):
        supervisor = asyncio.create_task(Supervisor(components, layout, say=said.append, rebuilt=rebuilt).run(stopped))
        try:
            while not supervisor.done():
                record = MeshRecord.read(layout.state)
                if record and record.phase is Phase.RUNNING:
                    yield Supervised(layout, said)
                    break
                await asyncio.sleep(0.02)
        finally:
            stopped.set()
            await supervisor


def killed(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
