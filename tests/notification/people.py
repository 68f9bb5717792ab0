"""People with preferences, whose mails a worker sends at times that the test sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from storymesh.events.v1 import auth_events_pb2

from kit.events.envelope import Event
from kit.identity.caller import Caller, Role
from services.notification import store
from services.notification.model.deliveries import Channel
from services.notification.model.preference_changes import PreferenceChange
from services.notification.model.preferences import KINDS, Preferences
from services.notification.operations.preference_changes import PreferenceChanges
from services.notification.tables import deliveries, delivery_steps
from tests.notification.conftest import MailWorld, event
from tests.waiting import until

START = datetime(2026, 7, 1, 10, 30, tzinfo=UTC)
"""A Wednesday."""
MAIL = Channel.EMAIL
STORY = ("STORY_READY", MAIL)


@dataclass
class StoppedClock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


@dataclass
class People:
    """A world whose clock stands still until the test moves it."""

    world: MailWorld
    clock: StoppedClock = field(default_factory=StoppedClock)

    def __post_init__(self) -> None:
        self.world.clock = self.clock

    async def prefer(self, user: UUID, **fields: Any) -> None:
        async with self.world.db.transaction() as tx:
            await store.preferences.save(tx, replace(Preferences(user), **fields), self.clock.now)

    async def change(self, user: UUID, **fields: Any) -> None:
        """Change preferences as the API does."""
        changes = PreferenceChanges(self.world.db, self.clock, KINDS, ("de", "en"))
        caller = Caller(user, session_id=UUID(int=1), role=Role.USER, kid="")
        await changes.change(caller, PreferenceChange(changed=frozenset(fields), **fields))

    def at(self, moment: datetime) -> None:
        self.clock.now = moment

    async def settle(self) -> None:
        """Work until nothing is due."""
        async with self.world.working():
            await until(self.nothing_due, seconds=60)

    async def nothing_due(self) -> bool:
        return await self.world.decided() and not [
            row for row in await self.world.unfinished() if row["leased_until"] or row["due_at"] <= self.clock.now
        ]

    async def tell(self, *events: Event) -> None:
        await self.world.send(*events)
        await self.settle()

    def subjects(self) -> list[str]:
        return [str(mail["Subject"]) for mail in self.world.mailbox.mails()]

    async def states(self, user: UUID) -> dict[str, list[tuple[str, str]]]:
        """State and reason of each delivery, by kind."""
        async with self.world.db.transaction() as tx:
            query = select(deliveries).where(deliveries.c.user_id == user).order_by(deliveries.c.id)
            found: dict[str, list[tuple[str, str]]] = {}
            for row in (await tx.execute(query)).mappings():
                found.setdefault(row["kind"], []).append((row["state"], row["reason"]))
        return found

    async def steps(self, event_id: UUID, channel: str = "EMAIL") -> list[tuple[str, str]]:
        async with self.world.db.transaction() as tx:
            query = select(delivery_steps.c.decision, delivery_steps.c.detail).order_by(delivery_steps.c.id)
            query = query.where(delivery_steps.c.event_id == event_id, delivery_steps.c.channel == channel)
            return [tuple(row) for row in await tx.execute(query)]


def welcome(user: UUID) -> Event:
    return event(auth_events_pb2.UserRegistered(user_id=str(user)))


def password_changed(user: UUID) -> Event:
    return event(auth_events_pb2.PasswordChanged(user_id=str(user)))
