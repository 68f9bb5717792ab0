"""Builds the auth service's processes."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from storymesh.auth.v1 import (
    account_service_pb2_grpc,
    directory_service_pb2_grpc,
    key_service_pb2_grpc,
    registration_service_pb2_grpc,
    revocation_service_pb2_grpc,
    session_service_pb2_grpc,
)

from kit.data import migrations
from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.relay import Relay
from kit.identity.caller import Role
from kit.identity.tokens import AccessTokens, KeySet, ServiceTokens
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.clock import system_clock
from kit.runtime.process import Argument
from mesh.event_routes import routes

from .composition import Operations, hashing, operations, roles, rotation
from .config import AuthSettings, AuthWorkerSettings
from .operations.accounts import AT_THE_SERVER
from .servicer import (
    AccountServicer,
    DirectoryServicer,
    KeyServicer,
    RegistrationServicer,
    RevocationServicer,
    SessionServicer,
)
from .worker import Upkeep

PACKAGE = "storymesh.auth.v1"

EMAIL = Argument("email", "the account's address")


def add_services(server: Server, ops: Operations) -> None:
    registration = RegistrationServicer(ops.registrations, ops.pace)
    session = SessionServicer(ops.sessions, ops.password_sign_in, ops.code_sign_in, ops.pace)
    account = AccountServicer(ops.accounts, ops.password_changes, ops.email_changes, ops.email_stops, ops.pace)
    directory, revocation = DirectoryServicer(ops.accounts), RevocationServicer(ops.feed)
    key = KeyServicer(ops.keys, ops.key_rotation)
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
    server.add(
        f"{PACKAGE}.RevocationService",
        lambda to: revocation_service_pb2_grpc.add_RevocationServiceServicer_to_server(revocation, to),
    )
    server.add(f"{PACKAGE}.KeyService", lambda to: key_service_pb2_grpc.add_KeyServiceServicer_to_server(key, to))


async def serve(settings: AuthSettings) -> None:
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=settings.database_pool)
        closing.push_async_callback(db.close)
        feed_db = Database(settings.database_url.get_secret_value(), pool=1)
        closing.push_async_callback(feed_db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        passwords = await closing.enter_async_context(hashing(settings))
        ops = operations(settings, db, feed_db, redis, passwords, clock=system_clock, random=secrets.token_bytes)
        await ops.keys.refresh()
        await ops.feed.refresh()
        server = Server(
            settings,
            required={
                "postgres": db.check,
                "signing_keys": ops.keys.check,
                "revocation_snapshot": ops.revocations.check_known,
            },
            # Most of what people do here needs no Redis, and what does says so by itself.
            optional={"redis": redis.ping, "revocations": ops.revocations.check_fresh},
        )
        add_services(server, ops)
        for liveness in (db.watch, feed_db.watch, kit_redis.liveness(redis).watch):
            server.background(liveness)
        server.background(ops.keys.run)
        server.background(ops.feed.run)
        ops.revocations.show_in(server.metrics)
        await server.run(
            # Its own tokens are verified like everybody's, only the keys and the revocations are nearer.
            AccessTokens(
                KeySet(ops.keys.load, system_clock),
                ops.revocations,
                issuer=settings.token_issuer,
                audience=settings.token_audience,
            ),
            ServiceTokens(settings.mesh_key.get_secret_value(), service="auth", clock=system_clock),
        )


async def work(settings: AuthWorkerSettings) -> None:
    async with AsyncExitStack() as closing:
        database_url = settings.database_url.get_secret_value()
        db = Database(database_url, pool=settings.database_pool)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        server = Server(settings, required={"postgres": db.check, "redis": redis.ping})
        server.background(db.watch)
        server.background(kit_redis.liveness(redis).watch)
        server.background(Relay(db, redis, routes(), service="auth", database_url=database_url).run)
        upkeep = Upkeep(
            db,
            rotation(settings, db, system_clock),
            system_clock,
            every_seconds=settings.upkeep_seconds,
            audit_kept=timedelta(days=settings.audit_days),
        )
        server.background(upkeep.run)
        await server.run()


async def make_admin(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with database(settings) as db:
        changed = await roles(settings, db).set(arguments.email, Role.ADMIN)
    print(
        f"{arguments.email} {'is an administrator from the next sign-in or refresh on' if changed else 'was one before'}."
    )


async def remove_admin(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with database(settings) as db:
        changed = await roles(settings, db).set(arguments.email, Role.USER)
    print(f"{arguments.email} {'is no administrator any more and has to sign in again' if changed else 'was none'}.")


async def rotate_keys(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with database(settings) as db:
        kid, activates_at = await rotation(settings, db, system_clock).rotate(None, AT_THE_SERVER)
    print(f"Key {kid} signs from {activates_at:%Y-%m-%d %H:%M:%S} UTC on.")


async def drop_key(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with database(settings) as db:
        active = await rotation(settings, db, system_clock).drop(arguments.kid, None, AT_THE_SERVER)
    print(f"Key {arguments.kid} is dropped; key {active} signs.")


@asynccontextmanager
async def database(settings: AuthWorkerSettings) -> AsyncIterator[Database]:
    db = Database(settings.database_url.get_secret_value(), pool=1)
    try:
        yield db
    finally:
        await db.close()


if __name__ == "__main__":
    process.main(
        "auth",
        serve=process.Command("serve registration, sign-in, accounts and keys", AuthSettings, serve),
        worker=process.Command(
            "publish the service's events, replace keys and remove what has ended", AuthWorkerSettings, work
        ),
        migrate=migrations.command("services.auth"),
        make_admin=process.Command(
            "make an account an administrator; the only way to make the first one",
            AuthWorkerSettings,
            make_admin,
            (EMAIL,),
        ),
        remove_admin=process.Command(
            "take the role from an administrator and end their sessions", AuthWorkerSettings, remove_admin, (EMAIL,)
        ),
        rotate_keys=process.Command(
            "let the signing key's successor take over now, or as soon as all verifiers know it",
            AuthWorkerSettings,
            rotate_keys,
            (),
        ),
        drop_key=process.Command(
            "withdraw a leaked signing key at once, with every access token that it signed",
            AuthWorkerSettings,
            drop_key,
            (Argument("kid", "the key's id, as in the key set"),),
        ),
    )
