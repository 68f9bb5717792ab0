"""Mails and notifications about security: what was done with a person's account."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from google.protobuf.message import Message
from sqlalchemy import func, select
from storymesh.events.v1 import auth_events_pb2 as events

from kit.events.inbox_store import processed_events
from kit.identity.sealing import Seal
from services.notification.model.deliveries import DeliveryState
from tests.mails import text_of
from tests.notification.conftest import (
    ADDRESS_SEAL_PURPOSE,
    SEAL,
    MailWorld,
    code_issued,
    email_changed,
    event,
    story_completed,
    user_deleted,
)

pytestmark = pytest.mark.slow

CODES = {
    events.CODE_PURPOSE_REGISTRATION: ("Your Storymesh code", "", "nothing happens without it"),
    events.CODE_PURPOSE_SIGN_IN: (
        "Your Storymesh sign-in code",
        "It signs you in, or confirms a change of your account, its deletion included",
        "nobody can sign in without it",
    ),
    events.CODE_PURPOSE_PASSWORD_RESET: (
        "Reset your Storymesh password",
        "It lets you choose a new password",
        "your password is unchanged",
    ),
    events.CODE_PURPOSE_EMAIL_CHANGE: (
        "Confirm your new Storymesh address",
        "It moves your account to this address",
        "without the code no account gets this address",
    ),
}

UNPROVEN = (events.CODE_PURPOSE_REGISTRATION, events.CODE_PURPOSE_EMAIL_CHANGE)
"""Purposes whose codes go to an unproven address, which may be a stranger's."""

REUSED = events.SESSION_REVOKE_REASON_REFRESH_REUSED

NOTICES: dict[str, tuple[Callable[[str], Message], tuple[str, str], str | None]] = {
    "password changed": (
        lambda user: events.PasswordChanged(user_id=user),
        ("Your Storymesh password was changed", "reset the password now, then sign out all other devices"),
        "PASSWORD_CHANGED",
    ),
    "password reset": (
        lambda user: events.PasswordChanged(user_id=user, reset=True),
        ("Your Storymesh password was reset", "reset the password now, then sign out all other devices"),
        "PASSWORD_CHANGED",
    ),
    "password disabled": (
        lambda user: events.PasswordDisabled(user_id=user),
        ("Your Storymesh password is disabled", "Sign in with a mailed code, or reset the password."),
        "PASSWORD_DISABLED",
    ),
    "refresh token reused": (
        lambda user: events.SessionRevoked(user_id=user, session_id=str(uuid4()), reason=REUSED),
        ("A device was signed out of Storymesh", "it may have been copied"),
        "SESSION_REVOKED",
    ),
    "new device": (
        lambda user: new_device(user, "Ada's tablet"),
        ("A new device signed in to your Storymesh account", "reset the password, which signs out every device"),
        None,
    ),
    "email change stopped": (
        lambda user: events.EmailChangeStopped(user_id=user),
        ("Your Storymesh account keeps this address", "Sign in with a mailed code, or reset the password"),
        None,
    ),
    "username changed": (
        lambda user: events.UsernameChanged(user_id=user),
        ("Your Storymesh username was changed", "the former one signs nobody in"),
        None,
    ),
    "address claimed": (
        lambda user: events.AddressClaimed(user_id=user),
        ("Your address stays with your Storymesh account", "Nothing was changed."),
        None,
    ),
}


def new_device(user: str, name: str) -> events.NewDeviceSignedIn:
    mail = events.DeviceMail(device_name=name, ip="198.51.100.7")
    mail.sign_in_time.FromDatetime(datetime(2026, 11, 29, 18, 5, tzinfo=UTC))
    sealed = SEAL.seal(events.DeviceMail.DESCRIPTOR.full_name, mail.SerializeToString())
    return events.NewDeviceSignedIn(user_id=user, sealed_device=sealed)


def test_every_purpose_of_a_code_has_a_mail() -> None:
    assert set(CODES) == set(events.CodePurpose.values()) - {events.CODE_PURPOSE_UNSPECIFIED}


@pytest.mark.parametrize("purpose", CODES)
async def test_each_code_says_what_it_is_for_and_what_its_absence_means(
    world: MailWorld, purpose: events.CodePurpose.ValueType
) -> None:
    await world.handle(code_issued("04213755", to="ada@example.com", first_name="Ada", purpose=purpose))
    mail = await world.mailbox.one()
    subject, effect, consolation = CODES[purpose]
    assert (mail["X-RcptTo"], mail["Subject"]) == ("ada@example.com", subject)
    greeting = "Hello," if purpose in UNPROVEN else "Hello Ada,"
    for words in (
        greeting,
        "Your code is 04213755.",
        effect,
        "It works once, for the next 10 minutes: until ",
        consolation,
    ):
        assert words in text_of(mail)
    assert await world.notifications() == []


@pytest.mark.parametrize("purpose", CODES)
async def test_no_code_is_mailed_after_its_time(world: MailWorld, purpose: events.CodePurpose.ValueType) -> None:
    late = code_issued(purpose=purpose, life=timedelta(seconds=-1))
    await world.handle(late)
    assert world.mailbox.mails() == []
    assert (await world.records())[late.id]["state"] == DeliveryState.EXPIRED


async def test_a_code_of_an_unknown_purpose_is_kept_for_a_version_that_has_words_for_it(world: MailWorld) -> None:
    await world.handle(code_issued(purpose=events.CODE_PURPOSE_UNSPECIFIED))
    (letter,) = await world.dead()
    assert "no words" in letter["reason"]
    assert world.mailbox.mails() == []


@pytest.mark.parametrize("purpose", CODES)
async def test_a_decoy_is_recorded_as_dealt_with_and_mailed_to_nobody(
    world: MailWorld, purpose: events.CodePurpose.ValueType, caplog: pytest.LogCaptureFixture
) -> None:
    decoy = code_issued(to="", first_name="", purpose=purpose)
    await world.handle(decoy, decoy)
    assert (world.mailbox.mails(), await world.records(), await world.dead()) == ([], {}, [])
    async with world.db.transaction() as tx:
        assert list(await tx.scalars(select(processed_events.c.event_id))) == [decoy.id]
    assert not [record for record in caplog.records if record.name.startswith(("services", "kit"))]


@pytest.mark.parametrize("notice", NOTICES)
async def test_the_owner_is_told_of_it_by_mail_and_where_it_helps_inside_the_application(
    world: MailWorld, notice: str
) -> None:
    make, (subject, advice), kind = NOTICES[notice]
    user = world.accounts.add("ada@example.com", "Ada")
    happened = event(make(str(user)))
    await world.handle(happened)
    await world.handle(happened)
    mail = await world.mailbox.one()
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", subject)
    assert "Hello Ada," in text_of(mail)
    assert advice in text_of(mail)
    notes = [(note["user_id"], note["type"], note["title"]) for note in await world.notifications()]
    assert notes == ([(user, kind, subject)] if kind else [])


@pytest.mark.parametrize("reason", [each for each in events.SessionRevokeReason.values() if each != REUSED])
async def test_a_session_that_ended_for_any_other_reason_is_no_news(
    world: MailWorld, reason: events.SessionRevokeReason.ValueType
) -> None:
    user = world.accounts.add()
    await world.handle(event(events.SessionRevoked(user_id=str(user), session_id=str(uuid4()), reason=reason)))
    assert (world.mailbox.mails(), await world.notifications(), await world.dead()) == ([], [], [])


async def test_a_begun_change_of_address_is_told_to_the_one_that_there_is_with_a_call_that_stops_it(
    world: MailWorld,
) -> None:
    user = world.accounts.add("new@example.com", "Ada")
    mail = events.EmailChangeMail(email="old@example.com", first_name="Ada", stop_token="sms1_" + 43 * "x")
    sealed = SEAL.seal(events.EmailChangeMail.DESCRIPTOR.full_name, mail.SerializeToString())
    begun = events.EmailChangeBegun(user_id=str(user), sealed_mail=sealed)
    begun.stop_expire_time.FromDatetime(datetime(2026, 12, 6, 18, 5, tzinfo=UTC))
    await world.handle(event(begun))
    told_of = await world.mailbox.one()
    assert (told_of["X-RcptTo"], told_of["To"]) == ("old@example.com", "old@example.com")
    assert told_of["Subject"] == "Somebody wants to move your Storymesh account to another address"
    call = (
        "curl https://stories.example/v1/account:stopEmailChange -H 'content-type: application/json' "
        f'-d \'{{"stop_token": "sms1_{43 * "x"}"}}\''
    )
    content = text_of(told_of)
    assert call in content.splitlines()
    assert "Until 6 December 2026, 18:05 (UTC) that works" in content
    assert await world.notifications() == []


async def test_a_new_device_is_named_without_a_link(world: MailWorld) -> None:
    user = world.accounts.add("ada@example.com", "Ada")
    await world.handle(event(new_device(str(user), 'see http://evil.example/x "now"')))
    content = text_of(await world.mailbox.one())
    assert '"see … "now"" signed in on 29 November 2026, 18:05 (UTC), at the address 198.51.100.7.' in content
    assert "evil" not in content


async def test_a_deleted_account_is_told_to_the_address_that_was_after_the_erasure_as_well(world: MailWorld) -> None:
    gone = world.accounts.add("ada@example.com", "Ada")
    mail = events.AddressMail(email="ada@example.com", first_name="Ada").SerializeToString()
    sealed = SEAL.seal(ADDRESS_SEAL_PURPOSE, mail)
    deleted = event(events.AccountDeleted(sealed_mail=sealed))
    for happened in (user_deleted(gone), deleted, deleted):
        await world.handle(happened)
    told_of = await world.mailbox.one()
    assert (told_of["X-RcptTo"], told_of["Subject"]) == ("ada@example.com", "Your Storymesh account was deleted")
    assert (await world.records())[deleted.id]["user_id"] is None
    assert await world.notifications() == []


async def test_a_changed_address_is_told_to_the_old_one(world: MailWorld) -> None:
    user = world.accounts.add("new@example.com", "Ada")
    await world.handle(email_changed(user, old="old@example.com"))
    mail = await world.mailbox.one()
    assert (mail["X-RcptTo"], mail["To"]) == ("old@example.com", "old@example.com")
    assert mail["Subject"] == "Your Storymesh address was changed"
    assert "change the password" in text_of(mail)
    assert "new@example.com" not in mail.as_string()
    (note,) = await world.notifications()
    assert (note["user_id"], note["type"]) == (user, "EMAIL_CHANGED")
    assert "@" not in note["title"] + note["body"]


@pytest.mark.parametrize(
    "sealed",
    [Seal(b"x" * 32).seal(ADDRESS_SEAL_PURPOSE, b""), b"", b"\x01short"],
    ids=["another key", "nothing", "torn"],
)
async def test_an_old_address_that_cannot_be_unsealed_is_dead_lettered(world: MailWorld, sealed: bytes) -> None:
    await world.handle(event(events.EmailChanged(user_id=str(world.accounts.add()), sealed_mail=sealed)))
    (letter,) = await world.dead()
    assert "seal key" in letter["reason"]
    assert world.mailbox.mails() == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<b>x</b>", "<b>x</b>"),
        ("x\r\nBcc: evil@example.com", "x Bcc: …"),
        ("x\n\nYour code is 1.", "x Your code is 1."),
        ("=?utf-8?q?x?=", "=?utf-8?q?x?="),
        ("Win at https://evil.example", "Win at …"),
        ("evil.example", "evil. example"),
        ("x" * 64, "x" * 39 + "…"),
    ],
)
async def test_a_name_stays_short_text_on_one_line_in_every_mail_and_is_in_none_to_an_unproven_address(
    world: MailWorld, name: str, shown: str
) -> None:
    user = world.accounts.add(first_name=name)
    codes = {purpose: code_issued(first_name=name, purpose=purpose) for purpose in CODES}
    unproven = {f"<{codes[purpose].id}@mail.example>" for purpose in UNPROVEN}
    notices = [event(make(str(user))) for make, _, _ in NOTICES.values()]
    await world.handle(*codes.values(), *notices, email_changed(user, first_name=name))
    mails = world.mailbox.mails()
    assert len(mails) == len(CODES) + len(NOTICES) + 1
    for mail in mails:
        assert (mail.get_content_type(), mail["Bcc"]) == ("multipart/alternative", None)
        greeting = "Hello," if mail["Message-ID"] in unproven else f"Hello {shown},"
        assert text_of(mail).splitlines()[0] == greeting
        assert not [line for line in text_of(mail).splitlines() if line.startswith(("Bcc", "Your code is 1."))]
        assert name not in mail["Subject"]


ENCODED_HEADERS = "=?utf-8?q?x=0d=0aSubject=3a_Win=0d=0aBcc=3a_b=40evil.example=0d=0a=0d=0aOurs?="


@pytest.mark.parametrize(
    "address",
    [
        f"{ENCODED_HEADERS}@example.com",
        "ada@example.com, b@evil.example",
        "ada@example.com\r\nBcc: b@evil.example",
        "ada@example.com>\r\nRCPT TO:<b@evil.example",
        "Ada <ada@example.com>",
        '"a b"@example.com',
    ],
)
async def test_a_mail_to_anything_but_one_plain_address_is_refused_for_good_and_the_address_not_logged(
    world: MailWorld, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Registration accepts no such address, but the database may hold one."""
    code, user = code_issued(to=address), world.accounts.add(address)
    story = story_completed(user)
    await world.handle(code, story)
    assert world.mailbox.mails() == []
    records = await world.records()
    for event_id in (code.id, story.id):
        record = records[event_id]
        assert (record["state"], record["reason"], record["answer"]) == (
            DeliveryState.FAILED,
            "NOT_RENDERABLE",
            "its recipient is no plain address",
        )
    logged = [record.getMessage() for record in caplog.records if record.name.startswith(("services", "kit"))]
    assert any("FAILED" in line for line in logged)
    assert not any("example" in line for line in logged)


async def test_an_encoded_word_in_a_title_shows_as_it_was_written(world: MailWorld) -> None:
    title = "=?utf-8?q?x=0d=0aSubject=3a_Win=0d=0aBcc=3a_b=0d=0a=0d=0aOurs?="
    await world.handle(story_completed(world.accounts.add(), title=title))
    mail = await world.mailbox.one()
    assert mail["Subject"] == f"Your story is ready: {title}"
    assert (mail["X-RcptTo"], mail["To"], mail["Bcc"]) == ("ada@example.com", "ada@example.com", None)
    assert f'"{title}" has been written for you.' in text_of(mail)


async def test_nobody_is_told_of_an_account_that_is_gone(world: MailWorld) -> None:
    user = world.accounts.add()
    world.accounts.delete(user)
    await world.handle(*(event(make(str(user))) for make, _, _ in NOTICES.values()))
    assert (world.mailbox.mails(), await world.dead()) == ([], [])
    assert {row["reason"] for row in (await world.records()).values()} == {"ACCOUNT_GONE"}
    # Its erasure is on the way, and takes along what was told inside the application.
    await world.handle(user_deleted(user))
    assert (await world.notifications(), await world.records()) == ([], {})


async def test_a_changed_address_of_an_erased_person_is_told_to_nobody(world: MailWorld) -> None:
    user = world.accounts.add()
    await world.handle(user_deleted(user))
    await world.handle(email_changed(user))
    assert (world.mailbox.mails(), await world.notifications(), await world.records()) == ([], [], {})
    async with world.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(processed_events)) == 0
