"""Events that an administrator has replayed."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.data.database import Database
from kit.events import dead_letter_store
from kit.events.dead_letter_model import Administrator, Settlement
from kit.events.dead_letters import DeadLetters
from kit.events.envelope import Event
from kit.events.inbox_store import mark_processed
from kit.identity.signing import Signer
from services.notification.tables import mails, notifications
from tests.notification.conftest import MailWorld, event, user_deleted
from tests.waiting import until

ADMIN = Administrator(uuid4(), "")


def letters(db: Database) -> DeadLetters:
    return DeadLetters(db, "notification", Signer(b"n" * 32))


async def bury(db: Database, lost: Event) -> None:
    async with db.transaction() as tx:
        await dead_letter_store.record(
            tx,
            event_id=lost.id,
            inbox="notification",
            type_=lost.type,
            key=lost.key,
            event=lost.to_bytes(),
            reason="broken",
            failures=1,
        )


async def replay(db: Database, lost: Event) -> None:
    settled = await letters(db).settle(
        ADMIN, "notification", Settlement.REPLAYED, [lost.id], reason="mended", dry_run=False
    )
    assert [letter.event_id for letter in settled] == [lost.id]


async def test_a_replayed_notice_about_somebody_who_was_erased_meanwhile_tells_nobody(world: MailWorld) -> None:
    ada = world.accounts.add()
    notice = event(auth_events_pb2.PasswordChanged(user_id=str(ada)), key=ada)
    await bury(world.db, notice)
    await replay(world.db, notice)
    world.accounts.delete(ada)
    # The erasure and the replayed event, in either order.
    async with world.working():
        await world.send(user_deleted(ada), notice)
        await until(world.idle)
    await world.handle(notice)
    assert await world.records() == {}
    async with world.db.transaction() as tx:
        assert (await tx.execute(notifications.select())).all() == []
    assert await world.dead() == []


async def test_a_replayed_event_brings_the_mail_that_the_former_version_gave_up_and_no_second_notification(
    world: MailWorld,
) -> None:
    ada = world.accounts.add()
    completed = event(story_events_pb2.StoryCompleted(story_id=str(uuid4()), owner_id=str(ada), title="The Lighthouse"))
    now = datetime.now(UTC)
    # The former version had told of it inside the application, and dead-lettered the event for want of a mail server.
    async with world.db.transaction() as tx:
        await mark_processed(tx, completed)
        note = {"user_id": ada, "type": "STORY_READY", "title": "", "body": "", "created_at": now}
        await tx.execute(notifications.insert().values(id=uuid4(), **note))
        mail = {"user_id": ada, "template": "STORY_READY", "state": "WAITING", "attempts": 8, "error": ""}
        await tx.execute(mails.insert().values(event_id=completed.id, created_at=now, changed_at=now, **mail))
    await bury(world.db, completed)
    await replay(world.db, completed)
    async with world.working():
        await world.mailbox.one()
        await until(world.idle)
    # All events are delivered once more, as after a loss of data in Redis.
    await world.handle(completed)
    assert len(await world.notifications()) == 1
    assert len(world.mailbox.mails()) == 1
    assert (await letters(world.db).list(ADMIN, "", 0, "")).letters == ()
