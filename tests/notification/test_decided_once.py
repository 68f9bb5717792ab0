"""Property: for every event and setting exactly one final decision on each channel, and the explanation names it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, update
from storymesh.notification.v1.notification_pb2 import NOTIFICATION_TYPE_STORY_FAILED, NOTIFICATION_TYPE_WELCOME

from kit.events.envelope import Event
from services.notification import store
from services.notification.model.deliveries import Channel
from services.notification.model.local_time import DailyRange
from services.notification.model.preferences import Preferences, Timing
from services.notification.tables import deliveries, mails
from services.notification.tables import webhooks as webhook_table
from tests.notification.conftest import MailWorld, code_issued, story_completed
from tests.notification.desk import Desk, shown, suppress
from tests.notification.every_notice import KINDS, event_of
from tests.notification.smtp_servers import MailServer, listening
from tests.notification.webhook_receivers import Receiver, WebhookApi
from tests.waiting import until

ANSWERS = ("250 ok", "450 4.2.0 later", "550 5.1.1 no such user", "550 5.2.2 full", "554 5.7.1 not from you")


@dataclass(frozen=True)
class Case:
    """A person with their settings, what becomes of their mail and webhooks, and what they are told."""

    kind: str
    answer: str
    timing: Timing | None
    """Of mails of every kind; None: the default."""
    shown: bool
    """Whether the list inside the application shows it."""
    paused: bool
    quiet: bool
    hooks: tuple[str, ...]
    suppressed: bool
    deleted: bool
    again: bool
    """Whether the event comes twice."""


CASES = st.builds(
    Case,
    kind=st.sampled_from(KINDS),
    answer=st.sampled_from(ANSWERS),
    timing=st.none() | st.sampled_from(list(Timing)),
    shown=st.booleans(),
    paused=st.booleans(),
    quiet=st.booleans(),
    hooks=st.lists(st.sampled_from(("all", "one kind", "disabled")), max_size=2).map(tuple),
    suppressed=st.booleans(),
    deleted=st.booleans(),
    again=st.booleans(),
)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(cases=st.lists(CASES, min_size=8, max_size=12), taken=st.sampled_from(["250 ok", None, "451 4.3.0 later"]))
@pytest.mark.timeout(240)
async def test_every_event_has_one_final_decision_for_each_channel_whatever_the_settings(
    world: MailWorld,
    desk: Desk,
    webhooks: WebhookApi,
    receiver: Receiver,
    cases: list[Case],
    taken: str | None,
) -> None:
    events: list[tuple[Event, Case]] = []
    replies: dict[str, str] = {}
    for case in cases:
        address = f"{uuid4().hex}@example.com"
        user = world.accounts.add(address)
        replies[address] = case.answer
        await settle_in(world, webhooks, receiver, user, address, case)
        events.append((event_of(case.kind, user, address=address), case))
    async with listening(MailServer(recipients=replies, taken=taken)) as server:
        world.smtp_port = server.port
        async with world.working():
            await world.send(*(each for each, _ in events))
            await until(world.decided, 60)
            await world.send(*(each for each, case in events if case.again))
            await until(world.decided, 60)
            await until(lambda: ended(world), 60)
    for each, case in events:
        notice = await desk.explain_event(each)
        final = [(decision.channel, decision.target) for decision in notice.final_decisions]
        assert sorted(final) == sorted({(step.channel, step.target) for step in notice.steps}), (case, shown(notice))
        for decision in notice.final_decisions:
            way = decision.channel, decision.target
            steps = [step.decision for step in notice.steps if (step.channel, step.target) == way]
            assert steps.count(decision.decision) == 1, (case, steps)
            assert steps.count("DEDUPLICATED") == case.again, (case, steps)


async def settle_in(
    world: MailWorld,
    calls: WebhookApi,
    receiver: Receiver,
    user: UUID,
    address: str,
    case: Case,
) -> None:
    """Bring the person's settings about."""
    chosen = {(kind, Channel.EMAIL): case.timing for kind in ("STORY_READY", "WELCOME") if case.timing}
    hidden = {} if case.shown else {("STORY_READY", Channel.IN_APP): Timing.OFF}
    quiet = DailyRange(time(0, 0), time(23, 59)) if case.quiet else None
    preferences = Preferences(user, paused=case.paused, quiet_hours=quiet, choices=chosen | hidden)
    async with world.db.transaction() as tx:
        await store.preferences.save(tx, preferences, datetime.now(UTC))
    for hook in case.hooks:
        kinds = (NOTIFICATION_TYPE_STORY_FAILED, NOTIFICATION_TYPE_WELCOME) if hook == "one kind" else ()
        webhook, _ = await calls.register(user, receiver.url, *kinds)
        if hook == "disabled":
            async with world.db.transaction() as tx:
                await tx.execute(
                    update(webhook_table).where(webhook_table.c.id == UUID(webhook.id)).values(disabled="FAILING")
                )
    if case.suppressed:
        await suppress(world, address, user)
    if case.deleted:
        world.accounts.delete(user)


async def ended(world: MailWorld) -> bool:
    """Whether every delivery has its final state. The time of those that wait is over at once."""
    late = datetime.now(UTC) - timedelta(seconds=1)
    waits = (deliveries.c.state == "QUEUED") & ((deliveries.c.attempts > 0) | (deliveries.c.kind == "DIGEST"))
    async with world.db.transaction() as tx:
        await tx.execute(update(deliveries).where(waits).values(expires_at=late, due_at=func.now()))
    return await world.idle()


async def test_a_webhooks_delivery_says_that_its_event_came_again(
    world: MailWorld,
    desk: Desk,
    webhooks: WebhookApi,
    receiver: Receiver,
) -> None:
    ada = world.accounts.add()
    known, _ = await webhooks.register(ada, receiver.url)
    story = story_completed(ada)
    await world.handle(story)
    # Registered since: it is not told what happened before it, and nothing is decided about it.
    await webhooks.register(ada, receiver.url)
    await world.handle(story)
    await world.handle(story)
    assert len(receiver.requests) == 1
    steps = [(step.target, step.decision) for step in (await desk.explain_event(story)).steps if step.target]
    assert steps == [(known.id, decision) for decision in ("QUEUED", "SENT", "DEDUPLICATED", "DEDUPLICATED")]


FORMER_STATES = {
    "SENT": ("SENT", "FORMER_VERSION"),
    "REFUSED": ("FAILED", "FORMER_VERSION 550 5.1.1"),
    "EXPIRED": ("EXPIRED", "FORMER_VERSION"),
    "UNKNOWN": ("UNKNOWN", "FORMER_VERSION"),
}


async def former_mail(world: MailWorld, about: Event, user: UUID | None, state: str) -> None:
    """Record the event's mail as the former version does."""
    now = datetime.now(UTC)
    row = {"user_id": user, "template": "ANY", "state": state, "attempts": 2, "created_at": now - timedelta(hours=1)}
    error = {"REFUSED": "550 5.1.1", "UNKNOWN": "cut off by mail.example: <ada@example.com>"}.get(state, "")
    async with world.db.transaction() as tx:
        await tx.execute(insert(mails).values(event_id=about.id, changed_at=now, error=error, **row))


@pytest.mark.parametrize("state", FORMER_STATES)
async def test_a_mail_that_only_the_former_version_knew_is_explained(
    world: MailWorld,
    desk: Desk,
    state: str,
) -> None:
    ada = world.accounts.add()
    story, code = story_completed(ada), code_issued()
    await former_mail(world, story, ada, state)
    await former_mail(world, code, None, state)
    decision, detail = FORMER_STATES[state]
    (listed,) = await desk.explain(user_id=str(ada))
    for notice in (listed, await desk.explain_event(story), await desk.explain_event(code)):
        assert [(step.decision, step.detail) for step in notice.steps] == [
            ("QUEUED", "FORMER_VERSION"),
            (decision, detail),
        ]
        assert shown(notice) == [("EMAIL", decision, detail)]
    assert (listed.event_id, listed.user_id) == (str(story.id), str(ada))
    # The event comes again to this version, which leaves the mail alone.
    await world.handle(story)
    again = await desk.explain_event(story)
    assert [each for each in shown(again) if each[0] == "EMAIL"] == [("EMAIL", decision, detail)]
    assert ("DEDUPLICATED", "FORMER_VERSION") in [(step.decision, step.detail) for step in again.steps]


async def test_a_mail_that_the_former_version_finds_decided_by_this_one_is_explained_by_its_delivery(
    world: MailWorld,
    desk: Desk,
) -> None:
    ada = world.accounts.add()
    story = story_completed(ada)
    await world.handle(story)
    await former_mail(world, story, ada, "WAITING")
    notice = await desk.explain_event(story)
    assert [each for each in shown(notice) if each[0] == "EMAIL"] == [("EMAIL", "SENT", "")]
    assert "FORMER_VERSION" not in {step.detail for step in notice.steps}
