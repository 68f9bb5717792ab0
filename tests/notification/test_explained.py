"""A property: whatever happens to a notice, each channel has one final decision, and the explanation names it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.events.envelope import Event
from services.notification.tables import deliveries
from tests.notification.conftest import (
    MailWorld,
    code_issued,
    email_changed,
    event,
    story_completed,
)
from tests.notification.desk import Desk, shown, suppress
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until

if TYPE_CHECKING:
    pass

ANSWERS = ("250 ok", "450 4.2.0 later", "550 5.1.1 no such user", "550 5.2.2 full", "554 5.7.1 not from you")


def notices_to(user: UUID) -> list[Event]:
    """One event of each kind that tells a person something."""
    auth = auth_events_pb2
    reused = auth.SESSION_REVOKE_REASON_REFRESH_REUSED
    return [
        story_completed(user),
        event(story_events_pb2.StoryFailed(story_id=str(uuid4()), owner_id=str(user), reason="WRITER_UNAVAILABLE")),
        event(auth.UserRegistered(user_id=str(user))),
        event(auth.PasswordChanged(user_id=str(user))),
        event(auth.PasswordDisabled(user_id=str(user))),
        event(auth.SessionRevoked(user_id=str(user), session_id=str(uuid4()), reason=reused)),
        event(auth.RegistrationRepeated(user_id=str(user))),
        event(auth.AddressClaimed(user_id=str(user))),
        event(auth.UsernameChanged(user_id=str(user))),
        event(auth.EmailChangeStopped(user_id=str(user))),
        email_changed(user),
    ]


@pytest.mark.parametrize("seed", range(4))
async def test_every_notice_has_one_final_decision_for_each_channel_and_the_explanation_names_it(
    world: MailWorld, desk: Desk, seed: int
) -> None:
    """Over every kind of event, whatever the server answers, with suppressed, deleted and unknown recipients, and events twice."""
    chance = random.Random(seed)
    server = MailServer(recipients={})
    events: list[Event] = []
    replies: dict[str, str] = {}
    for number in range(8):
        address = f"user{number}@example.com"
        user = world.accounts.add(address)
        replies[address] = chance.choice(ANSWERS)
        if chance.random() < 0.25:
            await suppress(world, address, user)
        if chance.random() < 0.2:
            world.accounts.delete(user)
        events += chance.sample(notices_to(user), 5)
        events.append(code_issued(to=address, life=timedelta(minutes=chance.choice([-1, 10]))))
    server.recipients = replies
    server.taken = chance.choice(["250 ok", "250 ok", None, "552 5.2.2 full", "451 4.3.0 later"])
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(*events, *chance.sample(events, 10))
            await until(world.decided)
            await until(lambda: _expired(world), 30)
    for each in events:
        notice = await desk.explain_event(each)
        channels = [(decision.channel, decision.target) for decision in notice.final_decisions]
        ways = {(step.channel, step.target) for step in notice.steps}
        assert sorted(channels) == sorted(ways), (each.type, shown(notice))
        for decision in notice.final_decisions:
            named = [step.decision for step in notice.steps if step.channel == decision.channel]
            assert decision.decision in named
            assert named.count(decision.decision) == 1


async def _expired(world: MailWorld) -> bool:
    """Whether every delivery has its final state. The time of those that were put off is over at once."""
    late = datetime.now(UTC) - timedelta(seconds=1)
    async with world.db.transaction() as tx:
        waiting = (deliveries.c.state == "QUEUED") & (deliveries.c.attempts > 0)
        await tx.execute(update(deliveries).where(waiting).values(expires_at=late))
    return await world.idle()
