"""Fixtures: one real Envoy in front of in-process services, shared by all tests of the edge."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import yaml
from edge.bootstrap import bootstrap
from edge.config import Config
from edge.process import command
from edge.settings import Address, Settings, load
from foreign import rls_pb2, rls_pb2_grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from storymesh.auth.v1 import (
    account_service_pb2_grpc,
    directory_service_pb2_grpc,
    key_service_pb2_grpc,
    registration_service_pb2_grpc,
    session_service_pb2_grpc,
)
from storymesh.social.v1 import profile_service_pb2_grpc
from storymesh.story.v1 import story_link_service_pb2_grpc, story_service_pb2_grpc

from mesh.contract import read
from mesh.services import SERVICES
from tests.envoy.tokens import SigningKey
from tests.envoy.upstreams import AuthServices, Calls, Context, Healthy, Limiter, SocialServices, StoryServices

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = "127.0.0.1:1"


async def ok(_context: Context) -> rls_pb2.RateLimitResponse:
    return rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OK)


@dataclass
class Mesh:
    """The services behind the edge and their addresses."""

    calls: Calls
    story: StoryServices
    limiter: Limiter
    key: SigningKey
    endpoints: dict[str, str]


@dataclass
class Edge:
    """A running Envoy."""

    settings: Settings
    log: Path
    pid: int

    @property
    def target(self) -> str:
        return f"{self.settings.listen.host}:{self.settings.listen.port}"

    @property
    def url(self) -> str:
        return f"http://{self.target}"

    def access_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if '"edge.access"' in line]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait for a condition, which may be async, to become true; return its value."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)


@asynccontextmanager
async def server(*servicers: tuple[Callable[[Any, grpc.aio.Server], None], Any], port: int = 0) -> AsyncIterator[str]:
    """Run a server with health and reflection, as every service has them; yield its address."""
    running = grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 0)])
    for add, servicer in servicers:
        add(servicer, running)
    health_pb2_grpc.add_HealthServicer_to_server(Healthy(), running)
    reflection.enable_server_reflection(["grpc.health.v1.Health"], running)
    port = running.add_insecure_port(f"127.0.0.1:{port}")
    await running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await running.stop(None)


@asynccontextmanager
async def envoy(settings: Settings, scratch: Path, rendered: Config | None = None) -> AsyncIterator[Edge]:
    """Run an Envoy with these settings, patiently, or with a given configuration; yield when its listener is open."""
    config, log = scratch / "envoy.yaml", scratch / "envoy.log"
    config.write_text(yaml.safe_dump(rendered or _patient(bootstrap(settings, read(settings.files.contract)))))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command(config, settings), "--concurrency", "1", stdout=output, stderr=output
        )
    try:
        edge = Edge(settings, log, process.pid)
        async with httpx2.AsyncClient() as client:
            await until(lambda: process.returncode is not None or _answers(client, f"{edge.url}/health"), 15)
        assert process.returncode is None, log.read_text()
        yield edge
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx2.TransportError:
        return False


def settings_for(endpoints: dict[str, str], *overrides: str) -> Settings:
    """The settings of a local mesh with free ports and these endpoints; nothing listens at the ports of other services."""
    return load(
        REPOSITORY / "envoy/edge.yaml",
        [
            f"listen=127.0.0.1:{free_port()}",
            f"admin=127.0.0.1:{free_port()}",
            f"internal=127.0.0.1:{free_port()}",
            *(f"services.{name}={endpoints.get(name, NOBODY)}" for name in SERVICES),
            *overrides,
        ],
    )


@pytest.fixture(scope="session")
async def mesh() -> AsyncIterator[Mesh]:
    calls, key = Calls(), SigningKey()
    auth = AuthServices(calls, key)  # type: ignore[abstract]  # what no test calls is UNIMPLEMENTED
    story = StoryServices(calls)  # type: ignore[abstract]  # likewise
    social = SocialServices(calls)  # type: ignore[abstract]  # likewise
    limiter = Limiter(ok)
    async with AsyncExitStack() as stack:
        endpoints = {
            "social": await stack.enter_async_context(
                server((profile_service_pb2_grpc.add_ProfileServiceServicer_to_server, social))
            ),
            "auth": await stack.enter_async_context(
                server(
                    (account_service_pb2_grpc.add_AccountServiceServicer_to_server, auth),
                    (directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server, auth),
                    (key_service_pb2_grpc.add_KeyServiceServicer_to_server, auth),
                    (registration_service_pb2_grpc.add_RegistrationServiceServicer_to_server, auth),
                    (session_service_pb2_grpc.add_SessionServiceServicer_to_server, auth),
                )
            ),
            "story": await stack.enter_async_context(
                server(
                    (story_link_service_pb2_grpc.add_StoryLinkServiceServicer_to_server, story),
                    (story_service_pb2_grpc.add_StoryServiceServicer_to_server, story),
                )
            ),
            "ratelimit": await stack.enter_async_context(
                server((rls_pb2_grpc.add_RateLimitServiceServicer_to_server, limiter))
            ),
            # Nothing listens here: a service that is down.
            "notification": f"127.0.0.1:{free_port()}",
        }
        yield Mesh(calls, story, limiter, key, endpoints)


@pytest.fixture(scope="session")
async def edge(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    settings = settings_for(
        mesh.endpoints,
        "timeouts.unary_seconds=1",
        "timeouts.stream_idle_seconds=3",
        "sizes.request_body_bytes=4096",
        "cors.origins=https://app.example.com",
    )
    async with envoy(settings, tmp_path_factory.mktemp("edge")) as running:
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {mesh.key.sign()}"}) as client:
            await until(lambda: _answers(client, f"{running.url}/v1/account"))
            await until(lambda: _answers(client, f"{running.url}/v1/stories"))
        yield running


def _patient(config: Config) -> Config:
    """The configuration with 20 s for an answer to a health check or a ping.

    The services of these tests share a process with the tests, which may block them on a busy machine for longer than a replica
    may stand still. Without a replica that counts as healthy, the edge answers 503 at once: a class that is denied without the
    limiter too. Tests of replicas that stand still use separate processes, and an edge that is not patient.
    """
    config = deepcopy(config)
    for cluster in config["static_resources"]["clusters"]:
        for check in cluster.get("health_checks", ()):
            check["timeout"] = "20s"
        for options in cluster.get("typed_extension_protocol_options", {}).values():
            options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]["timeout"] = "20s"
    return config


@pytest.fixture(scope="session")
async def patient(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Address]:
    """The address of an edge whose timeout for a request is longer than any test."""
    async with envoy(settings_for(mesh.endpoints), tmp_path_factory.mktemp("patient")) as running:
        yield running.settings.listen


@pytest.fixture(autouse=True)
async def _nothing_happened_yet(mesh: Mesh, http: httpx2.AsyncClient, ada: httpx2.AsyncClient) -> None:
    """Wait until no process is ejected: outlier detection ejects one for a second after consecutive failures of an earlier test."""
    mesh.calls.instead.clear()
    mesh.limiter.verdict = ok

    async def admitted() -> bool:
        answers = [await http.post("/v1/sessions", json={}), await ada.get("/v1/stories")]
        return all(answer.status_code == 200 for answer in answers)

    await until(admitted, 30)
    mesh.calls.seen.clear()
    mesh.limiter.asked.clear()
    mesh.story.chunks = asyncio.Queue()


@pytest.fixture(scope="session")
async def http(edge: Edge) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client without credentials."""
    async with httpx2.AsyncClient(base_url=edge.url) as client:
        yield client


@pytest.fixture(scope="session")
async def ada(edge: Edge, mesh: Mesh) -> AsyncIterator[httpx2.AsyncClient]:
    """A signed-in HTTP client."""
    async with httpx2.AsyncClient(base_url=edge.url, headers={"authorization": f"Bearer {mesh.key.sign()}"}) as client:
        yield client


@pytest.fixture(scope="session")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    """A native gRPC channel to the edge."""
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


@pytest.fixture
def credentials(mesh: Mesh) -> tuple[tuple[str, str]]:
    """The gRPC metadata of a signed-in caller."""
    return (("authorization", f"Bearer {mesh.key.sign()}"),)


@pytest.fixture
async def mesh_with(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a further Envoy with other settings for one test.

    It waits for the limiter as long as for a health check, unless it is impatient: as quick as the product to detect replicas that
    stand still.
    """
    async with AsyncExitStack() as stack:

        async def start(*overrides: str, endpoints: dict[str, str] | None = None, impatient: bool = False) -> Edge:
            waits = [] if impatient else ["rate_limit.timeout_seconds=20"]
            settings = settings_for(mesh.endpoints | (endpoints or {}), *waits, *overrides)
            rendered = bootstrap(settings, read(settings.files.contract)) if impatient else None
            return await stack.enter_async_context(envoy(settings, tmp_path, rendered))

        yield start
