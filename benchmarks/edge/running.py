"""Runs the mesh without its workers, FastAPI beside it, and further Envoys in front of the same services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx2
import jwt
import psycopg
import yaml

from benchmarks.auth.running import Codes, complete_registration
from benchmarks.machine import cpu_seconds
from benchmarks.pipeline.jobs.contest import PEERS
from local.harness import RunningMesh, running_mesh
from local.mesh.components import envoy
from local.settings import REPOSITORY, inherited_environment, users_settings
from local.supervision.process import guarded

SERVERS = ("story", "ratelimit", "envoy", "postgres", "redis")
"""The components of the mesh that a request for a story costs processor time."""

_COMPONENTS = (*SERVERS, "auth-migrate", "auth", "story-migrate")
_START_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_TEXT_BYTES = 1500

# Without this, requests of a few accounts would measure the quotas; an access token must be valid for the whole run.
_ENVIRONMENT = {
    "STORYMESH_STORIES_UNFINISHED": "1000000000",
    "STORYMESH_STORIES_A_DAY": "1000000000",
    "STORYMESH_STORIES_BACKLOG": "1000000000",
    "STORYMESH_ACCESS_TOKEN_SECONDS": "1200",
}

Change = Callable[[dict[str, Any]], None]
"""Changes a rendered configuration of Envoy in place."""


@dataclass(frozen=True)
class Reader:
    """An account, and a completed story of it."""

    token: str
    story_id: UUID


@dataclass
class Running:
    """A running mesh; ends with the block that started it."""

    mesh: RunningMesh
    readers: list[Reader]

    @property
    def port(self) -> int:
        return self.mesh.layout.settings.port

    def cpu_seconds(self, name: str) -> float:
        return cpu_seconds([self.mesh.pid(name)])

    def log_of(self, name: str) -> Path:
        return self.mesh.layout.log(name)

    async def forget_requests(self) -> None:
        """Deletes the stories that were requested: each counts the others in the queue, so a long one would cost the next round."""
        await self._ask("story", "DELETE FROM stories WHERE state = 'QUEUED'")
        await self._ask("story", "TRUNCATE outbox, admissions")
        await self._ask("story", "VACUUM ANALYZE stories")

    async def _ask(self, service: str, query: str, *values: Any) -> None:
        url = f"{self.mesh.postgres_admin_url.rpartition('/')[0]}/{service}"
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(query.encode(), values)

    async def write_story(self, owner_id: UUID) -> UUID:
        """Inserts a completed story of some 250 words."""
        story_id = uuid4()
        words = ("The lighthouse kept its own counsel. " * 50)[:_TEXT_BYTES]
        await self._ask(
            "story",
            "INSERT INTO stories (id, owner_id, request_digest, state, title, text, preferences, theme, prompt, length, language,"
            " attempt, failures, writer, model, prompt_tokens, completion_tokens, failure_reason, created_at, started_at,"
            " completed_at, dispatched_at, queued_at)"
            " VALUES (%s, %s, '', 'COMPLETED', 'The Keeper', %s, '{the sea,fog}', 'a lighthouse', '', 'SHORT', 'en',"
            " 1, 0, 'composer', 'composer', 10, 300, '', now(), now(), now(), now(), now())",
            *(story_id, owner_id, words),
        )
        return story_id


@asynccontextmanager
async def running(state_dir: Path, *, people: int) -> AsyncIterator[Running]:
    """Runs a durable mesh with production's defaults except for quotas; the caller's STORYMESH_* variables take precedence."""
    environment = _ENVIRONMENT | users_settings()
    async with running_mesh(state_dir, only=_COMPONENTS, environment=environment, durable=True) as mesh:
        codes = Codes(mesh)
        try:
            async with grpc.aio.insecure_channel(mesh.address("auth")) as channel:
                tokens = [await complete_registration(channel, codes, number) for number in range(people)]
        finally:
            await codes.close()
        started = Running(mesh, [])
        for token in tokens:
            owner_id = UUID(jwt.decode(token, options={"verify_signature": False})["sub"])
            started.readers.append(Reader(token, await started.write_story(owner_id)))
        yield started


def fastapi_installed() -> bool:
    return (PEERS / "fastapi").exists()


@dataclass(frozen=True)
class Contender:
    """A server beside the mesh."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        return cpu_seconds([self.pid])


@asynccontextmanager
async def fastapi(running: Running, *, processes: int) -> AsyncIterator[Contender]:
    """FastAPI on the story service's database and the mesh's Redis."""
    mesh, port = running.mesh, _free_port()
    environment = {
        "PYTHONPATH": os.pathsep.join([str(PEERS), str(REPOSITORY), str(REPOSITORY / "gen")]),
        "PEER_KEYS": f"{mesh.edge_url}/.well-known/jwks.json",
        "PEER_DATABASE": mesh.database_url("story"),
        "PEER_REDIS": mesh.redis_url,
    }
    command = [sys.executable, "-m", "benchmarks.edge.on_fastapi", str(port), str(processes)]
    async with _process(running, "fastapi", command, environment) as pid:
        await answers(f"http://127.0.0.1:{port}/openapi.json")
        yield Contender(port, pid)


@asynccontextmanager
async def another_edge(
    running: Running, name: str, change: Change, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Contender]:
    """A further Envoy in front of the mesh's services, with the mesh's own configuration but for the settings and the change."""
    layout, ports = running.mesh.layout, {each: _free_port() for each in ("listen", "admin", "internal")}
    source = layout.run / "envoy.yaml"
    if settings:
        source = layout.run / f"{name}.yaml"
        await asyncio.to_thread(partial(envoy.render, layout, source, **settings))
    configuration = yaml.safe_load(source.read_text())
    public, own = configuration["static_resources"]["listeners"][:2]
    _move(public["address"], ports["listen"])
    _move(own["address"], ports["internal"])
    _move(configuration["admin"]["address"], ports["admin"])
    for cluster in configuration["static_resources"]["clusters"]:
        if cluster["name"] == "jwks":
            _move(
                cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"], ports["internal"]
            )
    change(configuration)
    rendered = layout.run / f"{name}.json"
    rendered.write_text(json.dumps(configuration))
    command = [str(envoy.program()), "--config-path", str(rendered), "--disable-hot-restart"]
    command += ["--concurrency", str(envoy.worker_threads()), "--log-level", "warning"]
    async with _process(running, name, command, {}) as pid:
        await answers(
            f"http://127.0.0.1:{ports['listen']}/v1/stories/{running.readers[0].story_id}", running.readers[0].token
        )
        yield Contender(ports["listen"], pid)


def _move(address: dict[str, Any], port: int) -> None:
    address["socket_address"]["port_value"] = port


@asynccontextmanager
async def _process(
    running: Running, name: str, command: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[int]:
    """A process that ends with the block, and with this process."""
    with running.log_of(name).open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220, S603  # our own program; its start is too short to need a thread
            guarded(list(command), death_signal=signal.SIGTERM, account=None),
            cwd=REPOSITORY,
            env=inherited_environment() | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def answers(url: str, token: str = "") -> None:
    """Returns when the address answers 200."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with asyncio.timeout(_START_SECONDS), httpx2.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(url, headers=headers)).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(_LOOK_SECONDS)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
