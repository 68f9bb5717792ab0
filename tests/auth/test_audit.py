"""The audit log: who did what to whose account, from where, and who was refused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from grpc.aio import AioRpcError, Metadata
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from storymesh.auth.v1 import account_service_pb2 as accounts
from storymesh.auth.v1 import key_service_pb2 as keys
from storymesh.auth.v1 import registration_service_pb2 as registrations
from storymesh.auth.v1 import session_service_pb2 as sessions

from services.auth.tables import audit_entries
from services.auth.worker import Upkeep
from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, wrong
from tests.identity import bearer

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
NEW, WRONG = "an entirely different phrase", "not the right password"
HOME = (("x-storymesh-client-address", "198.51.100.7"), ("x-user-agent", "Reader/1.0"))
FROM_HOME = ("198.51.100.7", "Reader/1.0")

Entry = tuple[str, str, str | None, str | None, str | None, str, str]


async def entries(world: AuthWorld) -> list[Entry]:
    """Action, reason, actor, subject, session, address and agent, oldest first."""
    async with world.db.transaction() as tx:
        rows = (await tx.execute(select(audit_entries).order_by(audit_entries.c.id))).all()
    return [
        (
            row.action,
            row.reason,
            _text(row.actor_id),
            _text(row.subject_id),
            _text(row.session_id),
            row.ip,
            row.user_agent,
        )
        for row in rows
    ]


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


async def added(world: AuthWorld, call: Callable[[], Awaitable[Any]]) -> list[Entry]:
    """The entries that a call from home adds, whether it succeeds or not. Asserts that all have its origin."""
    before = len(await entries(world))
    with suppress(AioRpcError):
        await call()
    new = (await entries(world))[before:]
    assert {entry[5:] for entry in new} <= {FROM_HOME}
    return new


def at_home(member: Member) -> Metadata:
    return Metadata(*member.auth, *HOME)


def done(action: str, member: Member, session_id: UUID | None = None) -> list[Entry]:
    """A success at the person's own account."""
    return [(action, "", member.user.id, member.user.id, str(session_id or member.session_id), *FROM_HOME)]


def refusal(action: str, reason: str, member: Member) -> list[Entry]:
    """A refused attempt of a signed-in person at their own account."""
    return [(action, reason, member.user.id, member.user.id, str(member.session_id), *FROM_HOME)]


def attempt(action: str, reason: str, subject: Member | None) -> list[Entry]:
    """A refused attempt of an unauthenticated person."""
    return [(action, reason, None, subject.user.id if subject else None, None, *FROM_HOME)]


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="ada")


class TestUnproven:
    async def test_a_registration(self, world: AuthWorld) -> None:
        registration = await world.start(ADA)
        code = await world.code(registration)
        request = registrations.CompleteRegistrationRequest(registration_id=registration, code=wrong(code))
        call = partial(world.registrations.CompleteRegistration, request, metadata=HOME)
        assert await added(world, call) == attempt("REGISTRATION", "CODE_INVALID", None)
        request.code = code
        (entry,) = await added(world, partial(world.registrations.CompleteRegistration, request, metadata=HOME))
        assert entry[:2] == ("REGISTRATION", "")
        assert entry[2] == entry[3] == str(await world.scalar("SELECT id FROM users"))
        assert entry[4] == str(await world.scalar("SELECT id FROM sessions"))

    async def test_a_sign_in_with_a_password(self, world: AuthWorld, ada: Member) -> None:
        for login, subject in ((ADA, ada), ("ada", ada), ("nobody@example.org", None)):
            request = sessions.CreateSessionRequest(login=login, password=WRONG)
            call = partial(world.sessions.CreateSession, request, metadata=HOME)
            assert await added(world, call) == attempt("SIGN_IN_PASSWORD", "INVALID_CREDENTIALS", subject)
        request = sessions.CreateSessionRequest(login=ADA, password=PASSWORD)
        new = await added(world, partial(world.sessions.CreateSession, request, metadata=HOME))
        newest = await world.scalar("SELECT id FROM sessions ORDER BY id DESC LIMIT 1")
        assert new == done("SIGN_IN_PASSWORD", ada, UUID(str(newest)))

    async def test_a_sign_in_with_a_code(self, world: AuthWorld, ada: Member) -> None:
        challenges = {email: await world.start_code(email) for email in (ADA, "nobody@example.org")}
        for email, subject in ((ADA, ada), ("nobody@example.org", None)):
            code = wrong(await world.code(challenges[email]))
            request = sessions.CompleteSessionCodeRequest(challenge_id=challenges[email], code=code)
            call = partial(world.sessions.CompleteSessionCode, request, metadata=HOME)
            assert await added(world, call) == attempt("SIGN_IN_CODE", "CODE_INVALID", subject)
        code = await world.code(challenges[ADA])
        request = sessions.CompleteSessionCodeRequest(challenge_id=challenges[ADA], code=code)
        new = await added(world, partial(world.sessions.CompleteSessionCode, request, metadata=HOME))
        newest = await world.scalar("SELECT id FROM sessions ORDER BY id DESC LIMIT 1")
        assert new == done("SIGN_IN_CODE", ada, UUID(str(newest)))

    async def test_a_reset(self, world: AuthWorld, ada: Member) -> None:
        challenge = await world.start_reset(ADA)
        code = await world.code(challenge)
        request = accounts.CompletePasswordResetRequest(challenge_id=challenge, code=wrong(code), new_password=NEW)
        call = partial(world.accounts.CompletePasswordReset, request, metadata=HOME)
        assert await added(world, call) == attempt("PASSWORD_RESET", "CODE_INVALID", ada)
        request.code = code
        call = partial(world.accounts.CompletePasswordReset, request, metadata=HOME)
        assert await added(world, call) == [("PASSWORD_RESET", "", ada.user.id, ada.user.id, None, *FROM_HOME)]

    async def test_a_spent_refresh_token_and_no_ordinary_refresh(self, world: AuthWorld, ada: Member) -> None:
        request = sessions.RefreshSessionRequest(refresh_token=ada.tokens.refresh_token)
        assert await added(world, partial(world.sessions.RefreshSession, request, metadata=HOME)) == []
        successor = await world.refresh(ada.tokens.refresh_token)
        assert (await world.refresh(successor.refresh_token)).refresh_token
        assert await added(world, partial(world.sessions.RefreshSession, request, metadata=HOME)) == [
            ("REFRESH", "REFRESH_REUSED", None, ada.user.id, str(ada.session_id), *FROM_HOME)
        ]

    async def test_a_password_that_is_disabled(self, make_world: MakeWorld) -> None:
        world = await make_world(sign_in_most_failures=1)
        ada = await world.register(ADA)
        request = sessions.CreateSessionRequest(login=ADA, password=WRONG)
        for also in (attempt("PASSWORD_DISABLE", "", ada), []):
            new = await added(world, partial(world.sessions.CreateSession, request, metadata=HOME))
            assert new == also + attempt("SIGN_IN_PASSWORD", "INVALID_CREDENTIALS", ada)


class TestSignedIn:
    async def test_sessions(self, world: AuthWorld, ada: Member) -> None:
        other, *_ = [await world.sign_in(ADA) for _ in range(3)]
        request = sessions.RevokeSessionRequest(session_id=str(other.session_id))
        call = partial(world.sessions.RevokeSession, request, metadata=at_home(ada))
        assert await added(world, call) == done("SESSION_REVOKE", ada, other.session_id)
        # No change, so no entry.
        assert await added(world, partial(world.sessions.RevokeSession, request, metadata=at_home(ada))) == []
        others = sessions.RevokeOtherSessionsRequest()
        revoking = partial(world.sessions.RevokeOtherSessions, others, metadata=at_home(ada))
        assert await added(world, revoking) == done("SESSIONS_REVOKE_OTHERS", ada)
        leaving = partial(world.sessions.Logout, sessions.LogoutRequest(), metadata=at_home(ada))
        assert await added(world, leaving) == done("LOGOUT", ada)

    async def test_the_profile(self, world: AuthWorld, ada: Member) -> None:
        for username, expected in (("countess", done("ACCOUNT_UPDATE", ada)), ("countess", [])):
            request = accounts.UpdateAccountRequest(username=username)
            assert await added(world, partial(world.accounts.UpdateAccount, request, metadata=at_home(ada))) == expected

    async def test_the_password(self, world: AuthWorld, ada: Member) -> None:
        request = accounts.ChangePasswordRequest(current_password=WRONG, new_password=NEW)
        call = partial(world.accounts.ChangePassword, request, metadata=at_home(ada))
        assert await added(world, call) == refusal("PASSWORD_CHANGE", "INVALID_CREDENTIALS", ada)
        request.current_password = PASSWORD
        call = partial(world.accounts.ChangePassword, request, metadata=at_home(ada))
        assert await added(world, call) == done("PASSWORD_CHANGE", ada)

    async def test_the_address(self, world: AuthWorld, ada: Member) -> None:
        request = accounts.StartEmailChangeRequest(new_email=BOB, password=WRONG)
        call = partial(world.accounts.StartEmailChange, request, metadata=at_home(ada))
        assert await added(world, call) == refusal("EMAIL_CHANGE_START", "INVALID_CREDENTIALS", ada)
        request.password = PASSWORD
        call = partial(world.accounts.StartEmailChange, request, metadata=at_home(ada))
        assert await added(world, call) == done("EMAIL_CHANGE_START", ada)
        challenge = str(await world.scalar("SELECT id FROM challenges"))
        code = await world.code(challenge)
        for given, expected in (
            (wrong(code), refusal("EMAIL_CHANGE", "CODE_INVALID", ada)),
            (code, done("EMAIL_CHANGE", ada)),
        ):
            completion = accounts.CompleteEmailChangeRequest(challenge_id=challenge, code=given)
            completing = partial(world.accounts.CompleteEmailChange, completion, metadata=at_home(ada))
            assert await added(world, completing) == expected

    async def test_somebody_elses_code_is_the_callers_own_attempt(self, world: AuthWorld, ada: Member) -> None:
        await world.register(BOB)
        challenge = await world.start_code(BOB)
        request = accounts.DeleteAccountRequest(challenge_id=challenge, code=await world.code(challenge))
        call = partial(world.accounts.DeleteAccount, request, metadata=at_home(ada))
        assert await added(world, call) == refusal("ACCOUNT_DELETE", "CODE_INVALID", ada)

    async def test_the_deletion(self, world: AuthWorld, ada: Member) -> None:
        for request, reason in (
            (accounts.DeleteAccountRequest(), "REAUTH_REQUIRED"),
            (accounts.DeleteAccountRequest(password=WRONG), "INVALID_CREDENTIALS"),
        ):
            call = partial(world.accounts.DeleteAccount, request, metadata=at_home(ada))
            assert await added(world, call) == refusal("ACCOUNT_DELETE", reason, ada)
        before = len(await entries(world))
        await world.delete_account(ada, password=PASSWORD)
        everything = await entries(world)
        assert everything[before:] == [("ACCOUNT_DELETE", "", ada.user.id, ada.user.id, str(ada.session_id), "", "")]
        assert {entry[5:] for entry in everything} == {("", "")}

    async def test_a_session_that_has_ended(self, world: AuthWorld, ada: Member) -> None:
        await world.execute("UPDATE sessions SET revoked_at = created_at, revoke_reason = 'REVOKED'")
        request = accounts.UpdateAccountRequest(first_name="Augusta")
        call = partial(world.accounts.UpdateAccount, request, metadata=at_home(ada))
        assert await added(world, call) == refusal("ACCOUNT_UPDATE", "SESSION_REVOKED", ada)

    async def test_keys_and_roles(self, world: AuthWorld) -> None:
        admin = await world.make_admin(ADA)
        grants = [entry for entry in await entries(world) if entry[0] == "ROLE_GRANT"]
        assert grants == [("ROLE_GRANT", "", None, admin.user.id, None, "", "command line")]
        # Keys belong to no account.
        by_admin = ("", admin.user.id, None, str(admin.session_id), *FROM_HOME)
        rotate = partial(world.keys.RotateKeys, keys.RotateKeysRequest(), metadata=at_home(admin))
        assert await added(world, rotate) == [("KEY_ROTATE", *by_admin)]
        kid = str(await world.scalar("SELECT kid FROM signing_keys WHERE state = 'PENDING'"))
        drop = partial(world.keys.DropKey, keys.DropKeyRequest(kid=kid), metadata=at_home(admin))
        assert await added(world, drop) == [("KEY_DROP", *by_admin)]


async def test_no_secret_and_no_address_of_nobody_is_in_the_log(
    world: AuthWorld, ada: Member, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    unknown = await world.start_code("nobody@example.org")
    calls = [
        world.sign_in("nobody@example.org", WRONG),
        world.sign_in("some typed text", WRONG),
        # People type their password into the wrong field.
        world.sign_in(PASSWORD, WRONG),
        world.complete_code(challenge, wrong(code)),
        world.complete_code(unknown, await world.code(unknown)),
        world.complete_code(challenge, code),
        world.change_password(ada, NEW, current=WRONG),
        world.start_email_change(ada, "moved@example.org"),
        world.refresh(ada.tokens.refresh_token + "x"),
        world.change_password(ada, NEW),
    ]
    for call in calls:
        with suppress(AioRpcError):
            await call
    async with world.db.transaction() as tx:
        rows = "\n".join(await tx.scalars(text("SELECT a::text FROM audit_entries a")))
    assert rows.count("\n") >= 8
    secrets = [PASSWORD, NEW, WRONG, code, wrong(code), ada.tokens.access_token, ada.tokens.refresh_token]
    secrets += [ada.device_token, "@", "some typed text"]
    for secret in secrets:
        assert secret not in rows
        assert secret not in caplog.text


class TestPermanence:
    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE audit_entries SET action = 'LOGOUT'",
            "UPDATE audit_entries SET reason = 'x'",
            "UPDATE audit_entries SET actor_id = NULL",
            "UPDATE audit_entries SET subject_id = gen_random_uuid()",
            "UPDATE audit_entries SET session_id = NULL",
            "UPDATE audit_entries SET occurred_at = occurred_at - interval '1 year'",
            "UPDATE audit_entries SET ip = '198.51.100.99'",
            "UPDATE audit_entries SET user_agent = 'x', ip = ''",
            "UPDATE audit_entries SET id = gen_random_uuid(), ip = '', user_agent = ''",
            "DELETE FROM audit_entries",
        ],
    )
    async def test_the_database_changes_and_removes_no_entry(self, world: AuthWorld, ada: Member, change: str) -> None:
        before = await entries(world)
        with pytest.raises(DBAPIError, match="audit entries are"):
            await world.execute(change)
        assert await entries(world) == before

    async def test_where_an_entry_came_from_can_be_erased(self, world: AuthWorld, ada: Member) -> None:
        await world.execute("UPDATE audit_entries SET ip = '', user_agent = ''")
        assert {entry[5:] for entry in await entries(world)} == {("", "")}

    async def test_upkeep_removes_entries_that_are_older_than_a_year(self, world: AuthWorld) -> None:
        now = world.clock()
        for email, age in ((ADA, timedelta(days=366)), (BOB, timedelta(days=364))):
            world.clock.now = now - age
            await world.register(email)
        world.clock.now = now
        upkeep = Upkeep(world.db, world.ops.key_rotation, world.clock, every_seconds=60, audit_kept=timedelta(days=365))
        await upkeep.clean_up()
        bob = str(await world.scalar("SELECT id FROM users WHERE email = :email", email=BOB))
        assert [entry[2] for entry in await entries(world)] == [bob]


async def test_what_is_refused_at_the_door_is_not_recorded(world: AuthWorld, ada: Member) -> None:
    """The caller is unknown: otherwise anybody could fill the log with made-up tokens."""
    request = accounts.UpdateAccountRequest(first_name="Augusta")
    call = partial(world.accounts.UpdateAccount, request, metadata=Metadata(*bearer("made.up.token"), *HOME))
    assert await added(world, call) == []
