"""Builds the auth service's processes."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

from redis.asyncio import Redis
from storymesh.auth.v1 import (
    account_service_pb2_grpc,
    directory_service_pb2_grpc,
    key_service_pb2_grpc,
    registration_service_pb2_grpc,
    session_service_pb2_grpc,
)

from services.event_routes import ROUTES
from services.kit import process
from services.kit import redis as kit_redis
from services.kit.clock import Clock, system_clock
from services.kit.database import Database
from services.kit.relay import Relay
from services.kit.sealing import Seal
from services.kit.server import Server
from services.kit.tokens import AccessTokens, KeySet, ServiceTokens

from .access_tokens import AccessTokenIssuer
from .accounts import Accounts
from .codes import CodeLimits, Codes, Purpose
from .config import AuthSettings, AuthWorkerSettings
from .keys import KeyRotation, SigningKeys
from .model import Randomness, RefreshRules
from .password_policy import PasswordPolicy
from .passwords import Passwords
from .refresh_tokens import RefreshTokens
from .registrations import Registrations
from .servicer import AccountServicer, DirectoryServicer, KeyServicer, RegistrationServicer, SessionServicer
from .sessions import PasswordSignIn, Sessions
from .throttle import SignInThrottle
from .worker import Upkeep

PACKAGE = "storymesh.auth.v1"
REGISTRATION_DIGITS = 6


@dataclass(frozen=True)
class Operations:
    """What the servicers translate to."""

    registrations: Registrations
    sessions: Sessions
    password_sign_in: PasswordSignIn
    accounts: Accounts
    keys: SigningKeys


def operations(
    settings: AuthSettings, db: Database, redis: Redis, passwords: Passwords, *, clock: Clock, random: Randomness
) -> Operations:
    """Whoever calls it opens and closes what these stand on."""
    pepper = settings.code_pepper.get_secret_value()
    keys = SigningKeys(db, Seal(settings.signing_key_secret.get_secret_value()), clock)
    sessions = Sessions(
        db,
        AccessTokenIssuer(
            keys,
            clock,
            random,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            life=timedelta(seconds=settings.access_token_seconds),
        ),
        RefreshTokens(settings.refresh_key.get_secret_value()),
        RefreshRules(
            idle=timedelta(days=settings.session_idle_days),
            absolute=timedelta(days=settings.session_absolute_days),
            grace=timedelta(seconds=settings.refresh_grace_seconds),
            repeats=settings.refresh_repeats,
        ),
        clock=clock,
        random=random,
    )
    throttle = SignInThrottle(
        redis,
        clock,
        pepper=pepper,
        free_failures=settings.sign_in_free_failures,
        longest_wait=timedelta(seconds=settings.sign_in_longest_wait_seconds),
    )
    limits = CodeLimits(
        life=timedelta(seconds=settings.code_seconds),
        challenge_life=timedelta(seconds=settings.registration_seconds),
        attempts=settings.code_attempts,
        attempts_a_day=settings.code_attempts_a_day,
        cooldown=timedelta(seconds=settings.code_cooldown_seconds),
        an_hour=settings.codes_an_hour,
        a_day=settings.codes_a_day,
        live=settings.live_registrations,
    )
    registrations = Registrations(
        db,
        Codes(
            redis, Purpose.REGISTRATION, limits, pepper=pepper, digits=REGISTRATION_DIGITS, clock=clock, random=random
        ),
        passwords,
        PasswordPolicy(settings.password_min_length),
        sessions,
        seal=Seal(settings.seal_key.get_secret_value()),
        clock=clock,
        random=random,
        life=timedelta(seconds=settings.registration_seconds),
    )
    return Operations(
        registrations=registrations,
        sessions=sessions,
        password_sign_in=PasswordSignIn(db, sessions, passwords, throttle),
        accounts=Accounts(db, clock),
        keys=keys,
    )


def add_services(server: Server, ops: Operations) -> None:
    registration = RegistrationServicer(ops.registrations)
    session = SessionServicer(ops.sessions, ops.password_sign_in)
    account, directory = AccountServicer(ops.accounts), DirectoryServicer(ops.accounts)
    key = KeyServicer(ops.keys)
    server.add(
        f"{PACKAGE}.RegistrationService",
        lambda to: registration_service_pb2_grpc.add_RegistrationServiceServicer_to_server(registration, to),
    )
    server.add(
        f"{PACKAGE}.SessionService",
        lambda to: session_service_pb2_grpc.add_SessionServiceServicer_to_server(session, to),
    )
    server.add(
        f"{PACKAGE}.AccountService",
        lambda to: account_service_pb2_grpc.add_AccountServiceServicer_to_server(account, to),
    )
    server.add(
        f"{PACKAGE}.DirectoryService",
        lambda to: directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server(directory, to),
    )
    server.add(f"{PACKAGE}.KeyService", lambda to: key_service_pb2_grpc.add_KeyServiceServicer_to_server(key, to))


def hashing(settings: AuthSettings) -> Passwords:
    return Passwords(
        memory_kib=settings.password_hash_memory_kib,
        passes=settings.password_hash_passes,
        threads=settings.password_hash_threads,
        wait_seconds=settings.password_hash_wait_seconds,
    )


async def serve(settings: AuthSettings) -> None:
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=settings.database_pool)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        passwords = hashing(settings)
        closing.callback(passwords.close)
        ops = operations(settings, db, redis, passwords, clock=system_clock, random=secrets.token_bytes)
        await ops.keys.refresh()
        server = Server(settings, required={"postgres": db.check, "redis": redis.ping, "signing_keys": ops.keys.check})
        add_services(server, ops)
        server.background(ops.keys.run)
        await server.run(
            # Its own tokens are verified like everybody's, only the keys are nearer.
            AccessTokens(
                KeySet(ops.keys.load, system_clock), issuer=settings.token_issuer, audience=settings.token_audience
            ),
            ServiceTokens(settings.mesh_key.get_secret_value(), service="auth", clock=system_clock),
        )


async def work(settings: AuthWorkerSettings) -> None:
    async with AsyncExitStack() as closing:
        database_url = settings.database_url.get_secret_value()
        db = Database(database_url, pool=settings.database_pool)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        rotation = KeyRotation(
            db,
            Seal(settings.signing_key_secret.get_secret_value()),
            system_clock,
            period=timedelta(days=settings.signing_key_days),
        )
        server = Server(settings, required={"postgres": db.check, "redis": redis.ping})
        server.background(Relay(db, redis, ROUTES, database_url=database_url).run)
        server.background(Upkeep(db, rotation, system_clock).run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "auth",
        serve=process.Command("serve registration, sign-in, accounts and keys", AuthSettings, serve),
        worker=process.Command(
            "publish the service's events, replace keys and remove what has ended", AuthWorkerSettings, work
        ),
        migrate=process.migrate("services.auth"),
    )
