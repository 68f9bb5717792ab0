"""The auth service in this process, on real servers, with a clock that tests move."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import grpc
import jwt
import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis
from sqlalchemy import select, text
from storymesh.auth.v1 import account_service_pb2, registration_service_pb2, session_service_pb2
from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceStub
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceStub
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub
from storymesh.auth.v1.revocation_service_pb2_grpc import RevocationServiceStub
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub
from storymesh.auth.v1.tokens_pb2 import Tokens
from storymesh.auth.v1.user_pb2 import User
from storymesh.events.v1 import auth_events_pb2 as events

from kit.data.database import Database
from kit.events import outbox
from kit.identity.caller import Role
from kit.identity.sealing import Seal
from kit.identity.tokens import KeySet
from kit.rpc.resources import Resources
from services.auth.__main__ import api
from services.auth.config import AuthSettings
from services.auth.operations import Operations, operations, roles
from services.auth.operations.revocations import RevocationFeed
from services.auth.tables import audit_entries
from tests.conftest import empty
from tests.identity import bearer, service_tokens
from tests.statuses import reason_of

if TYPE_CHECKING:
    from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceAsyncStub
    from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceAsyncStub
    from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceAsyncStub
    from storymesh.auth.v1.revocation_service_pb2_grpc import RevocationServiceAsyncStub
    from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceAsyncStub

M = TypeVar("M", bound=Message)

PASSWORD = "correct horse battery staple"
SEAL_KEY, PEPPER, REFRESH_KEY, SIGNING_SECRET = b"s" * 32, b"p" * 32, b"r" * 32, b"k" * 32


class FakeClock:
    """A clock that starts at the present and moves only when told to."""

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
    device_token: str = ""

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return tuple(bearer(self.tokens.access_token))

    @property
    def session_id(self) -> UUID:
        return session_id_of(self.tokens)


@dataclass
class AuthWorld:
    """The service's operations and its API."""

    settings: AuthSettings
    resources: Resources
    db: Database
    redis: Redis
    clock: FakeClock
    ops: Operations
    registrations: RegistrationServiceAsyncStub
    sessions: SessionServiceAsyncStub
    accounts: AccountServiceAsyncStub
    directory: DirectoryServiceAsyncStub
    keys: KeyServiceAsyncStub
    revocations: RevocationServiceAsyncStub
    drain: Callable[[], None]
    """Starts the drain, as SIGTERM does."""

    async def start(
        self, email: str, *, password: str | None = PASSWORD, username: str | None = None, ip: str = ""
    ) -> str:
        """Start a registration and return its id."""
        request = registration_service_pb2.CreateRegistrationRequest(email=email, password=password, username=username)
        return (await self.registrations.CreateRegistration(request, metadata=coming_from(ip))).registration_id

    async def resend(self, registration_id: str, *, ip: str = "") -> datetime:
        """Mail another code and return its expiry."""
        request = registration_service_pb2.ResendRegistrationCodeRequest(registration_id=registration_id)
        answer = await self.registrations.ResendRegistrationCode(request, metadata=coming_from(ip))
        return answer.code_expire_time.ToDatetime(UTC)

    async def complete(self, registration_id: str, code: str, *, username: str | None = None) -> Member:
        request = registration_service_pb2.CompleteRegistrationRequest(
            registration_id=registration_id, code=code, username=username
        )
        response = await self.registrations.CompleteRegistration(request)
        return Member(response.user, response.tokens, response.device_token)

    async def register(self, email: str, *, password: str | None = PASSWORD, username: str | None = None) -> Member:
        registration_id = await self.start(email, password=password, username=username)
        return await self.complete(registration_id, await self.code(registration_id))

    async def sign_in(self, login: str, password: str = PASSWORD, *, device_token: str | None = None) -> Member:
        request = session_service_pb2.CreateSessionRequest(login=login, password=password, device_token=device_token)
        response = await self.sessions.CreateSession(request)
        return Member(response.user, response.tokens, response.device_token)

    async def start_code(self, email: str, *, ip: str = "", device_token: str | None = None) -> str:
        """Request a code to sign in and return the challenge's id."""
        request = session_service_pb2.StartSessionCodeRequest(email=email, device_token=device_token)
        return (await self.sessions.StartSessionCode(request, metadata=coming_from(ip))).challenge_id

    async def complete_code(self, challenge_id: str, code: str) -> Member:
        request = session_service_pb2.CompleteSessionCodeRequest(challenge_id=challenge_id, code=code)
        response = await self.sessions.CompleteSessionCode(request)
        return Member(response.user, response.tokens, response.device_token)

    async def start_reset(self, email: str, *, ip: str = "", device_token: str | None = None) -> str:
        request = account_service_pb2.StartPasswordResetRequest(email=email, device_token=device_token)
        return (await self.accounts.StartPasswordReset(request, metadata=coming_from(ip))).challenge_id

    async def complete_reset(self, challenge_id: str, code: str, password: str) -> None:
        request = account_service_pb2.CompletePasswordResetRequest(
            challenge_id=challenge_id, code=code, new_password=password
        )
        await self.accounts.CompletePasswordReset(request)

    async def change_password(
        self, member: Member, new: str, current: str = PASSWORD, *, challenge_id: str = "", code: str = ""
    ) -> None:
        request = account_service_pb2.ChangePasswordRequest(
            current_password=current, new_password=new, challenge_id=challenge_id, code=code
        )
        await self.accounts.ChangePassword(request, metadata=member.auth)

    async def start_email_change(
        self, member: Member, email: str, password: str = PASSWORD, *, challenge_id: str = "", code: str = ""
    ) -> str:
        request = account_service_pb2.StartEmailChangeRequest(
            new_email=email, password=password, challenge_id=challenge_id, code=code
        )
        return (await self.accounts.StartEmailChange(request, metadata=member.auth)).challenge_id

    async def complete_email_change(self, member: Member, challenge_id: str, code: str) -> User:
        request = account_service_pb2.CompleteEmailChangeRequest(challenge_id=challenge_id, code=code)
        return (await self.accounts.CompleteEmailChange(request, metadata=member.auth)).user

    async def delete_account(
        self, member: Member, *, password: str = "", challenge_id: str = "", code: str = ""
    ) -> None:
        request = account_service_pb2.DeleteAccountRequest(password=password, challenge_id=challenge_id, code=code)
        await self.accounts.DeleteAccount(request, metadata=member.auth)

    async def log_out(self, member: Member) -> None:
        await self.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=member.auth)

    async def audited(self) -> list[tuple[str, str]]:
        """Actions and reasons of the audit log, oldest first."""
        query = select(audit_entries.c.action, audit_entries.c.reason).order_by(audit_entries.c.id)
        async with self.db.transaction() as tx:
            return [(row.action, row.reason) for row in await tx.execute(query)]

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

    async def told(self, kind: type[M]) -> list[M]:
        """All events of one type, oldest first."""
        return [
            kind.FromString(payload) for name, payload in await self.published() if name == kind.DESCRIPTOR.full_name
        ]

    async def mails(self, challenge_id: str) -> list[events.CodeMail]:
        """The codes mailed for a challenge, unsealed as notification does it."""
        seal = Seal(SEAL_KEY)
        return [
            events.CodeMail.FromString(seal.unseal("storymesh.events.v1.CodeMail", event.sealed_mail))
            for event in await self.told(events.CodeIssued)
            if event.challenge_id == challenge_id
        ]

    async def code(self, challenge_id: str) -> str:
        """The newest code that was mailed for the challenge."""
        return (await self.mails(challenge_id))[-1].code

    @asynccontextmanager
    async def database_lost_on_writing(self, table: str) -> AsyncIterator[None]:
        """Terminate the connection that writes to the table, as when the database goes down during a transaction."""
        await self.execute(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'"
        )
        await self.execute(f"CREATE TRIGGER lose BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION lose()")
        try:
            yield
        finally:
            await self.execute("DROP FUNCTION lose CASCADE")

    @asynccontextmanager
    async def forgotten_by_redis(self, challenge_id: str) -> AsyncIterator[None]:
        """Undo what the block changes in the Redis keys of codes, as a failover to a replica without the latest writes does."""
        assert await self.redis.keys(f"codes:*:{challenge_id}")
        before = {key: await self.redis.dump(key) for key in await self.redis.keys("codes:*")}
        yield
        for key, value in before.items():
            await self.redis.restore(key, 0, value or b"", replace=True)

    @asynccontextmanager
    async def refused_by(self, table: str) -> AsyncIterator[None]:
        """Make every insert into the table fail."""
        await self.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''full''; END'"
        )
        await self.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} EXECUTE FUNCTION refuse()")
        try:
            yield
        finally:
            await self.execute("DROP FUNCTION refuse CASCADE")

    async def make_admin(self, email: str) -> Member:
        """Register an administrator and sign them in."""
        await self.register(email)
        await self.grant_admin(email)
        return await self.sign_in(email)

    async def grant_admin(self, email: str) -> None:
        await roles(self.settings, self.resources).set(email, Role.ADMIN)

    async def withdraw_admin(self, email: str) -> None:
        await roles(self.settings, self.resources).set(email, Role.USER)

    async def waits_for_a_lock(self) -> bool:
        """Whether a transaction waits for a lock."""
        return bool(await self.scalar("SELECT bool_or(NOT granted) FROM pg_locks"))

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
    """Starts a service with other settings than the default. Several share their database and Redis, like replicas."""
    db = database_of("auth")
    await empty(db)
    clock = FakeClock()
    async with AsyncExitStack() as closing:

        async def make(*, quick_feed: bool = False, **changes: object) -> AuthWorld:
            settings = AuthSettings.model_validate(
                {
                    "listen": "127.0.0.1:0",
                    "database_url": migrated("auth"),
                    "mesh_key": b"m" * 32,
                    "seal_key": SEAL_KEY,
                    "cursor_key": b"c" * 32,
                    "code_pepper": PEPPER,
                    "refresh_key": REFRESH_KEY,
                    "signing_key_secret": SIGNING_SECRET,
                    "drain_seconds": 2,
                    # Cheap hashes and unpadded answers, whose cost has tests of its own.
                    "answer_beat_seconds": 0,
                    "password_hash_memory_kib": 64,
                    "password_hash_passes": 1,
                    "password_hash_wait_seconds": 10,
                    **changes,
                }
            )
            resources = Resources("auth", settings, clock=clock, db=db, redis=redis)
            ops = operations(settings, await closing.enter_async_context(resources))
            await closing.enter_async_context(ops.passwords)
            if quick_feed:
                feed = RevocationFeed(
                    resources.database(pool=1),
                    resources.revocations,
                    ops.keys,
                    clock,
                    database_url=resources.database_url,
                    poll_seconds=0.05,
                    heartbeat_seconds=0.4,
                )
                ops = replace(ops, feed=feed)
            await ops.keys.load()
            server = api(resources, ops)
            access_tokens = resources.access_tokens_of(KeySet(ops.keys.load, clock))
            running = asyncio.create_task(server.run(access_tokens, service_tokens("auth")))

            async def stop() -> None:
                server.stopping.set()
                await running

            closing.push_async_callback(stop)
            channel = await closing.enter_async_context(grpc.aio.insecure_channel(await server.address))
            return AuthWorld(
                settings,
                resources,
                db,
                redis,
                clock,
                ops,
                RegistrationServiceStub(channel),
                SessionServiceStub(channel),
                AccountServiceStub(channel),
                DirectoryServiceStub(channel),
                KeyServiceStub(channel),
                RevocationServiceStub(channel),
                server.stopping.set,
            )

        yield make


@pytest.fixture
async def world(make_world: MakeWorld) -> AuthWorld:
    return await make_world()


def coming_from(ip: str) -> list[tuple[str, str]]:
    """The metadata that the edge adds to a call; without an address, the call bypasses the edge."""
    return [("x-storymesh-client-address", ip)] if ip else []


def session_id_of(tokens: Tokens) -> UUID:
    return UUID(jwt.decode(tokens.access_token, options={"verify_signature": False})["sid"])


def wrong(code: str) -> str:
    """A wrong code of the same length."""
    return f"{(int(code) + 1) % 10 ** len(code):0{len(code)}}"


async def outcomes(*calls: Awaitable[Any]) -> Counter[str]:
    """Run the calls concurrently and count their reasons; "" counts those that succeeded."""
    reasons: Counter[str] = Counter()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, grpc.aio.AioRpcError):
            reasons[reason_of(outcome)] += 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            reasons[""] += 1
    return reasons
