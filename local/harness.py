"""Runs a mesh, or only its servers, for tests.

    async with servers(tmp_path) as running:           # Postgres, Redis and the mail sink
        running.postgres_admin_url, running.redis_url, running.mail_dir, running.database_url("auth")

    async with running_mesh(tmp_path, writer="composer") as mesh:
        mesh.kill("story-worker-1")
        await mesh.healthy("story-worker-1")

Both also work with a plain `with`. The mesh runs under its real supervisor in a process of its own: it does not depend on
the test's event loop, and it ends when the test run is killed. Parallel runs use different ports.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local import settings
from local.layout import Layout
from local.mesh.components import mailsink, postgres, redis, s3
from local.mesh.reservation import EDGE_OFFSET, reserved_ports
from local.settings import REPOSITORY
from local.supervision import control
from local.supervision.process import Identity, guarded
from local.supervision.state import ComponentState, MeshRecord, Phase

START_SECONDS = 120.0
STOP_SECONDS = 75.0
POLL_SECONDS = 0.05


def servers(
    state_dir: Path,
    *,
    postgres: bool = True,
    redis: bool = True,
    mail: bool = True,
    s3: bool = False,
    durable: bool = False,
) -> "Servers":
    """Servers alone, without services. Unless `durable`, they skip fsync: faster, but a machine crash loses data."""
    wanted = {"postgres": postgres, "redis": redis, "mail": mail, "s3": s3}
    return Servers(state_dir, only=[name for name, want in wanted.items() if want], durable=durable)


def running_mesh(
    state_dir: Path,
    *,
    only: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    writer: str = "composer",
    durable: bool = False,
    **chosen: Any,
) -> "RunningMesh":
    """The whole mesh. `chosen` sets fields of LocalSettings, `environment` further `STORYMESH_*` variables."""
    return RunningMesh(state_dir, only=only, environment=environment or {}, writer=writer, durable=durable, **chosen)


class Servers:
    """The requested ones of Postgres, Redis, the mail sink and the object store; they run until the `with` block ends."""

    def __init__(
        self, state_dir: Path, *, only: Sequence[str] = (), environment: Mapping[str, str] | None = None, **chosen: Any
    ) -> None:
        self._state_dir = state_dir
        self._only = only
        self._environment = environment or {}
        self._chosen = chosen
        self._exit = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.layout: Layout
        """Paths and ports; set when the block is entered."""

    @property
    def postgres_admin_url(self) -> str:
        """libpq URL of the superuser, with the database `postgres`."""
        return postgres.Databases(self.layout).admin_url

    @property
    def redis_url(self) -> str:
        """Redis URL of the administrator, who may run FLUSHALL."""
        return redis.Users(self.layout).admin_url

    @property
    def mail_dir(self) -> Path:
        return self.layout.mail

    @property
    def smtp_port(self) -> int:
        return self.layout.port(mailsink.NAME)

    def database_url(self, service: str) -> str:
        """SQLAlchemy URL of a service's own role and database. The database is empty until the service's migrations have run."""
        return postgres.Databases(self.layout).url(service)

    def service_redis_url(self, service: str) -> str:
        return redis.Users(self.layout).url(service)

    @property
    def object_store(self) -> s3.Store:
        return s3.Store(self.layout)

    def secrets_dir(self, service: str) -> Path:
        return self.layout.secrets / service

    def pid(self, component: str) -> int:
        """The pid of a running component."""
        process = self._component_process(component)
        if process is None:
            raise LookupError(f"{component} has no process")
        return process.pid

    def kill(self, component: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal behind the supervisor's back, as a crash would."""
        os.kill(self.pid(component), number)

    async def stop(self, component: str) -> None:
        await self._order("stop", component)

    async def start(self, component: str) -> None:
        """Start a stopped component; returns when it is healthy."""
        await self._order("start", component)

    async def restart(self, component: str) -> None:
        """Stop and start a component; returns when it is healthy again."""
        await self._order("restart", component)

    async def healthy(self, component: str, *, not_pid: int | None = None, seconds: float = 30.0) -> int:
        """Wait until the component is healthy, in a process other than `not_pid` if given. Returns its pid."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            record = self._record().component(component)
            if record and record.state is ComponentState.HEALTHY and record.process and record.process.pid != not_pid:
                return record.process.pid
            await asyncio.sleep(POLL_SECONDS)
        raise TimeoutError(f"{component} is not healthy after {seconds:g} s")

    def restarts(self, component: str) -> int:
        """How often the component ended by itself and was started again."""
        record = self._record().component(component)
        return record.restarts if record else 0

    async def __aenter__(self) -> Self:
        process = self._spawn()
        try:
            for _ in self._starting(process):
                await asyncio.sleep(POLL_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._end)

    def __enter__(self) -> Self:
        process = self._spawn()
        try:
            for _ in self._starting(process):
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the supervisor, in this thread: the kernel kills it when the thread that started it ends."""
        if "base_port" not in self._chosen:
            base = self._exit.enter_context(reserved_ports())
            self._chosen = {"port": base + EDGE_OFFSET, "base_port": base} | self._chosen
        self.layout = Layout(settings.load(state_dir=self._state_dir, **self._chosen))
        self.layout.create()
        command = [sys.executable, "-m", "local", "run", *(part for name in self._only for part in ("--only", name))]
        # STORYMESH_* variables of the caller's shell must not change what a test finds.
        inherited = settings.supervisors_environment().items()
        clean = {name: value for name, value in inherited if not name.startswith("STORYMESH_")}
        with self.layout.log("supervisor").open("wb") as output:
            self._process = subprocess.Popen(
                guarded(command, death_signal=signal.SIGTERM, account=None),
                cwd=REPOSITORY,
                env=clean | self.layout.settings.environment() | dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process

    def _starting(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Yield until the mesh has started; raises when it cannot start."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            record = MeshRecord.read(self.layout.state)
            if record and record.supervisor.pid == process.pid and record.phase is Phase.RUNNING:
                return
            if process.poll() is not None:
                raise RuntimeError(f"the mesh did not start:\n{self.layout.log('supervisor').read_text()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the mesh is not healthy after {START_SECONDS:g} s; see {self.layout.logs}")
            yield

    def _end(self) -> None:
        with self._exit:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(STOP_SECONDS)

    def _record(self) -> MeshRecord:
        record = MeshRecord.read(self.layout.state)
        if record is None:
            raise LookupError(f"no mesh runs in {self.layout.root}; see {self.layout.log('supervisor')}")
        return record

    def _component_process(self, component: str) -> Identity | None:
        record = self._record().component(component)
        return record.process if record else None

    async def _order(self, verb: control.Verb, component: str) -> None:
        await asyncio.to_thread(control.send, self.layout.control_socket, control.Order(verb, component))


class RunningMesh(Servers):
    """A whole mesh that runs until the `with` block ends."""

    @property
    def edge_url(self) -> str:
        return self.layout.edge_url

    @property
    def edge_address(self) -> str:
        """`host:port` of the edge, for native gRPC."""
        return f"127.0.0.1:{self.layout.settings.port}"

    def address(self, component: str) -> str:
        return self.layout.address(component)
