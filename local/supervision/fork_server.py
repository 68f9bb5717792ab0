"""Starts Python modules as forks of one process that has imported the packages they need (decision 0055).

Importing them is nearly all that a service's start costs, and a mesh is a dozen processes. The fork server is the children's
parent, reports their ends, and ends them by its death. It starts no thread, runs no code of the mesh and initialises no gRPC
before a fork, so that a child differs from a fresh interpreter only in what is imported. Only for Linux: the system libraries
of macOS do not allow a fork without exec.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from setproctitle import setproctitle

PACKAGES = (
    "alembic.command",
    "argon2",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.ciphers.aead",
    "grpc.aio",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection",
    "grpc_status.rpc_status",
    "idna",
    "jwt",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "opentelemetry.exporter.prometheus",
    "opentelemetry.instrumentation.grpc",
    "opentelemetry.sdk.metrics",
    "opentelemetry.sdk.trace.export",
    "protovalidate",
    "psycopg",
    "pydantic_settings",
    "redis.asyncio",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "tenacity",
    "uuid_utils.compat",
    "uvloop",
    "zxcvbn_rs_py",
)
"""Packages of others, imported before any fork. One that is missing here costs time at each start, and nothing else."""

_DEATH_SIGNAL_OPTION = 1  # PR_SET_PDEATHSIG, of linux/prctl.h.
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Start:
    """An order to start `python -m module arguments`, with its output appended to `log`."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    log: str
    death_signal: int
    """The signal that the process gets when the fork server ends."""


class ForkedProcess:
    """A process that the fork server has started; its interface is the part of `subprocess.Popen` that the supervisor uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended the process; None while it runs."""
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self, code: int) -> None:
        self._code = code


@dataclass(frozen=True)
class _Connection:
    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    listening: asyncio.Task[None]


class ForkServer:
    """The supervisor's side: starts the fork server when it is first needed, and again if it has ended."""

    def __init__(self, environment: Mapping[str, str], directory: Path, log: Path) -> None:
        self._environment = environment
        self._directory = directory
        self._log = log
        self._ordering = asyncio.Lock()
        self._connection: _Connection | None = None
        self._pid: asyncio.Future[int] | None = None
        self._children: dict[int, ForkedProcess] = {}

    async def spawn(self, start: Start) -> ForkedProcess:
        """Start a process. Raises OSError when the fork server cannot."""
        async with self._ordering:
            if self._connection is None or self._connection.listening.done():
                self._connection = await self._open()
            self._pid = asyncio.get_running_loop().create_future()
            self._connection.writer.write(json.dumps(asdict(start)).encode() + b"\n")
            return self._children[await self._pid]

    async def close(self) -> None:
        """End the fork server, and kill the processes that it has started and that still run."""
        if self._connection:
            self._connection.writer.close()
            await self._connection.listening
            await self._connection.process.wait()
            self._connection = None

    async def _open(self) -> _Connection:
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-u", "-m", "local.supervision.fork_server", str(theirs.fileno())),
                env=dict(self._environment),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return _Connection(process, writer, asyncio.create_task(self._listen(reader, writer)))

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # One that ends before it has read an order resets the connection.
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    pid, code = json.loads(line)
                    if code is not None:
                        self._children.pop(pid).ended(code)
                    elif self._pid:
                        self._children[pid] = ForkedProcess(pid)
                        self._pid.set_result(pid)
        finally:
            writer.close()
            # Nobody is left to learn the exit codes of children, so those of a fork server that was killed end at once too.
            for child in self._children.values():
                child.send_signal(signal.SIGKILL)
                child.ended(-signal.SIGKILL)
            self._children.clear()
            if self._pid and not self._pid.done():
                self._pid.set_exception(ChildProcessError("the fork server has ended"))


def serve(orders: socket.socket) -> Start | None:
    """Fork for each order until the supervisor closes the socket. Returns the order in each child, None in the fork server."""

    def report_ends(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _send(orders, ended[0], os.waitstatus_to_exitcode(ended[1]))

    signal.signal(signal.SIGCHLD, report_ends)
    while order := _line(orders):
        start, parent = Start(**json.loads(order)), os.getpid()
        # The start is reported first, even of a process that ends at once.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            _become(start, parent)
            return start
        _send(orders, pid, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    return None


def _line(orders: socket.socket) -> bytes:
    """The next order; empty at the end. The supervisor sends one only after the reply to the one before."""
    line = b""
    while not line.endswith(b"\n"):
        part = orders.recv(65536)
        if not part:
            return b""
        line += part
    return line


def _send(orders: socket.socket, pid: int, code: int | None) -> None:
    # A supervisor that has ended reads nothing any more; the next read of an order finds that out.
    with contextlib.suppress(OSError):
        orders.sendall(json.dumps([pid, code]).encode() + b"\n")


def _become(start: Start, parent: int) -> None:
    """Give the child what a new process gets by its execution: a session, output, folder, environment, name and death signal."""
    os.setsid()
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL_OPTION, start.death_signal)
    if os.getppid() != parent:
        os._exit(1)  # The fork server has ended before it could be the cause of a death signal.
    output = os.open(start.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(start.directory)
    # Before the environment is changed, whose memory the title may take.
    setproctitle(" ".join((sys.executable, "-m", start.module, *start.arguments)))
    os.environ.clear()
    os.environ.update(start.environment)
    sys.argv = [start.module, *start.arguments]


def main() -> None:
    orders = socket.socket(fileno=int(sys.argv[1]))
    for package in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    # What is imported is no garbage. A collection that wrote into it would copy its pages in each child.
    gc.freeze()
    if start := serve(orders):
        runpy.run_module(start.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
