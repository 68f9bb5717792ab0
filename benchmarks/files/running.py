"""Runs the mesh with the file service and without its worker, and FastAPI beside it, on the same SeaweedFS."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import jwt

from benchmarks.auth.running import Codes, complete_registration
from benchmarks.edge.running import answers
from benchmarks.machine import cpu_seconds
from benchmarks.pipeline.jobs.contest import PEERS
from deploy import buckets
from local.harness import RunningMesh, running_mesh
from local.settings import REPOSITORY, inherited_environment, users_settings
from local.supervision.process import guarded

SERVERS = ("file", "ratelimit", "envoy", "postgres", "redis")
"""The components of the mesh that an upload costs processor time, apart from the object store, which is the same for both."""

STORE = "s3"
PROFILE_SERVERS = ("social", "ratelimit", "envoy", "postgres", "redis")
"""The components that a read of a profile costs processor time."""

_COMPONENTS = (*SERVERS, STORE, "auth-migrate", "auth", "file-migrate", "social-migrate", "social")

# Without this, uploads of one account would measure the quotas; an access token must be valid for the whole run.
_ENVIRONMENT = {
    "STORYMESH_FILES_BYTES": str(1 << 50),
    "STORYMESH_FILES_BYTES_A_DAY": str(1 << 50),
    "STORYMESH_FILES_MOST": "1000000000",
    "STORYMESH_FILES_A_DAY": "1000000000",
    "STORYMESH_ACCESS_TOKEN_SECONDS": "1200",
}


@dataclass(frozen=True)
class Contender:
    """A place to upload to, and what its processes have used so far."""

    port: int
    used: dict[str, Callable[[], float]]
    """Processor seconds by process."""


@dataclass
class Running:
    """A running mesh; ends with the block that started it."""

    mesh: RunningMesh
    token: str
    seen_id: str
    """A person with a profile, who is not the one with the token."""

    def cpu_seconds(self, name: str) -> float:
        return cpu_seconds([self.mesh.pid(name)])

    def clock(self, name: str) -> Callable[[], float]:
        return lambda: self.cpu_seconds(name)

    @property
    def ours(self) -> Contender:
        return Contender(self.mesh.layout.settings.port, {name: self.clock(name) for name in (*SERVERS, STORE)})


@asynccontextmanager
async def running(state_dir: Path) -> AsyncIterator[Running]:
    """Runs a durable mesh with production's defaults except for quotas; the caller's STORYMESH_* variables take precedence."""
    environment = _ENVIRONMENT | users_settings()
    async with running_mesh(state_dir, only=_COMPONENTS, environment=environment, durable=True) as mesh:
        codes = Codes(mesh)
        try:
            async with grpc.aio.insecure_channel(mesh.address("auth")) as channel:
                token, other = [await complete_registration(channel, codes, number) for number in range(2)]
        finally:
            await codes.close()
        # The first look at one's own profile makes it.
        await answers(f"{mesh.edge_url}/v1/profile", other)
        yield Running(mesh, token, jwt.decode(other, options={"verify_signature": False})["sub"])


def fastapi_installed() -> bool:
    return (PEERS / "fastapi").exists()


@asynccontextmanager
async def fastapi(running: Running) -> AsyncIterator[Contender]:
    """FastAPI on the file service's database, its bucket and the mesh's Redis."""
    mesh, store = running.mesh, running.mesh.object_store
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environment = inherited_environment() | {
        "PYTHONPATH": os.pathsep.join([str(PEERS), str(REPOSITORY), str(REPOSITORY / "gen")]),
        "PEER_KEYS": f"{mesh.edge_url}/.well-known/jwks.json",
        "PEER_DATABASE": mesh.database_url("file"),
        "PEER_PROFILES": mesh.database_url("social"),
        "PEER_REDIS": mesh.redis_url,
        "PEER_STORE": json.dumps(
            {
                "endpoint": store.endpoint,
                "bucket": buckets.bucket_of("file"),
                "region": buckets.REGION,
                "access_key": buckets.access_key_of("file"),
                "secret_key": store.secret("file"),
            }
        ),
    }
    command = [sys.executable, "-m", "benchmarks.files.on_fastapi", str(port)]
    with mesh.layout.log("fastapi").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220, S603  # our own program; its start is too short to need a thread
            guarded(command, death_signal=signal.SIGTERM, account=None),
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        await answers(f"http://127.0.0.1:{port}/openapi.json")
        shared = {name: running.clock(name) for name in ("postgres", "redis", STORE)}
        yield Contender(port, {"fastapi": lambda: cpu_seconds([process.pid]), **shared})
    finally:
        process.terminate()
        process.wait()
