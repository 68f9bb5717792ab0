"""Runs the mesh without its story workers, accounts that can request stories, and story workers that can be killed."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import grpc
import psycopg
from storymesh.auth.v1 import registration_service_pb2 as pb
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub

from benchmarks.machine import usable_cores
from local.failures import NotReady
from local.harness import RunningMesh, running_mesh
from local.settings import REPOSITORY, inherited_environment, users_settings
from local.supervision import health
from local.supervision.process import guarded

_COMPONENTS = (
    *("postgres", "redis", "mail", "envoy", "ratelimit", "auth-migrate", "auth", "auth-worker"),
    *("story-migrate", "story", "notification-migrate", "notification", "notification-worker"),
)
_PASSWORD = "a password that only this run knows"  # for accounts that are deleted with the run's data
_START_SECONDS = 30.0
_LOOK_SECONDS = 0.05

# Without this, requests of a few accounts would measure the quotas; an access token must be valid for the whole run.
_ENVIRONMENT = {
    "STORYMESH_STORIES_UNFINISHED": "1000000",
    "STORYMESH_STORIES_A_DAY": "1000000",
    "STORYMESH_STORIES_BACKLOG": "1000000",
    "STORYMESH_WATCHES_PER_PERSON": "1000000",
    "STORYMESH_ACCESS_TOKEN_SECONDS": "1200",
    "STORYMESH_SIGN_IN_FAILURES_PER_NETWORK": "1000000000",
    "STORYMESH_MAIL_CONCURRENCY": "10",
}


@dataclass
class Running:
    """A running mesh; ends with the block that started it."""

    mesh: RunningMesh
    tokens: list[str]
    """Access tokens, one per account."""

    @property
    def story_target(self) -> str:
        return self.mesh.address("story")

    async def query(self, service: str, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Asks a service's database, as its administrator."""
        url = f"{self.mesh.postgres_admin_url.rpartition('/')[0]}/{service}"
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def story_workers(self, count: int, **settings: object) -> AsyncIterator[StoryWorkers]:
        """Story workers with these settings, such as `lease_seconds`; those still running are killed at the end of the block."""
        workers = StoryWorkers(self.mesh, {f"STORYMESH_{name.upper()}": str(value) for name, value in settings.items()})
        try:
            for _ in range(count):
                await workers.start()
            yield workers
        finally:
            workers.kill_all()


class StoryWorkers:
    """Processes of `services.story worker` with the mesh's secrets, started one at a time."""

    def __init__(self, mesh: RunningMesh, settings: Mapping[str, str]) -> None:
        self._mesh = mesh
        self._settings = settings
        self._number = 0
        self._living: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._living]

    async def start(self) -> None:
        """Starts a worker; returns when it is ready to write."""
        self._number = self._number % 16 + 1
        address = self._mesh.address(f"story-worker-{self._number}")
        environment = {
            "STORYMESH_ENVIRONMENT": "development",
            "STORYMESH_WRITER": "composer",
            "STORYMESH_SECRETS_DIR": str(self._mesh.secrets_dir("story")),
            "STORYMESH_AUTH_TARGET": self._mesh.address("auth"),
            "STORYMESH_LISTEN": address,
        }
        with self._mesh.layout.log(f"story-worker-{self._number}").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220, S603  # our own program; its start is too short to need a thread
                guarded([sys.executable, "-m", "services.story", "worker"], death_signal=signal.SIGKILL, account=None),
                cwd=REPOSITORY,
                env=inherited_environment() | _ENVIRONMENT | users_settings() | dict(self._settings) | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._living.append(process)
        serving = health.grpc_serving(address)
        async with asyncio.timeout(_START_SECONDS):
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"a story worker ended with {process.returncode}")
                try:
                    await serving()
                    return
                except NotReady:
                    await asyncio.sleep(_LOOK_SECONDS)

    def kill_oldest(self) -> float:
        """Sends SIGKILL to the oldest worker and returns the time by `time.time`."""
        process = self._living.pop(0)
        process.kill()
        killed_at = time.time()
        process.wait()
        return killed_at

    def kill_all(self) -> None:
        while self._living:
            self.kill_oldest()


@asynccontextmanager
async def running(state_dir: Path, *, people: int) -> AsyncIterator[Running]:
    """Runs a durable mesh with production's defaults except for quotas; the caller's STORYMESH_* variables take precedence."""
    environment = _ENVIRONMENT | users_settings()
    async with running_mesh(state_dir, only=_COMPONENTS, environment=environment, durable=True) as mesh:
        async with grpc.aio.insecure_channel(mesh.address("auth")) as channel:
            gate = asyncio.Semaphore(usable_cores())
            tokens = await asyncio.gather(*(_registered(mesh, channel, number, gate) for number in range(people)))
        yield Running(mesh, list(tokens))


async def _registered(mesh: RunningMesh, channel: grpc.aio.Channel, number: int, gate: asyncio.Semaphore) -> str:
    """Registers an account and returns its access token."""
    email = f"reader-{number}@example.com"
    stub = RegistrationServiceStub(channel)
    async with gate:
        started = await stub.CreateRegistration(
            pb.CreateRegistrationRequest(email=email, password=_PASSWORD, preferences=["the sea"]), timeout=30
        )
        async with asyncio.timeout(_START_SECONDS):
            while (code := _code_for(mesh.mail_dir, email)) is None:  # noqa: ASYNC110  # another process writes the code
                await asyncio.sleep(_LOOK_SECONDS)
        request = pb.CompleteRegistrationRequest(registration_id=started.registration_id, code=code)
        return (await stub.CompleteRegistration(request, timeout=30)).tokens.access_token


def _code_for(folder: Path, email: str) -> str | None:
    for path in folder.glob("*.eml"):
        mail = message_from_bytes(path.read_bytes(), policy=default)
        text = mail.get_body(("plain",))
        found = re.search(r"\b(\d{6})\b", text.get_content()) if text else None
        if mail["To"] == email and found:
            return found[1]
    return None


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
