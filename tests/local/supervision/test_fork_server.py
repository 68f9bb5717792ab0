"""The fork server: a child is like a new process, its end is reported, and nothing outlives the fork server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.settings import REPOSITORY, inherited_environment
from local.supervision.fork_server import PACKAGES, ForkedProcess, ForkServer, Start
from local.supervision.process import Identity
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS does not allow a fork without exec")

MODULE = "tests.local.supervision.forked_module"


@dataclass
class Running:
    server: ForkServer
    log: Path
    started: list[ForkedProcess]

    async def start(self, *arguments: str) -> ForkedProcess:
        environment = inherited_environment() | {"ONLY_HERE": "1"}
        order = Start(MODULE, arguments, environment, str(REPOSITORY), str(self.log), signal.SIGTERM)
        self.started.append(await self.server.spawn(order))
        return self.started[-1]

    async def told(self, number: int = 0) -> dict[str, Any]:
        """What the process of this number has told of itself."""
        lines = await until(lambda: [line for line in read(self.log).splitlines() if line.startswith("{")][number:])
        told: dict[str, Any] = json.loads(lines[0])
        return told


def read(log: Path) -> str:
    return log.read_text() if log.exists() else ""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    running = Running(
        ForkServer(inherited_environment(), REPOSITORY, tmp_path / "fork-server.log"), tmp_path / "log", []
    )
    yield running
    for each in running.started:
        each.send_signal(signal.SIGKILL)
    await running.server.close()


async def test_a_child_has_its_own_arguments_environment_session_folder_and_name(running: Running) -> None:
    process = await running.start("wait")
    told = await running.told()
    assert told["arguments"] == ["wait"]
    assert told["environment"] == inherited_environment() | {"ONLY_HERE": "1"}
    assert told["directory"] == str(REPOSITORY)
    assert told["leads_its_session"]
    assert " ".join(psutil.Process(process.pid).cmdline()).strip() == f"{sys.executable} -m {MODULE} wait"


@pytest.mark.parametrize(
    ("arguments", "code"), [(("exit", "0"), 0), (("exit", "78"), os.EX_CONFIG), (("raise",), 1)], ids=str
)
async def test_its_exit_code_is_reported(running: Running, arguments: tuple[str, ...], code: int) -> None:
    process = await running.start(*arguments)
    await until(lambda: process.poll() is not None)
    assert process.poll() == code
    assert ("RuntimeError: as asked" in read(running.log)) == (arguments == ("raise",))


async def test_a_signal_that_ends_it_is_reported(running: Running) -> None:
    process = await running.start("wait")
    await running.told()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    await until(lambda: process.poll() is not None)
    assert process.poll() == -signal.SIGTERM


async def test_processes_that_start_at_once_are_told_apart(running: Running) -> None:
    codes = range(20, 32)
    processes = await asyncio.gather(*(running.start("exit", str(code)) for code in codes))
    await until(lambda: all(each.poll() is not None for each in processes))
    assert [each.poll() for each in processes] == list(codes)


async def test_when_it_is_killed_its_children_end_and_the_next_start_has_another(running: Running) -> None:
    process = await running.start("wait")
    await running.told()
    child = Identity.of(process.pid)
    parent = psutil.Process(process.pid).parent()
    assert parent
    parent.kill()
    await until(lambda: process.poll() is not None and child.find() is None)
    await running.start("wait")
    assert await running.told(1)


async def test_when_its_supervisor_is_killed_its_children_get_their_death_signal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.local.supervision.forking_process", str(tmp_path), MODULE, "wait"),
        cwd=REPOSITORY,
    )
    await until(lambda: read(log))
    children = [Identity.of(child.pid) for child in psutil.Process(supervisor.pid).children(recursive=True)]
    assert len(children) == 2
    supervisor.kill()
    await supervisor.wait()
    await until(lambda: not any(child.find() for child in children))
    assert "KeyboardInterrupt" in read(log)


async def test_one_that_cannot_start_is_an_error_and_no_wait(tmp_path: Path) -> None:
    server = ForkServer({"PYTHONHOME": str(tmp_path)}, tmp_path, tmp_path / "log")
    with pytest.raises(OSError, match="the fork server has ended"):
        await server.spawn(Start(MODULE, (), {}, str(tmp_path), str(tmp_path / "log"), signal.SIGTERM))
    await server.close()


def test_what_it_imports_beforehand_is_there_and_nothing_of_ours() -> None:
    assert [package for package in PACKAGES if find_spec(package) is None] == []
    assert not {package.partition(".")[0] for package in PACKAGES} & {"services", "kit", "mesh", "local", "storymesh"}
