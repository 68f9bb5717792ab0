"""Property: for every event exactly one final decision, whatever happens to its attempts and its workers, and the steps name it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from kit.errors import Unavailable
from kit.events.envelope import Event
from services.notification.adapters.smtp import OutcomeUnknown, Refused, TryAgain
from services.notification.model.deliveries import Decision, Delivery, DeliveryState, Outcome
from services.notification.operations.channels import Undeliverable
from services.notification.tables import deliveries, delivery_steps
from tests.notification.conftest import MailWorld, code_issued, story_completed
from tests.notification.scripted_channel import ScriptedChannel
from tests.waiting import until

pytestmark = pytest.mark.slow

KILL = "the worker dies"
SUPPRESS = Undeliverable(Outcome(DeliveryState.SUPPRESSED, "TEST"))

FATES: dict[str, tuple[str, Exception | str]] = {
    "auth is away": ("prepares", Unavailable()),
    "it is suppressed": ("prepares", SUPPRESS),
    "preparing breaks off": ("prepares", ZeroDivisionError()),
    "the worker dies while preparing": ("prepares", KILL),
    "no connection": ("connects", TryAgain("421")),
    "refused at once": ("connects", Refused("550 5.1.1")),
    "the handover breaks off": ("connects", ZeroDivisionError()),
    "the worker dies before the handover": ("connects", KILL),
    "refused for now after the dot": ("answers", TryAgain("451")),
    "refused after the dot": ("answers", Refused("554")),
    "the connection is cut after the dot": ("answers", OutcomeUnknown("")),
    "something breaks off after the dot": ("answers", ZeroDivisionError()),
    "the worker dies after the dot": ("answers", KILL),
}
"""What can happen to an attempt, and at which step."""

FINAL = frozenset(DeliveryState) - {DeliveryState.QUEUED, DeliveryState.SENDING}


SECOND = (
    "refused for now after the dot",
    "the connection is cut after the dot",
    "the worker dies after the dot",
)


def scripts() -> Iterator[tuple[str, ...]]:
    """What happens to the first attempts of a delivery; those after them succeed."""
    yield ()
    yield from ((fate,) for fate in FATES)
    yield from product(FATES, SECOND)


@dataclass
class Fates:
    """Lets each attempt of each event meet what its script says."""

    scripts: dict[UUID, list[str]]
    kill: asyncio.Event = field(default_factory=asyncio.Event)
    refused: Counter[UUID] = field(default_factory=Counter)
    """Copies that were explicitly not taken after the dot."""
    unclear: Counter[UUID] = field(default_factory=Counter)
    """Attempts after which nobody knows whether the copy was taken."""

    def channel(self) -> ScriptedChannel:
        channel = ScriptedChannel()
        for step in ("prepares", "connects", "answers"):
            setattr(channel, step, self._act(step))
        return channel

    def _act(self, step: str) -> object:
        async def act(delivery: Delivery) -> None:
            script = self.scripts[delivery.event_id]
            if not script or FATES[script[0]][0] != step:
                return
            fate = FATES[script.pop(0)][1]
            if step == "answers":
                counts = self.refused if isinstance(fate, TryAgain | Refused) else self.unclear
                counts[delivery.event_id] += 1
            if isinstance(fate, Exception):
                raise fate
            self.kill.set()
            await asyncio.Event().wait()

        return act


@pytest.mark.timeout(240)
async def test_every_event_has_exactly_one_final_decision_which_its_steps_name(world: MailWorld) -> None:
    owner = world.accounts.add()
    events: dict[UUID, Event] = {}
    fates = Fates({})
    for script in scripts():
        for event in (story_completed(owner), code_issued()):
            events[event.id] = event
            fates.scripts[event.id] = list(script)
    world.channel = channel = fates.channel()
    # Long enough for a busy machine to renew it: an attempt that is overtaken waits as after a crash, longer each time.
    world.lease_seconds, world.slow_seconds, world.max_failures = 2.0, 0.05, 4
    await world.send(*events.values(), *list(events.values())[::7])
    async with asyncio.timeout(200):
        while not await world.idle():
            fates.kill.clear()
            async with world.working(cut_off=True), world.working(cut_off=True):
                await until(lambda: _dead_or_idle(world, fates), 120)
    records, steps_of = await world.records(), await _steps(world)
    assert records.keys() == events.keys()
    wrong: defaultdict[UUID, list[object]] = defaultdict(list)
    for event in events.values():
        record = records[event.id]
        steps = steps_of[event.id]
        # An administrator may have a delivery of unknown outcome sent once more.
        kept = record["event"] is not None
        if record["state"] not in FINAL or kept is not (record["state"] == DeliveryState.UNKNOWN):
            wrong[event.id] += ["is not final", record["state"]]
        if [step for step in steps if step in FINAL] != [record["state"]] or steps[-1] != record["state"]:
            wrong[event.id] += ["has steps", steps, record["state"]]
        taken = channel.taken[event.id] - fates.refused[event.id]
        may_come_twice = event.type.endswith("CodeIssued")
        most = 2 if may_come_twice and fates.unclear[event.id] else 1
        if taken > most or (record["state"] == DeliveryState.SENT and taken == 0):
            wrong[event.id] += ["was taken", taken, record["state"]]
    assert dict(wrong) == {}
    stories = sum(not event.type.endswith("CodeIssued") for event in events.values())
    assert len(await world.notifications()) == stories
    assert await world.dead() == []


async def _steps(world: MailWorld) -> defaultdict[UUID, list[str]]:
    """The decisions about each event's mail, without those that nothing follows from."""
    query = select(delivery_steps).where(delivery_steps.c.channel == "EMAIL").order_by(delivery_steps.c.id)
    found: defaultdict[UUID, list[str]] = defaultdict(list)
    async with world.db.transaction() as tx:
        for row in (await tx.execute(query)).mappings():
            if row["decision"] != Decision.DEDUPLICATED:
                found[row["event_id"]].append(row["decision"])
    return found


async def _dead_or_idle(world: MailWorld, fates: Fates) -> bool:
    # Time passes: what a dying worker had claimed waits the longer the more attempts there were.
    async with world.db.single() as tx:
        await tx.execute(update(deliveries).where(deliveries.c.state == DeliveryState.QUEUED).values(due_at=func.now()))
    return fates.kill.is_set() or await world.idle()
