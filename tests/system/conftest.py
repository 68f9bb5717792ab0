"""Fixtures: the whole mesh, as `make up` starts it, behind a real Envoy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx2
import pytest
import yaml
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.runtime import base64url
from kit.runtime.development_secrets import KEY_MARK
from local.harness import RunningMesh, running_mesh
from mesh.catalog import manifests
from services import ratelimit
from tests.mails import text_of
from tests.system.collector import Collector, collecting
from tests.system.doors import CONNECTIONS, SECONDS, Door, GrpcDoor, HttpDoor, RevolvingDoor
from tests.waiting import until

PASSWORD = "correct horse battery staple"  # set by the tests
BOUNCE_WEBHOOK_KEY = "d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3c="
GENERATION_BURST = 150
LOCAL_RULES = Path(ratelimit.__file__).parent / "rules" / "local.yaml"
EDGE_SETTINGS = Path(__file__).parents[2] / "envoy" / "edge.yaml"
FAILURES_PER_NETWORK = 40


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """The collector of the mesh's spans."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="session")
def edge_settings(tmp_path_factory: pytest.TempPathFactory) -> EdgeSettings:
    settings = EdgeSettings(tmp_path_factory.mktemp("edge") / "edge.yaml")
    settings.write()
    return settings


@pytest.fixture(scope="session")
async def mesh(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector, edge_settings: EdgeSettings
) -> AsyncIterator[RunningMesh]:
    """The mesh with short leases, a composer slow enough to be killed in mid-story, and limits that a test can reach.

    Codes for one address and refreshes of a session need no pause, and a new signing key takes over within seconds.
    """
    rules = yaml.safe_load(LOCAL_RULES.read_text())
    (limited,) = [rule for rule in rules["rules"] if rule["name"] == "generation-per-user"]
    limited.update(rate="1/min", burst=GENERATION_BURST)
    rules_file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules_file.write_text(yaml.safe_dump(rules))
    environment = {
        "STORYMESH_LEASE_SECONDS": "3",
        "STORYMESH_COMPOSER_PACE": "0.02",
        "STORYMESH_WRITE_SECONDS": "3",
        "STORYMESH_RATE_LIMIT_RULES": str(rules_file),
        "STORYMESH_CODE_COOLDOWN_SECONDS": "0",
        "STORYMESH_REFRESHES_IN_A_ROW": "10000",
        "STORYMESH_SIGN_IN_FAILURES_PER_NETWORK": str(FAILURES_PER_NETWORK),
        "STORYMESH_SIGNING_KEY_PUBLISH_SECONDS": "7",
        "STORYMESH_UPKEEP_SECONDS": "0.5",
        "STORYMESH_OTLP_ENDPOINT": collector.endpoint,
        "STORYMESH_BOUNCE_WEBHOOK_KEY": BOUNCE_WEBHOOK_KEY,
    }
    async with running_mesh(
        tmp_path_factory.mktemp("mesh"), writer="composer", environment=environment, edge_settings=edge_settings.path
    ) as running:
        yield running


@pytest.fixture
async def http(mesh: RunningMesh) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=mesh.edge_url, timeout=20) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
async def door(request: pytest.FixtureRequest, mesh: RunningMesh) -> AsyncIterator[Door]:
    """HTTP and gRPC in turn: the test runs once through each."""
    async with opened(mesh, request.param) as one:
        yield one


@pytest.fixture
async def both_doors(mesh: RunningMesh) -> AsyncIterator[Door]:
    """A door whose calls alternate between HTTP and gRPC."""
    async with opened(mesh, "http") as http, opened(mesh, "grpc") as native:
        yield RevolvingDoor(http, native)


@asynccontextmanager
async def opened(mesh: RunningMesh, kind: str) -> AsyncIterator[Door]:
    if kind == "http":
        limits = httpx2.Limits(max_connections=CONNECTIONS)
        async with httpx2.AsyncClient(base_url=mesh.edge_url, timeout=SECONDS, limits=limits) as client:
            yield HttpDoor(client)
    else:
        async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
            yield GrpcDoor(channel)


def databases_of(mesh: RunningMesh) -> dict[str, str]:
    """Return the libpq URL of each service's database, as the superuser."""
    server = mesh.postgres_admin_url.rpartition("/")[0]
    return {service: f"{server}/{service}" for service, manifest in manifests().items() if manifest.database}


def key_in(mesh: RunningMesh, service: str, name: str) -> bytes:
    """Return a key as the service reads it."""
    written = (mesh.secrets_dir(service) / name).read_text()
    return base64url.decode(written.removeprefix(KEY_MARK))


@pytest.fixture
async def mesh_redis(mesh: RunningMesh) -> AsyncIterator[Redis]:
    """A client of the mesh's Redis, as its administrator."""
    async with kit_redis.connect(mesh.redis_url) as client:
        yield client


@pytest.fixture
async def unknown_network(mesh_redis: Redis) -> AsyncIterator[None]:
    """Reset the failed sign-ins of this machine before and after the test, which makes more of them than one network may."""
    await _forget_networks(mesh_redis)
    yield
    await _forget_networks(mesh_redis)


async def _forget_networks(redis: Redis) -> None:
    async for key in redis.scan_iter(match="signin:*:network"):
        await redis.delete(key)


@dataclass(frozen=True)
class EdgeSettings:
    """The settings file that the edge reads at each start."""

    path: Path

    def write(self, **sections: Any) -> None:
        """Write the repository's settings with these sections replaced."""
        settings = yaml.safe_load(EDGE_SETTINGS.read_text())
        here = EDGE_SETTINGS.parent
        files = {"contract": "descriptors.binpb", "openapi": "openapi.yaml", "docs": "docs.html"}
        settings["files"] = {name: str(here.parent / "gen" / file) for name, file in files.items()}
        self.path.write_text(yaml.safe_dump(settings | sections))


@dataclass
class Person:
    """A person with an account, signed in."""

    http: httpx2.AsyncClient
    email: str
    user: dict[str, Any]
    tokens: dict[str, Any]

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens['access_token']}"}

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self.http.post(path, json=body, headers=self.auth)

    async def get(self, path: str, **query: Any) -> httpx2.Response:
        return await self.http.get(path, params=query or None, headers=self.auth)

    async def new_story(self, **wish: Any) -> dict[str, Any]:
        response = await self.post("/v1/stories", **wish)
        assert response.status_code == 200, response.text
        story: dict[str, Any] = response.json()["story"]
        return story

    async def story(self, story_id: str) -> dict[str, Any]:
        response = await self.get(f"/v1/stories/{story_id}")
        assert response.status_code == 200, response.text
        story: dict[str, Any] = response.json()["story"]
        return story

    async def finished(self, story_id: str, seconds: float = 40) -> dict[str, Any]:
        """Wait for the story's final state, and repeat reads that are answered with 503."""

        async def final() -> dict[str, Any] | None:
            response = await self.get(f"/v1/stories/{story_id}")
            story = response.json().get("story", {})
            return story if story.get("state") in ("STORY_STATE_COMPLETED", "STORY_STATE_FAILED") else None

        story: dict[str, Any] = await until(final, seconds)  # type: ignore[arg-type]  # None is waited for
        return story


def mails_to(folder: Path, address: str) -> list[Message]:
    """Return the mails to an address, oldest first."""
    raw = [path.read_bytes() for path in sorted(folder.glob("*.eml"))]
    # Searched as bytes first, because parsing hundreds of mails is slow.
    mails = [message_from_bytes(each) for each in raw if address.encode() in each]
    return [mail for mail in mails if mail["To"] == address]


def codes_in(folder: Path, address: str, digits: int) -> list[str]:
    """Return the codes of that length that were mailed to the address, oldest first."""
    found = (re.search(rf"\b(\d{{{digits}}})\b", text_of(mail)) for mail in mails_to(folder, address))
    return [each[1] for each in found if each]


async def code_for(folder: Path, address: str, digits: int = 6, *, number: int = 1) -> str:
    """Wait until `number` codes of that length were mailed to the address; return the newest."""

    def newest() -> str:
        codes = codes_in(folder, address, digits)
        return codes[-1] if len(codes) >= number else ""

    return await until(newest)


async def registered(mesh: RunningMesh, http: httpx2.AsyncClient, **details: Any) -> Person:
    """Register a new person through the edge."""
    email = f"reader-{uuid4().hex[:12]}@example.com"
    response = await http.post("/v1/registrations", json={"email": email, "password": PASSWORD, **details})
    assert response.status_code == 200, response.text
    registration = response.json()["registration_id"]
    code = await code_for(mesh.mail_dir, email)
    response = await http.post(f"/v1/registrations/{registration}:complete", json={"code": code})
    assert response.status_code == 200, response.text
    return Person(http, email, response.json()["user"], response.json()["tokens"])


@pytest.fixture
async def person(mesh: RunningMesh, http: httpx2.AsyncClient) -> Person:
    return await registered(mesh, http)
