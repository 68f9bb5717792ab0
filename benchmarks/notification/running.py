"""Runs the mesh without its mail worker, and mail workers of any number."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from benchmarks.pipeline.jobs.contest import PEERS
from kit.runtime import base64url
from kit.runtime.development_secrets import KEY_MARK
from local.failures import NotReady
from local.harness import RunningMesh, running_mesh
from local.settings import REPOSITORY, inherited_environment
from local.supervision import health
from local.supervision.process import guarded

_COMPONENTS = (
    *("postgres", "redis", "mail", "auth-migrate", "auth", "auth-worker"),
    *("notification-migrate", "notification"),
)
_START_SECONDS = 30.0
_LOOK_SECONDS = 0.05


@asynccontextmanager
async def running(state_dir: Path) -> AsyncIterator[RunningMesh]:
    """A durable mesh whose mails nobody sends."""
    async with running_mesh(state_dir, only=_COMPONENTS, durable=True) as mesh:
        yield mesh


def seal_key(mesh: RunningMesh) -> bytes:
    """The key by which auth seals codes for the mail worker."""
    written = (mesh.secrets_dir("notification") / "storymesh_seal_key").read_text()
    return base64url.decode(written.strip().removeprefix(KEY_MARK).rstrip("="))


@asynccontextmanager
async def mail_workers(mesh: RunningMesh, count: int, slots: int) -> AsyncIterator[Sequence[int]]:
    """Mail workers that send `slots` mails at a time each; yields their pids when all are ready."""
    addresses = [_free_address() for _ in range(count)]
    with _processes(mesh, ["-m", "services.notification", "worker"], addresses, _environment(mesh, slots)) as started:
        await asyncio.gather(*map(_ready, started, addresses))
        yield [process.pid for process in started]


@contextmanager
def celery_workers(mesh: RunningMesh, count: int, slots: int) -> Iterator[Sequence[int]]:
    """Celery workers of `slots` threads each, which send by smtplib; yields their pids."""
    command = ["-m", "benchmarks.notification.on_celery", mesh.redis_url, str(slots), str(mesh.smtp_port)]
    path = os.pathsep.join([str(PEERS), str(REPOSITORY), str(REPOSITORY / "gen")])
    with _processes(mesh, command, [""] * count, {"PYTHONPATH": path}) as started:
        yield [process.pid for process in started]


def _environment(mesh: RunningMesh, slots: int) -> Mapping[str, str]:
    return {
        "STORYMESH_ENVIRONMENT": "development",
        "STORYMESH_SECRETS_DIR": str(mesh.secrets_dir("notification")),
        "STORYMESH_AUTH_TARGET": mesh.address("auth"),
        "STORYMESH_SMTP_PORT": str(mesh.smtp_port),
        "STORYMESH_MAIL_FROM": "Storymesh <stories@storymesh.localhost>",
        "STORYMESH_MAIL_CONCURRENCY": str(slots),
    }


@contextmanager
def _processes(
    mesh: RunningMesh, arguments: Sequence[str], addresses: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """A process for each address; all are killed at the end of the block, and end with this process."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        with mesh.layout.log("mail-workers").open("ab") as log:
            for address in addresses:
                process = subprocess.Popen(  # noqa: S603  # our own program
                    guarded([sys.executable, *arguments], death_signal=signal.SIGKILL, account=None),
                    cwd=REPOSITORY,
                    env=inherited_environment() | dict(environment) | {"STORYMESH_LISTEN": address},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                started.append(process)
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


async def _ready(process: subprocess.Popen[bytes], address: str) -> None:
    serving = health.grpc_serving(address)
    async with asyncio.timeout(_START_SECONDS):
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"a mail worker ended with {process.returncode}")
            try:
                await serving()
                return
            except NotReady:
                await asyncio.sleep(_LOOK_SECONDS)
