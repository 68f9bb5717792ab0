"""Erasure: nothing that names the person remains, and nothing is added later."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Table, func, insert, select, text
from storymesh.events.v1 import auth_events_pb2

from kit.events import erasure
from kit.events.dead_letter_store import dead_letters
from kit.events.envelope import Event
from kit.events.inbox_store import processed_events
from services.notification.model.deliveries import Delivery, DeliveryState
from services.notification.operations.erasing import Erasing
from services.notification.tables import deliveries, delivery_steps, mails
from tests.notification.conftest import MailWorld, code_issued, email_changed, event, story_completed, user_deleted
from tests.notification.scripted_channel import ScriptedChannel
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until


async def rows(world: MailWorld) -> dict[str, int]:
    """The number of rows about people in each table."""
    return {
        "notifications": len(await world.notifications()),
        "deliveries": await count(world, deliveries),
        "steps": await count(world, delivery_steps),
        "mails": await count(world, mails),
        "dead letters": len(await world.dead()),
    }


async def count(world: MailWorld, table: Table) -> int:
    async with world.db.transaction() as tx:
        return int(await tx.scalar(select(func.count()).select_from(table)) or 0)


NOTHING = {"notifications": 0, "deliveries": 0, "steps": 0, "mails": 0, "dead letters": 0}


async def test_all_that_was_told_to_a_person_goes_and_what_was_told_to_others_stays(world: MailWorld) -> None:
    gone, other = world.accounts.add("ada@example.com"), world.accounts.add("bob@example.com", "Bob")
    code = code_issued()
    for user in (gone, other):
        await world.handle(
            event(auth_events_pb2.UserRegistered(user_id=str(user))), story_completed(user), email_changed(user)
        )
    await world.handle(code)
    world.accounts.delete(gone)
    deleted = user_deleted(gone)
    await world.handle(deleted)
    await world.handle(deleted)
    assert {note["user_id"] for note in await world.notifications()} == {other}
    assert len(await world.notifications()) == 3
    records = await world.records()
    assert len(records) == 4
    assert {row["user_id"] for row in records.values()} == {other, None}
    assert records[code.id]["user_id"] is None


async def test_a_mail_that_the_former_version_recorded_without_its_person_gets_one_when_it_is_sent(
    world: MailWorld,
) -> None:
    user = world.accounts.add()
    story = story_completed(user)
    await recorded_by_the_former_version(world, story, "WAITING", attempts=1)
    await world.handle(story)
    record = (await world.records())[story.id]
    assert (record["user_id"], record["state"], record["attempts"]) == (user, DeliveryState.SENT, 2)
    # What took its place is all that is left of it.
    assert await count(world, mails) == 0


FORMER = ("SENT", "REFUSED", "EXPIRED", "UNKNOWN")


@pytest.mark.parametrize("state", FORMER)
async def test_a_mail_that_the_former_version_settled_is_not_sent_again(world: MailWorld, state: str) -> None:
    story = story_completed(world.accounts.add())
    await recorded_by_the_former_version(world, story, state, attempts=1)
    await world.handle(story)
    assert (world.mailbox.mails(), await world.records()) == ([], {})
    assert len(await world.notifications()) == 1
    assert await world.steps(story) == ["DEDUPLICATED FORMER_VERSION"]


async def test_a_mail_that_the_former_version_was_sending_when_it_died_is_sent_again_only_if_it_may_come_twice(
    world: MailWorld,
) -> None:
    story, code = story_completed(world.accounts.add()), code_issued()
    for each in (story, code):
        await recorded_by_the_former_version(world, each, "SENDING", attempts=1)
    await world.handle(story, code)
    records = await world.records()
    assert (records[story.id]["state"], records[code.id]["state"]) == (DeliveryState.UNKNOWN, DeliveryState.SENT)
    assert len(world.mailbox.mails()) == 1


async def test_the_former_version_does_not_send_what_this_one_has_decided(world: MailWorld) -> None:
    """The statement by which it locks a mail, and learns whether there is something to send."""
    decided, new = story_completed(world.accounts.add()), story_completed(world.accounts.add())
    await world.handle(decided)
    statement = text(
        "INSERT INTO mails (event_id, template, state, attempts, error, created_at, changed_at) "
        "VALUES (:event, 'STORY_READY', 'WAITING', 0, '', now(), now()) "
        "ON CONFLICT (event_id) DO UPDATE SET user_id = coalesce(mails.user_id, excluded.user_id) RETURNING state"
    )
    async with world.db.transaction() as tx:
        states = [await tx.scalar(statement, {"event": each.id}) for each in (decided, new)]
    assert states == ["SENT", "WAITING"]


async def recorded_by_the_former_version(world: MailWorld, told_of: Event, state: str, attempts: int) -> None:
    now = datetime.now(UTC)
    mail = {"template": "ANY", "state": state, "attempts": attempts, "error": "", "created_at": now}
    async with world.db.transaction() as tx:
        await tx.execute(insert(mails).values(event_id=told_of.id, changed_at=now, **mail))


async def test_dead_letters_that_name_the_person_anywhere_go(world: MailWorld) -> None:
    gone, other = uuid4(), uuid4()
    broken = auth_events_pb2.EmailChanged(user_id=str(gone))
    for user in (gone, other):
        letters = [story_completed(user, "a title"), event(broken, key=user)]
        async with world.db.transaction() as tx:
            for letter in letters:
                await tx.execute(
                    insert(dead_letters).values(
                        event_id=letter.id,
                        type=letter.type,
                        key=letter.key,
                        event=letter.to_bytes().replace(str(gone).encode(), str(user).encode()),
                        reason="",
                        failures=8,
                    )
                )
    await world.handle(user_deleted(gone))
    dead = await world.dead()
    assert len(dead) == 2
    assert not [letter for letter in dead if str(gone).encode() in bytes(letter["event"])]


async def test_a_story_that_is_told_of_after_the_erasure_leaves_nothing(world: MailWorld) -> None:
    """Even if auth, asked just before the erasure, still knew the account."""
    user = world.accounts.add()
    await world.handle(user_deleted(user))
    await world.handle(story_completed(user), event(auth_events_pb2.PasswordChanged(user_id=str(user))))
    assert (await rows(world), world.mailbox.mails()) == (NOTHING, [])
    async with world.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(processed_events)) == 0


async def test_nothing_that_races_the_erasure_survives_it(world: MailWorld) -> None:
    users = [world.accounts.add() for _ in range(6)]
    async with listening(MailServer()) as server:
        world.smtp_port = server.port
        async with world.working(), world.working():
            for user in users:
                stories = [story_completed(user) for _ in range(8)]
                await world.send(*stories[:4], user_deleted(user), *stories[4:])
            await until(world.idle, seconds=60)
    assert await rows(world) == NOTHING


async def test_a_notification_and_a_mail_that_were_begun_are_waited_for_and_erased(world: MailWorld) -> None:
    user = world.accounts.add()
    async with world.db.transaction() as early:
        assert not await erasure.is_erased(early, user)
        erasing = asyncio.create_task(Erasing(world.db).erase(user))
        await until(lambda: _someone_waits(world))
        now = datetime.now(UTC)
        step = {"channel": "EMAIL", "target": "", "occurred_at": now, "decision": "SENT", "detail": ""}
        await early.execute(insert(delivery_steps).values(event_id=uuid4(), user_id=user, **step))
        mail = {
            "template": "WELCOME",
            "state": "SENT",
            "attempts": 1,
            "error": "",
            "created_at": now,
            "changed_at": now,
        }
        await early.execute(insert(mails).values(event_id=uuid4(), user_id=user, **mail))
    await erasing
    assert await rows(world) == NOTHING


async def _someone_waits(world: MailWorld) -> bool:
    async with world.db.transaction() as tx:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return bool(await tx.scalar(text(query)))


async def test_a_mail_that_is_on_its_way_leaves_no_record(world: MailWorld) -> None:
    user = world.accounts.add()
    answers = asyncio.Event()
    server = MailServer(held=answers)
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(story_completed(user))
            await until(lambda: server.mails)
            await world.send(user_deleted(user))
            await until(lambda: _erased(world, user))
            answers.set()
            await until(world.idle)
    assert (await rows(world), len(server.mails)) == (NOTHING, 1)


async def test_a_mail_that_is_prepared_while_its_person_is_erased_is_not_sent(world: MailWorld) -> None:
    user, prepared, erased = world.accounts.add(), asyncio.Event(), asyncio.Event()

    async def prepares(_delivery: Delivery) -> None:
        prepared.set()
        await erased.wait()

    channel = world.channel = ScriptedChannel(prepares=prepares)
    async with world.working():
        await world.send(story_completed(user))
        await prepared.wait()
        await world.send(user_deleted(user))
        await until(world.idle)
        erased.set()
    assert (await rows(world), channel.taken) == (NOTHING, {})


async def _erased(world: MailWorld, user: UUID) -> bool:
    async with world.db.transaction() as tx:
        return await erasure.is_erased(tx, user)


async def test_many_rows_go_in_batches(world: MailWorld) -> None:
    user, other = world.accounts.add(), world.accounts.add()
    await world.handle(*(story_completed(user) for _ in range(5)), story_completed(other))
    await asyncio.gather(*(Erasing(world.db, batch=2).erase(user) for _ in range(3)))
    # Decided twice and sent, of the other person alone.
    assert await rows(world) == {"notifications": 1, "deliveries": 1, "steps": 3, "mails": 0, "dead letters": 0}


async def test_an_event_about_an_erased_person_that_keeps_failing_becomes_no_dead_letter(world: MailWorld) -> None:
    gone, other = world.accounts.add(), world.accounts.add()
    lost, kept = (
        event(auth_events_pb2.EmailChanged(user_id=str(user), sealed_mail=b"\x01torn")) for user in (gone, other)
    )
    await world.handle(user_deleted(gone))
    await world.handle(lost, kept)
    assert [letter["event_id"] for letter in await world.dead()] == [kept.id]


async def test_an_erasure_that_keeps_failing_stays_a_dead_letter(world: MailWorld) -> None:
    """The record of its own erasure must not let the event be dropped half-way."""
    user = world.accounts.add()
    world.erasing_batch = -1  # a value that Postgres refuses
    deleted = user_deleted(user)
    await world.handle(deleted)
    assert await _erased(world, user)
    assert [letter["event_id"] for letter in await world.dead()] == [deleted.id]


QUOTING = {
    "refusing the recipient": MailServer(recipient="550 5.1.1 <lovelace@example.com>: no such user lovelace"),
    "putting the recipient off": MailServer(recipient="450 4.2.1 <lovelace@example.com> lovelace is busy"),
    "refusing the mail": MailServer(taken="554-5.7.1 spam for lovelace@example.com\r\n554 lovelace"),
    "making no sense": MailServer(taken="what, lovelace@example.com?"),
}


@pytest.mark.parametrize("kind", QUOTING)
@pytest.mark.parametrize("about", ["a code", "a story"])
async def test_the_words_of_a_mail_server_that_quotes_addresses_are_neither_kept_nor_logged(
    world: MailWorld, kind: str, about: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="services")
    caplog.set_level("DEBUG", logger="kit")
    server = replace(QUOTING[kind])
    world.max_failures = 2
    sent = (
        code_issued(to="lovelace@example.com")
        if about == "a code"
        else story_completed(world.accounts.add("lovelace@example.com"))
    )
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(sent)
            await until(lambda: _answered(world, sent))
    record = (await world.records())[sent.id]
    assert record["state"] != DeliveryState.SENT
    assert record["answer"] in ("550 5.1.1", "450 4.2.1", "554 5.7.1", "")
    assert await world.dead() == []
    assert "lovelace" not in caplog.text + str(await world.steps(sent))


async def _answered(world: MailWorld, sent: Event) -> bool:
    record = (await world.records()).get(sent.id)
    return record is not None and record["reason"] != ""


async def test_no_address_of_any_event_is_stored(world: MailWorld) -> None:
    user = world.accounts.add("new@example.com")
    await world.handle(code_issued(), email_changed(user), story_completed(user))
    async with world.db.transaction() as tx:
        for table in ("notifications", "deliveries", "delivery_steps", "processed_events", "erased_subjects"):
            stored = str((await tx.execute(text(f"SELECT * FROM {table}"))).all())
            assert "@example.com" not in stored
