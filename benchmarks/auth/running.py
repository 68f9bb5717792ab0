"""Runs a real auth process with accounts that can sign in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from sqlalchemy import select
from storymesh.auth.v1 import registration_service_pb2 as pb
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub
from storymesh.events.v1 import auth_events_pb2 as events

from benchmarks.machine import cpu_seconds, usable_cores
from kit.data.database import Database
from kit.events import outbox
from kit.identity.sealing import Seal
from local.harness import RunningMesh, running_mesh
from local.settings import users_settings
from services.auth.config import AuthSettings

from .load import Person

_COMPONENTS = ("postgres", "redis", "auth-migrate", "auth")
_PASSWORD = "a password that only this run knows"  # for accounts that are deleted with the run's data

# Without this, a benchmark from one address with few accounts would measure the throttles. The cost of hashes stays the default.
_LOOSENED = {
    f"STORYMESH_SIGN_IN_{limit}": "1000000000"
    for limit in ("FREE_FAILURES", "MOST_FAILURES", "FAILURES_PER_NETWORK", "FAILURES_ALTOGETHER")
} | {"STORYMESH_REFRESHES_IN_A_ROW": "1000000000"}


@dataclass
class RunningAuth:
    """A running auth process; ends with the block that started it."""

    mesh: RunningMesh
    target: str
    people: list[Person]

    def cpu_seconds(self, component: str) -> float:
        return cpu_seconds([self.mesh.pid(component)])


@asynccontextmanager
async def running_auth(state_dir: Path, *, people: int) -> AsyncIterator[RunningAuth]:
    """Runs auth alone, with production's defaults except for the throttles, and registers `people` accounts.

    STORYMESH_* variables of the caller take precedence, so that other settings can be measured.
    """
    environment = _LOOSENED | users_settings()
    async with running_mesh(state_dir, only=_COMPONENTS, environment=environment, durable=True) as mesh:
        target = mesh.address("auth")
        codes = Codes(mesh)
        try:
            async with grpc.aio.insecure_channel(target) as channel:
                # At most as many at a time as can be hashed, because more could be refused.
                gate = asyncio.Semaphore(usable_cores())
                registered = await asyncio.gather(*(_register(channel, codes, n, gate) for n in range(people)))
        finally:
            await codes.close()
        yield RunningAuth(mesh, target, list(registered))


async def _register(channel: grpc.aio.Channel, codes: Codes, number: int, gate: asyncio.Semaphore) -> Person:
    async with gate:
        await complete_registration(channel, codes, number)
    return Person(_email(number), _PASSWORD)


async def complete_registration(channel: grpc.aio.Channel, codes: Codes, number: int) -> str:
    """Registers an account and returns its access token."""
    stub = RegistrationServiceStub(channel)
    started = await stub.CreateRegistration(
        pb.CreateRegistrationRequest(email=_email(number), password=_PASSWORD), timeout=30
    )
    code = await codes.of(started.registration_id)
    request = pb.CompleteRegistrationRequest(registration_id=started.registration_id, code=code)
    return (await stub.CompleteRegistration(request, timeout=30)).tokens.access_token


def _email(number: int) -> str:
    return f"reader-{number}@example.com"


class Codes:
    """Reads codes from notification's inbox, so that no mail is sent."""

    def __init__(self, mesh: RunningMesh) -> None:
        settings = AuthSettings(_secrets_dir=mesh.secrets_dir("auth"))
        self._seal = Seal(settings.seal_key.get_secret_value())
        self._db = Database(mesh.database_url("auth"), pool=2)

    async def of(self, challenge_id: str) -> str:
        query = (
            select(outbox.table.c.payload)
            .where(outbox.table.c.type == events.CodeIssued.DESCRIPTOR.full_name)
            .order_by(outbox.table.c.position.desc())
        )
        async with self._db.transaction() as tx:
            issued = [events.CodeIssued.FromString(payload) for payload in await tx.scalars(query)]
        sealed = next(event.sealed_mail for event in issued if event.challenge_id == challenge_id)
        return events.CodeMail.FromString(self._seal.unseal(events.CodeMail.DESCRIPTOR.full_name, sealed)).code

    async def close(self) -> None:
        await self._db.close()
