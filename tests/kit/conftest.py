"""The desk on a real server with all interceptors, and a database with the kit's own tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
import psycopg
import pytest
from grpc.aio import Channel
from sqlalchemy import Column, Integer, Table, Text, Uuid, create_engine
from sqlalchemy.engine import make_url

from kit.data.database import Database
from kit.events import dead_letter_store, erasure
from kit.events.inbox_stream import InboxTuning
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from local.harness import Servers
from local.harness import servers as running_servers
from tests.conftest import empty
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks

SETTINGS = ServiceSettings(
    listen="127.0.0.1:0", mesh_key="bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0=", call_seconds=1.0, drain_seconds=1.0
)


QUICK = InboxTuning(block_seconds=0.05, look_seconds=0.02)
"""For an inbox that is stopped soon after."""

effects = Table(
    "effects",
    dead_letter_store.dead_letters.metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("event_id", Uuid, nullable=False),
    Column("worker", Text, nullable=False),
)
"""What the handlers of these tests do: not unique, so that doing it twice shows."""


@dataclass
class RunningDesk:
    """What the desk does can be changed while it serves."""

    desk: desks.Desk
    stub: desks.DeskStub
    channel: Channel
    issuer: Issuer
    address: str
    server: Server
    settings: ServiceSettings


@pytest.fixture
def transport() -> str:
    """On grpcio, except in the folder whose tests are about transports."""
    return "grpcio"


@pytest.fixture
def settings(transport: str) -> ServiceSettings:
    return SETTINGS.model_copy(update={"grpc_server": transport})


@pytest.fixture
async def desk(settings: ServiceSettings) -> AsyncIterator[RunningDesk]:
    served, issuer = desks.Desk(), Issuer()
    server = Server(settings, required={})
    desks.add(server, served)
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("desk")))
    address = await server.address
    async with grpc.aio.insecure_channel(address) as channel:
        yield RunningDesk(served, desks.DeskStub(channel), channel, issuer, address, server, settings)
    server.stopping.set()
    await running


@pytest.fixture(scope="session")
def database_url(servers: Servers) -> str:
    """A database of the kit's own, with the tables that services create by their migrations."""
    with psycopg.connect(servers.postgres_admin_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE kit")
    url = make_url(servers.postgres_admin_url).set(drivername="postgresql+psycopg", database="kit")
    engine = create_engine(url)
    # All that the kit has: its modules add their tables to the outbox's metadata.
    erasure.erased_subjects.metadata.create_all(engine)
    engine.dispose()
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
async def connected(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool=20)
    yield database
    await database.close()


@pytest.fixture
async def db(connected: Database) -> Database:
    """Empty."""
    await empty(connected)
    return connected


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Redis that keeps its data when it is killed, and that no other tests use."""
    with running_servers(tmp_path_factory.mktemp("mortal"), postgres=False, mail=False, durable=True) as running:
        yield running


async def crash(servers: Servers) -> None:
    """Kills Postgres and waits for the next one.

    The tests' Postgres does not wait for its disk, so what was committed is written down first: losing that is no finding.
    """
    async with await psycopg.AsyncConnection.connect(servers.postgres_admin_url, autocommit=True) as connection:
        await connection.execute("CHECKPOINT")
    old = servers.pid("postgres")
    servers.kill("postgres")
    await servers.healthy("postgres", not_pid=old)
