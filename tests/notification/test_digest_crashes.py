"""Workers that end while they collect or send a digest: one digest, and no notice lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, update

from services.notification.model import Kind
from services.notification.model.deliveries import Delivery
from services.notification.model.preferences import Timing
from services.notification.tables import deliveries
from tests.notification.conftest import MailWorld, story_completed
from tests.notification.people import START, STORY, People
from tests.notification.scripted_channel import ScriptedChannel
from tests.waiting import until

DUE = START + timedelta(hours=21, minutes=30)
"""When the daily digest is due."""
TITLES = ("The Lighthouse", "The Harbour", "The Island")


@pytest.fixture
def people(world: MailWorld) -> People:
    return People(world)


async def cut_off_at(people: People, step: str) -> ScriptedChannel:
    """Run a worker until it comes to this step with a digest, and end it there."""
    reached = asyncio.Event()

    async def hangs(delivery: Delivery) -> None:
        if delivery.kind == Kind.DIGEST:
            reached.set()
            await asyncio.Event().wait()

    people.world.channel = channel = ScriptedChannel()
    setattr(channel, step, hangs)
    async with people.world.working(cut_off=True):
        await until(reached.is_set)
    people.world.channel = None
    return channel


async def leave_as_a_killed_worker(people: People) -> None:
    """Bring the digest into the state in which a worker leaves it that had no time to give it back, after the lease."""
    digest = deliveries.c.kind == Kind.DIGEST
    async with people.world.db.transaction() as tx:
        left = {"leased_until": func.now() - timedelta(seconds=1), "due_at": people.clock.now + timedelta(seconds=2)}
        await tx.execute(update(deliveries).where(digest).values(unsettled=1, **left))


def told(people: People) -> list[int]:
    """How many mails tell of each story."""
    bodies = [str(mail.get_body(("plain",)).get_content()) for mail in people.world.mailbox.mails()]  # type: ignore[union-attr]
    return [sum(title in body for body in bodies) for title in TITLES]


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_a_worker_that_ends_between_collecting_and_sending_loses_nothing_and_sends_nothing_twice(
    people: People, end: str
) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY})
    await people.tell(*(story_completed(user, title) for title in TITLES[:2]))
    people.at(DUE)
    await cut_off_at(people, "prepares")
    if end == "killed":
        await leave_as_a_killed_worker(people)
    # The digest has collected: what comes now is for the next one.
    people.at(DUE + timedelta(minutes=10))
    await people.tell(story_completed(user, TITLES[2]))
    assert (people.subjects(), told(people)) == (["2 notifications from Storymesh"], [1, 1, 0])
    for minutes in (0, 10, 20):
        people.at(DUE + timedelta(days=1, minutes=minutes))
        await people.settle()
    assert told(people) == [1, 1, 1]
    states = await people.states(user)
    assert [state for state, _ in states["STORY_READY"]] == ["SENT"] * 3
    assert [state for state, _ in states["DIGEST"]] == ["SENT"] * 2


async def test_a_digest_whose_worker_died_after_the_handover_is_not_sent_again_and_its_notices_say_so(
    people: People,
) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY})
    stories = [story_completed(user, title) for title in TITLES[:2]]
    await people.tell(*stories)
    people.at(DUE)
    channel = await cut_off_at(people, "answers")
    assert list(channel.taken.values()) == [1]
    await leave_as_a_killed_worker(people)
    people.at(DUE + timedelta(days=2))
    await people.settle()
    assert people.subjects() == []
    states = await people.states(user)
    assert states["DIGEST"] == [("UNKNOWN", "WORKER_DIED")]
    assert [state for state, _ in states["STORY_READY"]] == ["UNKNOWN"] * 2
    for story in stories:
        assert (await people.steps(story.id))[-1][0] == "UNKNOWN"
