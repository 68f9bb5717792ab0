"""The mail and the notification that follow from an event."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.events.envelope import Event
from kit.identity.sealing import Seal
from services.notification.model.deliveries import DeliveryState
from tests.mails import html_of, text_of
from tests.notification.conftest import TRACE, MailWorld, code_issued, event, story_completed, user_deleted
from tests.notification.directory import Directory, serving
from tests.waiting import until


async def test_a_code_reaches_its_person_and_no_notification_shows_it(world: MailWorld) -> None:
    await world.handle(code_issued("042137", to="ada@example.com", first_name="Ada"))
    mail = await world.mailbox.one()
    assert (mail["X-RcptTo"], mail["To"], mail["Subject"]) == (
        "ada@example.com",
        "ada@example.com",
        "Your Storymesh code",
    )
    assert "042137" in text_of(mail)
    assert "for the next 10 minutes" in text_of(mail)
    assert await world.notifications() == []


async def test_a_welcome_is_mailed_and_noted(world: MailWorld) -> None:
    user = world.accounts.add("ada@example.com", "Ada")
    await world.handle(event(auth_events_pb2.UserRegistered(user_id=str(user))))
    mail = await world.mailbox.one()
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Welcome to Storymesh")
    (note,) = await world.notifications()
    assert (note["user_id"], note["type"], note["title"]) == (user, "WELCOME", "Welcome to Storymesh")
    assert (note["story_id"], note["read_at"]) == (None, None)


async def test_a_finished_story_is_told_with_its_title_and_where_to_read_it(world: MailWorld) -> None:
    user, story = world.accounts.add(), uuid4()
    await world.handle(story_completed(user, "The Lighthouse", story))
    mail = await world.mailbox.one()
    assert mail["Subject"] == "Your story is ready: The Lighthouse"
    assert f"https://stories.example{world.stories.path(story)}" in text_of(mail)
    (note,) = await world.notifications()
    assert (note["type"], note["story_id"]) == ("STORY_READY", story)


async def test_a_finished_story_is_quoted_with_its_first_lines_in_both_parts(world: MailWorld) -> None:
    story = uuid4()
    lines = 'Nobody had climbed it. "Why?" <b>asked</b> Ada at evil.example…'
    await world.handle(story_completed(world.accounts.add(), "The Lighthouse", story, excerpt=lines))
    mail = await world.mailbox.one()
    shown = 'Nobody had climbed it. "Why?" <b>asked</b> Ada at evil. example…'
    assert shown in text_of(mail)
    assert shown.replace('"', "&#34;").replace("<", "&lt;").replace(">", "&gt;") in html_of(mail)
    assert f'href="https://stories.example{world.stories.path(story)}"' in html_of(mail)
    (note,) = await world.notifications()
    assert note["body"] == "It has been written for you."


async def test_people_who_chose_no_language_read_the_default_one(world: MailWorld) -> None:
    world.language = "de"
    await world.handle(story_completed(world.accounts.add(first_name="Ada"), "Der Leuchtturm"))
    mail = await world.mailbox.one()
    assert (mail["Subject"], mail["Content-Language"]) == ("Deine Geschichte ist fertig: Der Leuchtturm", "de")
    assert text_of(mail).startswith("Hallo Ada,")
    assert '<html lang="de"' in html_of(mail)
    (note,) = await world.notifications()
    assert (note["title"], note["body"]) == (mail["Subject"], "Sie wurde für dich geschrieben.")


@pytest.mark.parametrize("reason", ["WRITER_UNAVAILABLE", "CONTENT_REFUSED", "A_REASON_OF_TOMORROW"])
async def test_a_failed_story_is_told_with_its_reason(world: MailWorld, reason: str) -> None:
    user, story = world.accounts.add(), uuid4()
    await world.handle(event(story_events_pb2.StoryFailed(story_id=str(story), owner_id=str(user), reason=reason)))
    mail = await world.mailbox.one()
    assert mail["Subject"] == "Your story could not be written"
    assert reason in text_of(mail)
    (note,) = await world.notifications()
    assert (note["type"], note["story_id"]) == ("STORY_FAILED", story)


async def test_who_waits_for_an_administrator_is_not_told_to_ask_again(world: MailWorld) -> None:
    for reason in ("WRITER_MISCONFIGURED", "WRITER_UNAVAILABLE"):
        user = world.accounts.add(f"{reason.lower()}@example.com")
        failed = story_events_pb2.StoryFailed(story_id=str(uuid4()), owner_id=str(user), reason=reason)
        await world.handle(event(failed))
    misconfigured, unavailable = (text_of(mail) for mail in await until(world.mailbox.mails))
    assert "Asking again may work" in unavailable
    assert "may work" not in misconfigured
    assert "administrator" in misconfigured


NO_IDS = {
    message.DESCRIPTOR.name: message
    for message in (
        auth_events_pb2.RegistrationRepeated(user_id="x"),
        auth_events_pb2.UserRegistered(user_id="x"),
        auth_events_pb2.UserDeleted(user_id="x"),
        auth_events_pb2.SessionRevoked(user_id="x", reason=auth_events_pb2.SESSION_REVOKE_REASON_REFRESH_REUSED),
        auth_events_pb2.PasswordChanged(user_id="x"),
        auth_events_pb2.PasswordDisabled(user_id="x"),
        auth_events_pb2.EmailChanged(user_id="x"),
        auth_events_pb2.AddressClaimed(user_id="x"),
        story_events_pb2.StoryCompleted(story_id=str(uuid4()), owner_id="x"),
        story_events_pb2.StoryFailed(story_id=str(uuid4())),
    )
}


@pytest.mark.parametrize("kind", NO_IDS)
async def test_an_event_about_nobody_is_dead_lettered_at_once(world: MailWorld, kind: str) -> None:
    await world.handle(event(NO_IDS[kind]))
    (letter,) = await world.dead()
    assert letter["failures"] == 0
    assert letter["reason"].endswith("_id is no UUID")


async def test_an_event_about_no_story_or_with_no_time_is_dead_lettered_at_once(world: MailWorld) -> None:
    user = world.accounts.add()
    timeless = auth_events_pb2.CodeIssued(purpose=auth_events_pb2.CODE_PURPOSE_SIGN_IN)
    timeless.expire_time.seconds = 2**62
    await world.handle(
        event(story_events_pb2.StoryCompleted(story_id="x", owner_id=str(user))),
        event(story_events_pb2.StoryFailed(story_id="x", owner_id=str(user))),
        event(timeless),
    )
    assert [letter["failures"] for letter in await world.dead()] == [0, 0, 0]
    assert (world.mailbox.mails(), await world.notifications()) == ([], [])


async def test_who_registers_again_is_told_by_mail_only(world: MailWorld) -> None:
    user = world.accounts.add()
    await world.handle(event(auth_events_pb2.RegistrationRepeated(user_id=str(user))))
    mail = await world.mailbox.one()
    assert mail["Subject"] == "You already have a Storymesh account"
    # The account may have no password.
    assert "sign in instead, with your password or a mailed code" in text_of(mail)
    assert await world.notifications() == []


async def test_an_event_that_comes_again_tells_nothing_twice(world: MailWorld) -> None:
    user = world.accounts.add()
    events = [story_completed(user), event(auth_events_pb2.UserRegistered(user_id=str(user))), code_issued()]
    await world.handle(*events)
    await world.handle(*events, *events)
    assert len(world.mailbox.mails()) == 3
    assert len(await world.notifications()) == 2
    assert await world.steps(events[0]) == ["QUEUED", "SENT", "DEDUPLICATED", "DEDUPLICATED"]
    assert await world.steps(events[0], "IN_APP") == ["ADDED", "DEDUPLICATED", "DEDUPLICATED"]


async def test_a_mail_carries_the_trace_of_the_request_behind_it(world: MailWorld) -> None:
    await world.handle(code_issued())
    assert (await world.mailbox.one())["X-Trace-Id"] == TRACE


async def test_a_mail_has_what_a_mail_needs(world: MailWorld) -> None:
    issued = code_issued()
    await world.handle(issued)
    mail = await world.mailbox.one()
    assert mail["Message-ID"] == f"<{issued.id}@mail.example>"
    assert mail["From"] == "Storymesh <no-reply@mail.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"].datetime is not None
    assert mail["Content-Language"] == "en"
    assert [part.get_content_type() for part in mail.walk()] == ["multipart/alternative", "text/plain", "text/html"]


async def test_an_expired_code_is_never_mailed(world: MailWorld) -> None:
    late = code_issued(life=timedelta(seconds=-1))
    await world.handle(late)
    assert world.mailbox.mails() == []
    assert (await world.records())[late.id]["state"] == DeliveryState.EXPIRED
    assert await world.dead() == []


async def test_a_code_sealed_under_another_key_is_dead_lettered_without_showing_it(
    world: MailWorld, caplog: pytest.LogCaptureFixture
) -> None:
    await world.handle(code_issued("042137", seal=Seal(b"x" * 32)))
    (letter,) = await world.dead()
    assert "seal key" in letter["reason"]
    assert "042137" not in letter["reason"] + caplog.text
    assert b"042137" not in bytes(letter["event"])
    assert world.mailbox.mails() == []


async def test_a_code_shows_in_no_store_and_no_log(world: MailWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="services")
    caplog.set_level("DEBUG", logger="kit")
    await world.handle(code_issued("042137"))
    rows = str(list((await world.records()).values())) + str(await world.notifications())
    assert "042137" not in rows + caplog.text
    assert "ada@example.com" not in caplog.text


async def test_nobody_writes_to_an_account_that_is_gone(world: MailWorld) -> None:
    user = world.accounts.add()
    world.accounts.delete(user)
    await world.handle(
        story_completed(user),
        event(auth_events_pb2.UserRegistered(user_id=str(user))),
        event(auth_events_pb2.RegistrationRepeated(user_id=str(user))),
        event(story_events_pb2.StoryFailed(story_id=str(uuid4()), owner_id=str(user), reason="X")),
    )
    assert (world.mailbox.mails(), await world.dead()) == ([], [])
    found = [(row["state"], row["reason"]) for row in (await world.records()).values()]
    assert found == [(DeliveryState.SUPPRESSED, "ACCOUNT_GONE")] * 4
    # Its erasure is on the way, and takes along what was told inside the application.
    await world.handle(user_deleted(user))
    assert (await world.notifications(), await world.records()) == ([], {})


async def test_the_address_is_the_one_of_the_moment(world: MailWorld) -> None:
    user = world.accounts.add("old@example.com")
    world.accounts.users[str(user)].email = "new@example.com"
    await world.handle(story_completed(user))
    assert (await world.mailbox.one())["To"] == "new@example.com"


async def test_while_auth_is_away_the_mail_waits_and_the_notification_does_not(world: MailWorld) -> None:
    directory = Directory()
    user = directory.add()
    async with serving(directory) as address:
        world.address = address
    world.max_failures = 1
    story = story_completed(user)
    async with world.working():
        await world.send(story)
        await until(lambda: _tried(world, story, 3))
        assert await world.decided()
        assert len(await world.notifications()) == 1
        assert world.mailbox.mails() == []
        assert (await world.records())[story.id]["reason"] == "AUTH_UNAVAILABLE"
        async with serving(directory, world.address):
            await until(world.idle)
    assert len(world.mailbox.mails()) == 1
    assert len(await world.notifications()) == 1
    # However many attempts there were, the reason is told once.
    assert await world.steps(story) == ["QUEUED", "DEFERRED AUTH_UNAVAILABLE", "SENT"]
    assert await world.steps(story, "IN_APP") == ["ADDED"]
    assert await world.dead() == []


async def _tried(world: MailWorld, told_of: Event, times: int) -> bool:
    record = (await world.records()).get(told_of.id)
    return record is not None and record["attempts"] >= times


@pytest.mark.parametrize(
    "text",
    ["x\r\nBcc: evil@example.com", "x\nBcc: evil@example.com", "x\rBcc: evil@example.com", "x\r\n\r\nYour code is 1."],
    ids=["CRLF", "LF", "CR", "a body of its own"],
)
async def test_no_title_and_no_name_adds_a_header_or_a_line(world: MailWorld, text: str) -> None:
    user = world.accounts.add(first_name=text)
    await world.handle(story_completed(user, title=text), code_issued(first_name=text))
    for mail in await until(world.mailbox.mails):
        assert mail["Bcc"] is None
        assert mail["X-RcptTo"] == "ada@example.com"
        lines = text_of(mail).splitlines()
        assert not [line for line in lines if line.startswith(("Bcc", "Your code is 1."))]
    (note,) = await world.notifications()
    assert "\n" not in note["title"]


@pytest.mark.parametrize(
    "text",
    ["Der Bär und die Fee", "灯台の物語", "حكاية المنارة", "👩‍🚀 and the moon", "é" * 60, "x" * 120, "a\x00b\x1b[31mc"],
)
async def test_titles_and_names_of_every_kind_arrive_as_they_are(world: MailWorld, text: str) -> None:
    shown = text.replace("\x00", " ").replace("\x1b", " ")
    stored = text.replace("\x00", "")  # stored as auth and the story service store it
    user = world.accounts.add(first_name=stored)
    await world.handle(story_completed(user, title=text))
    mail = await world.mailbox.one()
    assert mail["Subject"] == f"Your story is ready: {shown}"
    assert f'"{shown}" has been written for you.' in text_of(mail)


async def test_a_mail_is_plain_seven_bit_text_on_its_way(world: MailWorld) -> None:
    """Long lines and short ones, because the library encodes them differently."""
    user = world.accounts.add(first_name="Bär")
    await world.handle(story_completed(user, "é" * 300), event(auth_events_pb2.UserRegistered(user_id=str(user))))
    first, second = world.mailbox.raw()
    for raw in (first, second):
        assert raw.isascii()
        assert max(map(len, raw.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    "address", ["ada@example.com", "first..last@example.com", ".dot@example.com", "o'hara+x@example.com"]
)
async def test_an_odd_address_never_becomes_a_dead_letter(world: MailWorld, address: str) -> None:
    odd = code_issued(to=address)
    await world.handle(odd)
    assert await world.dead() == []
    assert (await world.records())[odd.id]["state"] in (DeliveryState.SENT, DeliveryState.FAILED)
