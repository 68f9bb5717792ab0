"""Mails that come back suppress the address, and only where a mail of ours shows which one."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from storymesh.events.v1 import auth_events_pb2

from kit.events.envelope import Event
from services.notification.model.deliveries import DeliveryState
from services.notification.operations.record_keeping import RecordKeeping
from tests.notification.conftest import (
    DIGESTS,
    MailWorld,
    code_issued,
    event,
    story_completed,
    user_deleted,
)
from tests.notification.returned_mail import put, read_all, report, returned, suppressed
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until


def envelope(server: MailServer, step: str) -> list[str]:
    """The addresses that the server was given at this step."""
    return [line.partition("<")[2].partition(">")[0] for line in server.lines if line.upper().startswith(step)]


def password_changed(user: UUID) -> Event:
    return event(auth_events_pb2.PasswordChanged(user_id=str(user)))


async def test_a_mail_that_came_back_fails_and_its_address_gets_no_more(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    story, later, warning = story_completed(user), story_completed(user), password_changed(user)
    await world.handle(story)
    await read_all(world, folder, returned(story), returned(story))
    await world.handle(later, warning)
    records = await world.records()
    assert [(records[each.id]["state"], records[each.id]["reason"]) for each in (story, later, warning)] == [
        (DeliveryState.FAILED, "BOUNCED"),
        (DeliveryState.SUPPRESSED, "SUPPRESSED_NO_ADDRESS"),
        (DeliveryState.SUPPRESSED, "SUPPRESSED_NO_ADDRESS"),
    ]
    assert await world.steps(story) == [
        "QUEUED",
        "SENT",
        "FAILED BOUNCED 5.1.1",
        "ADDRESS_SUPPRESSED NO_ADDRESS 5.1.1",
    ]
    assert (await world.steps(warning))[-1] == "SUPPRESSED SUPPRESSED_NO_ADDRESS 5.1.1"
    (row,) = await suppressed(world)
    assert (row["user_id"], row["event_id"], row["reason"], row["code"], row["source"]) == (
        user,
        story.id,
        "NO_ADDRESS",
        "5.1.1",
        "REPORT",
    )
    assert row["address_digest"] == DIGESTS.of("ADA@Example.COM")
    assert len(world.mailbox.mails()) == 1
    assert os.listdir(folder) == []


async def test_a_mailbox_that_takes_no_mail_still_gets_security_mail(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    story, later, warning, code = story_completed(user), story_completed(user), password_changed(user), code_issued()
    await world.handle(story)
    await read_all(world, folder, returned(story, status="5.2.2"))
    await world.handle(later, warning, code)
    records = await world.records()
    assert records[later.id]["reason"] == "SUPPRESSED_MAILBOX"
    assert records[warning.id]["state"] == records[code.id]["state"] == DeliveryState.SENT


async def test_the_worse_of_two_bounces_counts(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    first, second = story_completed(user), story_completed(user)
    await world.handle(first, second)
    await read_all(world, folder, returned(first, status="5.2.1"))
    await read_all(world, folder, returned(second, status="5.1.1"))
    await read_all(world, folder, returned(first, status="5.2.1"))
    assert [(row["reason"], row["code"]) for row in await suppressed(world)] == [("NO_ADDRESS", "5.1.1")]


NOT_THE_ADDRESS = {
    "soft": {"status": "4.4.7"},
    "policy": {"status": "5.7.1"},
    "no code": {"status": ""},
    "forwarded to another address": {"final": "elsewhere@example.net"},
}


@pytest.mark.parametrize("kind", NOT_THE_ADDRESS)
async def test_a_bounce_that_says_nothing_of_the_address_fails_the_mail_alone(
    world: MailWorld, folder: Path, kind: str
) -> None:
    user = world.accounts.add("ada@example.com")
    story, later = story_completed(user), story_completed(user)
    await world.handle(story)
    await read_all(world, folder, returned(story, **NOT_THE_ADDRESS[kind]))
    await world.handle(later)
    records = await world.records()
    assert (records[story.id]["state"], records[later.id]["state"]) == (DeliveryState.FAILED, DeliveryState.SENT)
    assert await suppressed(world) == []


async def test_reports_about_mails_that_we_did_not_send_change_nothing(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    await world.handle(story)
    foreign = report(returned=f"Message-ID: <{story.id}@elsewhere.example>\r\n")
    await read_all(
        world,
        folder,
        foreign,
        returned(story_completed(user)),
        report(returned=None),
        report(returned="Message-ID: <1@mail.example>\r\n"),
        report(returned=None, to=f"bounces+{'a' * 39}@mail.example"),
        returned(story, action="delayed"),
        returned(story, action="delivered"),
    )
    assert (await world.records())[story.id]["state"] == DeliveryState.SENT
    assert await suppressed(world) == []


async def test_a_mail_is_known_by_its_envelope_address_when_nothing_of_it_is_returned(
    world: MailWorld, folder: Path
) -> None:
    world.bounce_address = "bounces@mail.example"
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    server = MailServer()
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(story)
    (sender,) = envelope(server, "MAIL FROM")
    assert sender.startswith("bounces+")
    assert str(story.id) not in sender
    await read_all(world, folder, report(returned=None, to=f"Bounces <{sender.upper()}>"))
    assert [row["event_id"] for row in await suppressed(world)] == [story.id]


async def test_a_server_that_refuses_the_recipient_suppresses_the_address_at_once(world: MailWorld) -> None:
    user = world.accounts.add("ada@example.com")
    first, second = story_completed(user), password_changed(user)
    server = MailServer(recipient="550 5.1.1 no such user")
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(first)
        await world.handle(second)
    assert envelope(server, "RCPT TO") == ["ada@example.com"]
    (row,) = await suppressed(world)
    assert (row["source"], row["event_id"]) == ("ANSWER", first.id)
    assert (await world.steps(second))[-1] == "SUPPRESSED SUPPRESSED_NO_ADDRESS 5.1.1"


async def test_a_suppression_by_a_code_is_the_persons_as_soon_as_a_mail_to_them_meets_it(
    world: MailWorld, folder: Path
) -> None:
    code = code_issued(to="Ada@example.com")
    await world.handle(code)
    await read_all(world, folder, returned(code))
    assert [row["user_id"] for row in await suppressed(world)] == [None]
    user = world.accounts.add("ada@EXAMPLE.com")
    await world.handle(story_completed(user))
    assert [row["user_id"] for row in await suppressed(world)] == [user]
    await world.handle(user_deleted(user))
    assert await suppressed(world) == []


async def test_a_deleted_account_leaves_no_suppression_of_its_address(world: MailWorld, folder: Path) -> None:
    code = code_issued(to="ada@example.com")
    await world.handle(code)
    await read_all(world, folder, returned(code))
    sealed = auth_events_pb2.AddressMail(email="ada@example.com", first_name="Ada")
    gone = account_deleted(sealed)
    await world.handle(gone)
    assert await suppressed(world) == []
    await read_all(world, folder, returned(gone))
    assert await suppressed(world) == []


def account_deleted(mail: auth_events_pb2.AddressMail) -> Event:
    from tests.notification.conftest import SEAL

    sealed = SEAL.seal(mail.DESCRIPTOR.full_name, mail.SerializeToString())
    return event(auth_events_pb2.AccountDeleted(sealed_mail=sealed))


async def test_a_bounce_of_an_erased_persons_mail_leaves_nothing(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    story, other = story_completed(user), story_completed(world.accounts.add("bob@example.com"))
    await world.handle(story, other)
    await read_all(world, folder, returned(story))
    await world.handle(user_deleted(user))
    await read_all(world, folder, returned(story))
    assert await suppressed(world) == []
    async with world.db.transaction() as tx:
        dump = await tx.execute(text("SELECT user_id, event_id::text FROM delivery_steps"))
        assert {row.event_id for row in dump} == {str(other.id)}


async def test_what_is_no_bounce_is_put_aside_and_holds_nothing_back(
    world: MailWorld, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    await world.handle(story)
    holiday = EmailMessage()
    holiday["Subject"] = "Re: ada@example.com is on holiday"
    holiday.set_content("until Monday")
    os.mkfifo(folder / "pipe.eml")
    (folder / "link.eml").symlink_to("/etc/passwd")
    (folder / "note.txt").write_text("kept")
    put(folder, holiday.as_bytes(), b"", returned(story), b"\0" * 100)
    async with world.working():
        await until(lambda: len(list(folder.glob("*.eml"))) == 2)
        await until(lambda: len(list((folder / "not-bounces").iterdir())) == 3)
    assert (folder / "note.txt").exists()
    assert [row["event_id"] for row in await suppressed(world)] == [story.id]
    assert "ada@" not in caplog.text


async def test_a_maildir_is_read_and_what_is_no_bounce_stays_there_as_seen(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    await world.handle(story)
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir()
    (folder / "new" / "1.M1.host").write_bytes(returned(story))
    (folder / "new" / "2.M2.host").write_bytes(b"Subject: hello\r\n\r\nhello")
    (folder / "tmp" / "3.M3.host").write_bytes(returned(story)[:100])
    async with world.working():
        await until(lambda: not list((folder / "new").iterdir()))
        await until(lambda: list((folder / "cur").iterdir()))
    assert [path.name for path in (folder / "cur").iterdir()] == ["2.M2.host:2,S"]
    assert len(list((folder / "tmp").iterdir())) == 1
    assert [row["event_id"] for row in await suppressed(world)] == [story.id]


async def test_a_folder_that_is_missing_stops_no_mail(world: MailWorld, tmp_path: Path) -> None:
    world.bounce_folder = str(tmp_path / "none")
    story = story_completed(world.accounts.add())
    await world.handle(story)
    assert (await world.records())[story.id]["state"] == DeliveryState.SENT


async def test_two_workers_that_read_one_folder_record_each_bounce_once(world: MailWorld, folder: Path) -> None:
    users = [world.accounts.add(f"user{number}@example.com") for number in range(20)]
    stories = [story_completed(user) for user in users]
    await world.handle(*stories)
    put(folder, *(returned(story, final=f"user{number}@example.com") for number, story in enumerate(stories)))
    async with world.working(), world.working():
        await until(lambda: not list(folder.glob("*.eml")))
    assert {row["event_id"] for row in await suppressed(world)} == {story.id for story in stories}
    for story in stories:
        assert (await world.steps(story)).count("FAILED BOUNCED 5.1.1") == 1


async def test_addresses_without_a_person_are_forgotten_after_ninety_days(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    code, story = code_issued(to="nobody@example.com"), story_completed(user)
    await world.handle(code, story)
    await read_all(world, folder, returned(code, final="nobody@example.com"), returned(story))
    clock = world.clock
    await RecordKeeping(world.db, None, lambda: clock() + timedelta(days=89)).forget()
    assert len(await suppressed(world)) == 2
    await RecordKeeping(world.db, None, lambda: clock() + timedelta(days=91)).forget()
    assert [row["user_id"] for row in await suppressed(world)] == [user]


async def test_a_report_that_comes_while_the_mail_is_on_its_way_is_not_lost(world: MailWorld, folder: Path) -> None:
    """A fast report of a mail whose own server has not answered yet."""
    user = world.accounts.add("ada@example.com")
    answers = asyncio.Event()
    story, later = story_completed(user), story_completed(user)
    server = MailServer(held=answers)
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(story)
            await until(lambda: server.mails)
            put(folder, returned(story))
            await until(lambda: not list(folder.glob("*.eml")))
            answers.set()
            await until(world.idle)
        await world.handle(later)
    assert (await world.records())[later.id]["reason"] == "SUPPRESSED_NO_ADDRESS"
