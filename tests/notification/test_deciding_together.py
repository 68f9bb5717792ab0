"""Events that are decided in one transaction: each has its own decision and its own failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy import text

from kit.events.envelope import Event
from services.notification.model.deliveries import DeliveryState
from services.notification.tables import deliveries
from tests.notification.conftest import MailWorld, code_issued, story_completed, user_deleted
from tests.waiting import until


@asynccontextmanager
async def refusing(world: MailWorld, event: Event) -> AsyncIterator[None]:
    """Have Postgres refuse the event's delivery during the block."""
    refuse = f"""
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      IF NEW.event_id = '{event.id}' THEN RAISE EXCEPTION 'refused'; END IF;
      RETURN NEW;
    END $$
    """
    async with world.db.transaction() as tx:
        await tx.execute(text(refuse))
        await tx.execute(
            text(f"CREATE TRIGGER refuse BEFORE INSERT ON {deliveries.name} FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
    try:
        yield
    finally:
        async with world.db.transaction() as tx:
            await tx.execute(text("DROP FUNCTION refuse CASCADE"))


async def transactions_of(world: MailWorld, *events: Event) -> set[int]:
    """The transactions that wrote these events' deliveries, as Postgres numbers them."""
    query = text("SELECT xmin::text::bigint FROM processed_events WHERE event_id = ANY(:ids)")
    async with world.db.transaction() as tx:
        return set((await tx.execute(query, {"ids": [event.id for event in events]})).scalars())


async def test_events_that_are_read_together_are_decided_in_one_transaction(world: MailWorld) -> None:
    owner = world.accounts.add()
    events = [code_issued(), story_completed(owner), code_issued(), story_completed(owner)]
    await world.send(*events)
    await world.handle()
    assert len(await transactions_of(world, *events)) == 1
    records = await world.records()
    assert {records[event.id]["state"] for event in events} == {DeliveryState.SENT}
    assert len(await world.notifications()) == 2
    for event in events:
        assert await world.steps(event) == ["QUEUED", "SENT"]


async def test_one_poison_event_is_dead_lettered_alone_and_the_others_of_its_batch_are_mailed(world: MailWorld) -> None:
    owner = world.accounts.add()
    poison, others = story_completed(owner), [code_issued(), story_completed(owner), code_issued()]
    async with refusing(world, poison):
        await world.send(others[0], poison, *others[1:])
        await world.handle()
    assert [each["event_id"] for each in await world.dead()] == [poison.id]
    records = await world.records()
    assert {event_id: record["state"] for event_id, record in records.items()} == {
        other.id: DeliveryState.SENT for other in others
    }
    # Nothing of the poison is left, nor is anything of the others there twice.
    assert len(await world.notifications()) == 1
    assert len(world.mailbox.mails()) == 3


async def test_copies_of_an_event_in_one_batch_are_one_mail_and_one_notification(world: MailWorld) -> None:
    story = story_completed(world.accounts.add())
    await world.send(story, story, story)
    await world.handle()
    assert sorted(await world.steps(story)) == ["DEDUPLICATED", "DEDUPLICATED", "QUEUED", "SENT"]
    assert sorted(await world.steps(story, "IN_APP")) == ["ADDED", "DEDUPLICATED", "DEDUPLICATED"]
    assert (len(world.mailbox.mails()), len(await world.notifications())) == (1, 1)


async def test_an_erased_person_in_a_batch_hides_nobody_elses_news(world: MailWorld) -> None:
    gone, owner = world.accounts.add(), world.accounts.add()
    await world.handle(user_deleted(gone))
    events = [story_completed(gone), story_completed(owner), code_issued()]
    await world.send(*events)
    await world.handle()
    assert (await world.records()).keys() == {events[1].id, events[2].id}
    assert len(await world.notifications()) == 1


async def test_workers_that_decide_about_the_same_people_and_copies_at_once_do_not_lock_each_other_out(
    world: MailWorld,
) -> None:
    owners = [world.accounts.add() for _ in range(4)]
    events = [story_completed(owner) for owner in owners for _ in range(5)]
    await world.send(*events, *reversed(events))
    before = await deadlocks(world)
    async with world.working(), world.working():
        await until(world.idle, 30)
    assert await deadlocks(world) == before
    ids: set[UUID] = {event.id for event in events}
    assert (await world.records()).keys() == ids
    assert len(await world.notifications()) == len(ids)
    assert await world.dead() == []


async def deadlocks(world: MailWorld) -> int:
    async with world.db.transaction() as tx:
        query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int((await tx.execute(query)).scalar_one())
