"""Builds the auth service's processes."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from redis.asyncio import Redis
from storymesh.auth.v1 import (
    account_service_pb2_grpc,
    directory_service_pb2_grpc,
    key_service_pb2_grpc,
    registration_service_pb2_grpc,
    revocation_service_pb2_grpc,
    session_service_pb2_grpc,
)

from services.event_routes import ROUTES
from services.kit import process
from services.kit import redis as kit_redis
from services.kit.caller import Role
from services.kit.clock import Clock, system_clock
from services.kit.database import Database
from services.kit.paging import Pages
from services.kit.process import Argument
from services.kit.relay import Relay
from services.kit.revocations import Revocations
from services.kit.sealing import Seal
from services.kit.server import Server
from services.kit.signing import Signer
from services.kit.tokens import AccessTokens, KeySet, ServiceTokens

from .access_tokens import AccessTokenIssuer
from .accounts import AT_THE_SERVER, Accounts, Roles
from .audit import Audit
from .codes import CodeLimits, Codes
from .config import AuthSettings, AuthWorkerSettings
from .device_tokens import DeviceTokens
from .email_changes import EmailChanges
from .email_stops import EmailStops
from .endings import Endings
from .keys import KeyRotation, SigningKeys
from .model import Purpose, Randomness
from .pacing import Pace
from .password_changes import PasswordChanges
from .password_policy import PasswordPolicy
from .passwords import Passwords
from .proofs import CodeProofs, OwnerProofs, PasswordProofs
from .refresh_rules import RefreshRules
from .refresh_tokens import RefreshTokens
from .registrations import Registrations
from .revocations import RevocationFeed
from .sealed_mails import SealedMails
from .servicer import (
    AccountServicer,
    DirectoryServicer,
    KeyServicer,
    RegistrationServicer,
    RevocationServicer,
    SessionServicer,
)
from .sessions import Sessions
from .sign_in import CodeSignIn, PasswordSignIn
from .throttle import SignInThrottle, ThrottleLimits
from .username_tries import UsernameTries
from .worker import Upkeep

PACKAGE = "storymesh.auth.v1"
REGISTRATION_DIGITS = 6
DIGITS = 8

EMAIL = Argument("email", "the account's address")


@dataclass(frozen=True)
class Operations:
    """What the servicers translate to."""

    registrations: Registrations
    sessions: Sessions
    password_sign_in: PasswordSignIn
    code_sign_in: CodeSignIn
    accounts: Accounts
    password_changes: PasswordChanges
    email_changes: EmailChanges
    email_stops: EmailStops
    keys: SigningKeys
    key_rotation: KeyRotation
    revocations: Revocations
    feed: RevocationFeed
    pace: Pace


def operations(
    settings: AuthSettings,
    db: Database,
    feed_db: Database,
    redis: Redis,
    passwords: Passwords,
    *,
    clock: Clock,
    random: Randomness,
) -> Operations:
    """Whoever calls it opens and closes what these stand on. `feed_db` is the feed's own, so that no flood of calls delays it."""
    audit = Audit(db, clock)
    endings = Endings(clock, token_life=timedelta(seconds=settings.access_token_seconds))
    refresh_keys = settings.refresh_key.get_secret_value()
    device_tokens = DeviceTokens(refresh_keys, random)
    mails = SealedMails(Seal(settings.seal_key.get_secret_value()))
    policy = PasswordPolicy(settings.password_min_length, settings.password_rule)
    signing_keys = SigningKeys(
        db,
        Seal(settings.signing_key_secret.get_secret_value()),
        clock,
        publish_ahead=timedelta(seconds=settings.signing_key_publish_seconds),
    )
    sessions = Sessions(
        db,
        access_tokens=AccessTokenIssuer(
            signing_keys,
            clock,
            random,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            life=timedelta(seconds=settings.access_token_seconds),
        ),
        refresh_tokens=RefreshTokens(refresh_keys),
        device_tokens=device_tokens,
        rules=RefreshRules(
            idle=timedelta(days=settings.session_idle_days),
            absolute=timedelta(days=settings.session_absolute_days),
            grace=timedelta(seconds=settings.refresh_grace_seconds),
            repeats=settings.refresh_repeats,
            late_repeats=settings.refresh_late_repeats,
            in_a_row=settings.refreshes_in_a_row,
            pause=timedelta(seconds=settings.refresh_pause_seconds),
        ),
        most=settings.sessions_per_account,
        endings=endings,
        mails=mails,
        audit=audit,
        pages=Pages(Signer(settings.cursor_key.get_secret_value())),
        clock=clock,
        random=random,
    )
    password_proofs = PasswordProofs(
        db,
        passwords=passwords,
        throttle=throttle(settings, redis, clock),
        audit=audit,
        clock=clock,
        most_failures=settings.sign_in_most_failures,
    )
    codes = {purpose: codes_of(purpose, settings, redis, clock, random) for purpose in Purpose}
    code_proofs = CodeProofs(db, codes=codes, device_tokens=device_tokens, mails=mails, clock=clock, random=random)
    owner_proofs = OwnerProofs(db, endings, passwords=password_proofs, codes=code_proofs)
    email_stops = EmailStops(
        db,
        mails=mails,
        endings=endings,
        audit=audit,
        clock=clock,
        random=random,
        life=timedelta(days=settings.email_change_stop_days),
    )
    revocations = Revocations(clock)
    return Operations(
        registrations=Registrations(
            db,
            codes=codes[Purpose.REGISTRATION],
            passwords=passwords,
            policy=policy,
            sessions=sessions,
            mails=mails,
            audit=audit,
            clock=clock,
            random=random,
            life=timedelta(seconds=settings.registration_seconds),
        ),
        sessions=sessions,
        password_sign_in=PasswordSignIn(
            db, sessions=sessions, proofs=password_proofs, passwords=passwords, device_tokens=device_tokens, audit=audit
        ),
        code_sign_in=CodeSignIn(
            db, sessions=sessions, code_proofs=code_proofs, password_proofs=password_proofs, audit=audit
        ),
        accounts=Accounts(
            db,
            endings=endings,
            owner_proofs=owner_proofs,
            username_tries=UsernameTries(
                redis,
                clock,
                per_account=settings.username_tries_an_hour,
                per_network=settings.username_tries_per_network,
                peppers=settings.code_pepper.get_secret_value(),
            ),
            mails=mails,
            audit=audit,
        ),
        password_changes=PasswordChanges(
            db,
            policy=policy,
            passwords=passwords,
            owner_proofs=owner_proofs,
            password_proofs=password_proofs,
            code_proofs=code_proofs,
            endings=endings,
            audit=audit,
            clock=clock,
        ),
        email_stops=email_stops,
        email_changes=EmailChanges(
            db,
            owner_proofs=owner_proofs,
            code_proofs=code_proofs,
            mails=mails,
            stops=email_stops,
            endings=endings,
            audit=audit,
        ),
        keys=signing_keys,
        key_rotation=rotation(settings, db, clock),
        revocations=revocations,
        feed=RevocationFeed(
            feed_db, revocations, signing_keys, clock, database_url=settings.database_url.get_secret_value()
        ),
        pace=Pace(settings.answer_beat_seconds),
    )


def codes_of(purpose: Purpose, settings: AuthSettings, redis: Redis, clock: Clock, random: Randomness) -> Codes:
    registering = purpose is Purpose.REGISTRATION
    seconds = settings.sign_in_code_seconds if purpose is Purpose.SIGN_IN else settings.code_seconds
    limits = CodeLimits(
        life=timedelta(seconds=seconds),
        # Only a registration can be mailed another code: it alone outlives its first one.
        challenge_life=timedelta(seconds=settings.registration_seconds if registering else seconds),
        attempts=settings.code_attempts,
        attempts_a_day=settings.code_attempts_a_day,
        cooldown=timedelta(seconds=settings.code_cooldown_seconds),
        repeat=timedelta(seconds=min(settings.code_repeat_seconds, settings.code_cooldown_seconds)),
        an_hour=settings.codes_an_hour,
        a_day=settings.codes_a_day,
        an_hour_altogether=settings.codes_an_hour_altogether,
        a_day_altogether=settings.codes_a_day_altogether,
    )
    digits = REGISTRATION_DIGITS if registering else DIGITS
    peppers = settings.code_pepper.get_secret_value()
    return Codes(redis, purpose, limits, peppers=peppers, digits=digits, clock=clock, random=random)


def throttle(settings: AuthSettings, redis: Redis, clock: Clock) -> SignInThrottle:
    limits = ThrottleLimits(
        free_failures=settings.sign_in_free_failures,
        longest_wait=timedelta(seconds=settings.sign_in_longest_wait_seconds),
        window=timedelta(seconds=settings.sign_in_window_seconds),
        per_network=settings.sign_in_failures_per_network,
        altogether=settings.sign_in_failures_altogether,
    )
    return SignInThrottle(redis, clock, limits, peppers=settings.code_pepper.get_secret_value())


def rotation(settings: AuthWorkerSettings, db: Database, clock: Clock) -> KeyRotation:
    return KeyRotation(
        db,
        Seal(settings.signing_key_secret.get_secret_value()),
        Endings(clock, token_life=timedelta(seconds=settings.access_token_seconds)),
        Audit(db, clock),
        clock,
        period=timedelta(days=settings.signing_key_days),
        publish_ahead=timedelta(seconds=settings.signing_key_publish_seconds),
    )


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


def hashing(settings: AuthSettings) -> Passwords:
    return Passwords(
        memory_kib=settings.password_hash_memory_kib,
        passes=settings.password_hash_passes,
        processes=settings.password_hash_processes,
        wait_seconds=settings.password_hash_wait_seconds,
    )


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
        server.metrics.show(ops.revocations)
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
        server.background(Relay(db, redis, ROUTES, service="auth", database_url=database_url).run)
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


def roles(settings: AuthWorkerSettings, db: Database) -> Roles:
    endings = Endings(system_clock, token_life=timedelta(seconds=settings.access_token_seconds))
    return Roles(db, endings, Audit(db, system_clock))


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
        migrate=process.migrate("services.auth"),
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
