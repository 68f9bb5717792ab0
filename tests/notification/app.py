"""The API of notifications as clients call it, and a client that keeps its list by a watch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.engine.row import RowMapping
from storymesh.notification.v1 import notification_service_pb2 as pb
from storymesh.notification.v1.notification_pb2 import NOTIFICATION_TYPE_UNSPECIFIED, Notification, NotificationType
from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceStub

from kit.data.database import Database
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from services.notification.model import Kind
from services.notification.model.notifications import Actor, ShortText, Target, TargetType
from services.notification.operations import Operations
from services.notification.operations.notifications import Notifier
from services.notification.tables import notification_changes
from tests.conftest import empty
from tests.identity import Issuer, bearer
from tests.notification.serving import serving_api

if TYPE_CHECKING:
    from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceAsyncStub

HEARTBEAT_SECONDS = 0.5


@dataclass
class Clock:
    """The time of the machine until it is set."""

    now: datetime | None = None

    def __call__(self) -> datetime:
        return self.now or system_clock()


@dataclass
class App:
    """A server of the API, with what changes notifications behind it."""

    db: Database
    stub: NotificationServiceAsyncStub
    server: Server
    issuer: Issuer
    ops: Operations
    clock: Clock
    database_url: str

    def person(self) -> Person:
        user_id = uuid4()
        return Person(self, user_id, bearer(self.issuer.token(user_id)))

    async def changes(self, person: Person) -> list[RowMapping]:
        query = select(notification_changes).where(notification_changes.c.user_id == person.id)
        async with self.db.transaction() as tx:
            return list((await tx.execute(query.order_by(notification_changes.c.number))).mappings())


@dataclass
class Person:
    """Somebody who is signed in."""

    app: App
    id: UUID
    auth: tuple[tuple[str, str], ...]

    async def told(
        self,
        title: str = "A title",
        body: str = "",
        *,
        kind: Kind = Kind.STORY_READY,
        about: UUID | None = None,
        actor: Actor | None = None,
        grouped: bool = False,
        language: str = "",
    ) -> None:
        """Notify the person, in a transaction of its own."""
        target = Target(TargetType.STORY, about or uuid4())
        notifier = Notifier(self.app.clock)
        async with self.app.db.transaction() as tx:
            text = ShortText(title, body, language)
            await notifier.notify(tx, self.id, kind, text, target, actor=actor, grouped=grouped)

    async def page(
        self,
        size: int = 0,
        token: str = "",
        *,
        unread: bool = False,
        kind: NotificationType.ValueType = NOTIFICATION_TYPE_UNSPECIFIED,
    ) -> pb.ListNotificationsResponse:
        request = pb.ListNotificationsRequest(page_size=size, page_token=token, unread=unread, type=kind)
        return await self.app.stub.ListNotifications(request, metadata=self.auth)

    async def listed(self) -> list[Notification]:
        return list((await self.page(100)).notifications)

    async def titles(self) -> list[str]:
        return [each.title for each in await self.listed()]

    async def unread(self) -> int:
        request = pb.CountUnreadNotificationsRequest()
        return (await self.app.stub.CountUnreadNotifications(request, metadata=self.auth)).unread_count

    async def read(self, notification_id: str) -> pb.MarkNotificationReadResponse:
        request = pb.MarkNotificationReadRequest(notification_id=notification_id)
        return await self.app.stub.MarkNotificationRead(request, metadata=self.auth)

    async def read_all(self) -> int:
        request = pb.MarkAllNotificationsReadRequest()
        return (await self.app.stub.MarkAllNotificationsRead(request, metadata=self.auth)).marked_count

    async def delete(self, notification_id: str) -> int:
        request = pb.DeleteNotificationRequest(notification_id=notification_id)
        return (await self.app.stub.DeleteNotification(request, metadata=self.auth)).unread_count

    @asynccontextmanager
    async def watching(self, resume_token: str = "", *, seconds: float = 20) -> AsyncIterator[Watcher]:
        """Open a watch during the block, with a deadline so that a missing message fails the test instead of blocking it."""
        request = pb.WatchNotificationsRequest(resume_token=resume_token)
        call = self.app.stub.WatchNotifications(request, metadata=self.auth, timeout=seconds)
        try:
            yield Watcher(aiter(call))
        finally:
            call.cancel()


@dataclass
class Watcher:
    """Keeps a list by the rules of the contract. A snapshot empties it: this client does not list."""

    messages: AsyncIterator[pb.WatchNotificationsResponse] | None = None
    shown: dict[str, Notification] = field(default_factory=dict)
    unread: int = 0
    seen: list[str] = field(default_factory=list)
    last: pb.WatchNotificationsResponse = field(default_factory=pb.WatchNotificationsResponse)

    async def step(self) -> str:
        """Read a message and return the name of its event."""
        assert self.messages, "no watch is open"
        self.last = await anext(self.messages)
        kind = self.last.WhichOneof("event") or ""
        self.seen.append(kind)
        self.unread = self.last.unread_count
        self._apply(kind)
        return kind

    async def until(self, *kinds: str) -> pb.WatchNotificationsResponse:
        """Read up to and including an event of these kinds."""
        while await self.step() not in kinds:
            pass
        return self.last

    async def change(self) -> str:
        """Read up to the next event that is no heartbeat, and return its name."""
        while (kind := await self.step()) == "heartbeat":
            pass
        return kind

    @property
    def titles(self) -> set[str]:
        return {each.title for each in self.shown.values()}

    @property
    def changes(self) -> list[str]:
        return [kind for kind in self.seen if kind != "heartbeat"]

    def _apply(self, kind: str) -> None:
        last = self.last
        match kind:
            case "snapshot":
                self.shown.clear()
            case "added" | "updated":
                notification = last.added.notification if kind == "added" else last.updated.notification
                self.shown[notification.id] = notification
            case "read":
                if known := self.shown.get(last.read.notification_id):
                    known.read_time.CopyFrom(last.read.read_time)
            case "deleted":
                self.shown.pop(last.deleted.notification_id, None)
            case "all_read":
                for each in self.shown.values():
                    if not each.HasField("read_time"):
                        each.read_time.CopyFrom(last.all_read.read_time)
            case "expired":
                before = last.expired.before_time.ToDatetime(UTC)
                for each in [*self.shown.values()]:
                    if each.update_time.ToDatetime(UTC) < before:
                        del self.shown[each.id]


@asynccontextmanager
async def serving(db: Database, database_url: str, **changes: object) -> AsyncIterator[App]:
    """Run a server of the API during the block. `changes` replace settings."""
    clock = Clock()
    changes = {"heartbeat_seconds": HEARTBEAT_SECONDS, **changes}
    async with serving_api(db, database_url, clock=clock, **changes) as served:
        stub = NotificationServiceStub(served.channel)
        yield App(db, stub, served.server, served.issuer, served.ops, clock, database_url)


@pytest.fixture
async def app(database_of: Callable[[str], Database], migrated: Callable[[str], str]) -> AsyncIterator[App]:
    db = database_of("notification")
    await empty(db)
    async with serving(db, migrated("notification")) as served:
        yield served
