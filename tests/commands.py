"""Runs a service's commands, each in a process forked from one that has imported the service.

Most of what a command costs otherwise is a new interpreter's imports, which are the same for all.

    python -m tests.commands services.auth

Reads lines `[arguments, environment, folder]`, does what `python -m services.auth ARGUMENTS` does, with standard output and
standard error in `out` and `err` of the folder, and writes the exit code. It must start no thread: none survives a fork.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import runpy
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


class Commands:
    def __init__(self, process: Process) -> None:
        self._process = process

    async def run(self, *arguments: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """The exit code, and what was written on standard output and standard error."""
        assert self._process.stdin
        assert self._process.stdout
        with TemporaryDirectory() as folder:
            self._process.stdin.write(json.dumps([arguments, dict(environment), folder]).encode() + b"\n")
            code = int(await asyncio.wait_for(self._process.stdout.readline(), 60))
            return code, _text(folder, "out"), _text(folder, "err")


def _text(folder: str, name: str) -> str:
    return Path(folder, name).read_text()


@asynccontextmanager
async def commands(module: str) -> AsyncIterator[Commands]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.commands", module, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Commands(process)
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()


def main(module: str) -> None:
    importlib.import_module(f"{module}.__main__")
    # It runs anew in each child, and runpy warns of what was imported before.
    del sys.modules[f"{module}.__main__"]
    for line in sys.stdin:
        arguments, environment, folder = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ.clear()
            os.environ.update(environment)
            for number, path in enumerate((os.devnull, f"{folder}/out", f"{folder}/err")):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
            sys.argv[1:] = arguments
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
