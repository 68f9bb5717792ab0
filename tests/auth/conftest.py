"""The auth service in this process, on real servers, with a clock that tests move."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import jwt
import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text
from storymesh.auth.v1 import account_service_pb2, registration_service_pb2, session_service_pb2
from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceStub
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceStub
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub
from storymesh.auth.v1.tokens_pb2 import Tokens
from storymesh.auth.v1.user_pb2 import User
from storymesh.events.v1 import auth_events_pb2 as events

from services.auth.__main__ import Operations, add_services, hashing, operations
from services.auth.config import AuthSettings
from services.kit import outbox
from services.kit.database import Database
from services.kit.sealing import Seal
from services.kit.server import Server
from services.kit.tokens import AccessTokens, KeySet
from tests.conftest import empty
from tests.identity import bearer, service_tokens

if TYPE_CHECKING:
    from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceAsyncStub
    from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceAsyncStub
    from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceAsyncStub
    from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceAsyncStub

PASSWORD = "correct horse battery staple"
SEAL_KEY, PEPPER, REFRESH_KEY, SIGNING_SECRET = b"s" * 32, b"p" * 32, b"r" * 32, b"k" * 32


class FakeClock:
    """Starts at the present, for access tokens are verified against real time."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **units: float) -> None:
        self.now += timedelta(**units)


@dataclass
class Member:
    """A registered person with a session."""

    user: User
    tokens: Tokens

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return tuple(bearer(self.tokens.access_token))


@dataclass
class AuthWorld:
    """The service's operations and its API."""

    settings: AuthSettings
    db: Database
    redis: Redis
    clock: FakeClock
    ops: Operations
    registrations: RegistrationServiceAsyncStub
    sessions: SessionServiceAsyncStub
    accounts: AccountServiceAsyncStub
    directory: DirectoryServiceAsyncStub
    keys: KeyServiceAsyncStub

    async def start(self, email: str, *, password: str = PASSWORD, username: str | None = None) -> str:
        """Starts a registration and returns its id."""
        request = registration_service_pb2.CreateRegistrationRequest(email=email, password=password, username=username)
        return (await self.registrations.CreateRegistration(request)).registration_id

    async def complete(self, registration_id: str, code: str) -> Member:
        request = registration_service_pb2.CompleteRegistrationRequest(registration_id=registration_id, code=code)
        response = await self.registrations.CompleteRegistration(request)
        return Member(response.user, response.tokens)

    async def register(self, email: str, *, password: str = PASSWORD, username: str | None = None) -> Member:
        registration_id = await self.start(email, password=password, username=username)
        return await self.complete(registration_id, await self.code(registration_id))

    async def sign_in(self, login: str, password: str = PASSWORD) -> Member:
        request = session_service_pb2.CreateSessionRequest(login=login, password=password)
        response = await self.sessions.CreateSession(request)
        return Member(response.user, response.tokens)

    async def refresh(self, refresh_token: str) -> Tokens:
        request = session_service_pb2.RefreshSessionRequest(refresh_token=refresh_token)
        return (await self.sessions.RefreshSession(request)).tokens

    async def account(self, member: Member) -> User:
        request = account_service_pb2.GetAccountRequest()
        return (await self.accounts.GetAccount(request, metadata=member.auth)).user

    async def published(self) -> list[tuple[str, bytes]]:
        """Types and payloads of all events, oldest first."""
        query = select(outbox.table.c.type, outbox.table.c.payload).order_by(outbox.table.c.position)
        async with self.db.transaction() as tx:
            return [(row.type, row.payload) for row in await tx.execute(query)]

    async def mails(self, challenge_id: str) -> list[events.CodeMail]:
        """The codes mailed for a challenge, opened as notification does."""
        issued = [
            events.CodeIssued.FromString(payload)
            for kind, payload in await self.published()
            if kind == events.CodeIssued.DESCRIPTOR.full_name
        ]
        seal = Seal(SEAL_KEY)
        return [
            events.CodeMail.FromString(seal.unseal("storymesh.events.v1.CodeMail", event.sealed_mail))
            for event in issued
            if event.challenge_id == challenge_id
        ]

    async def code(self, challenge_id: str) -> str:
        """The newest code that was mailed for the challenge."""
        return (await self.mails(challenge_id))[-1].code

    @asynccontextmanager
    async def database_lost_on_writing(self, table: str) -> AsyncIterator[None]:
        """Ends the connection of whoever writes to the table, as a database that goes down in the middle does."""
        await self.execute(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'"
        )
        await self.execute(f"CREATE TRIGGER lose BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION lose()")
        try:
            yield
        finally:
            await self.execute("DROP FUNCTION lose CASCADE")

    async def execute(self, statement: str, **values: object) -> None:
        async with self.db.transaction() as tx:
            await tx.execute(text(statement), values)

    async def scalar(self, query: str, **values: object) -> object:
        async with self.db.transaction() as tx:
            return await tx.scalar(text(query), values)


MakeWorld = Callable[..., Awaitable[AuthWorld]]


@pytest.fixture
async def make_world(
    database_of: Callable[[str], Database], migrated: Callable[[str], str], redis: Redis
) -> AsyncIterator[MakeWorld]:
    """Starts a service with other settings than the default; several share their database and Redis, like replicas."""
    db = database_of("auth")
    await empty(db)
    clock = FakeClock()
    async with AsyncExitStack() as closing:

        async def make(**changes: object) -> AuthWorld:
            settings = AuthSettings.model_validate(
                {
                    "listen": "127.0.0.1:0",
                    "database_url": migrated("auth"),
                    "mesh_key": b"m" * 32,
                    "seal_key": SEAL_KEY,
                    "code_pepper": PEPPER,
                    "refresh_key": REFRESH_KEY,
                    "signing_key_secret": SIGNING_SECRET,
                    "drain_seconds": 2,
                    # Cheap hashes: what they cost is tested apart.
                    "password_hash_memory_kib": 64,
                    "password_hash_passes": 1,
                    "password_hash_wait_seconds": 10,
                    **changes,
                }
            )
            passwords = hashing(settings)
            closing.callback(passwords.close)
            ops = operations(settings, db, redis, passwords, clock=clock, random=secrets.token_bytes)
            await ops.keys.load()
            server = Server(settings, required={"postgres": db.check})
            add_services(server, ops)
            tokens = AccessTokens(
                KeySet(ops.keys.load, clock), issuer=settings.token_issuer, audience=settings.token_audience
            )
            running = asyncio.create_task(server.run(tokens, service_tokens("auth")))

            async def stop() -> None:
                server.stopping.set()
                await running

            closing.push_async_callback(stop)
            channel = await closing.enter_async_context(grpc.aio.insecure_channel(await server.address))
            return AuthWorld(
                settings,
                db,
                redis,
                clock,
                ops,
                RegistrationServiceStub(channel),
                SessionServiceStub(channel),
                AccountServiceStub(channel),
                DirectoryServiceStub(channel),
                KeyServiceStub(channel),
            )

        yield make


@pytest.fixture
async def world(make_world: MakeWorld) -> AuthWorld:
    return await make_world()


def session_id_of(tokens: Tokens) -> UUID:
    return UUID(jwt.decode(tokens.access_token, options={"verify_signature": False})["sid"])
