"""The notification worker and its API, on real servers."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.engine.row import RowMapping
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.data.database import Database
from kit.events.dead_letter_store import dead_letters
from kit.events.envelope import Event
from kit.events.inbox_stream import InboxTuning, delayed_of, stream_of
from kit.identity.sealing import Seal
from kit.rpc.resources import Resources
from local.harness import Servers
from services.notification import worker
from services.notification.config import NotificationWorkerSettings
from services.notification.operations import worker_operations
from services.notification.operations.erasing import Erasing
from services.notification.peers import AccountDirectory
from services.notification.tables import mails, notifications
from services.notification.worker import ADDRESS_SEAL_PURPOSE, SEAL_PURPOSE
from tests.conftest import empty
from tests.identity import MESH_KEY
from tests.notification.directory import Directory, serving
from tests.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
SEAL_KEY = b"s" * 32
SEAL = Seal(SEAL_KEY)
SENDER = "Storymesh <no-reply@mail.example>"
STREAM = stream_of("notification")


def event(message: Message, key: object = "k") -> Event:
    return Event(
        id=uuid4(),
        type=message.DESCRIPTOR.full_name,
        key=str(key),
        occurred_at=datetime.now(UTC),
        traceparent=f"00-{TRACE}-b7ad6b7169203331-01",
        payload=message.SerializeToString(),
    )


def code_issued(
    code: str = "123456",
    to: str = "ada@example.com",
    first_name: str = "Ada",
    life: timedelta = timedelta(minutes=10),
    seal: Seal = SEAL,
    purpose: auth_events_pb2.CodePurpose.ValueType = auth_events_pb2.CODE_PURPOSE_REGISTRATION,
) -> Event:
    mail = auth_events_pb2.CodeMail(email=to, code=code, first_name=first_name)
    issued = auth_events_pb2.CodeIssued(
        challenge_id=str(uuid4()),
        purpose=purpose,
        sealed_mail=seal.seal(SEAL_PURPOSE, mail.SerializeToString()),
    )
    issued.expire_time.FromDatetime(datetime.now(UTC) + life)
    return event(issued)


def email_changed(user: UUID, old: str = "old@example.com", first_name: str = "Ada") -> Event:
    mail = auth_events_pb2.AddressMail(email=old, first_name=first_name)
    sealed = SEAL.seal(ADDRESS_SEAL_PURPOSE, mail.SerializeToString())
    return event(auth_events_pb2.EmailChanged(user_id=str(user), sealed_mail=sealed))


def user_deleted(user: UUID) -> Event:
    return event(auth_events_pb2.UserDeleted(user_id=str(user)), key=user)


def story_completed(owner: UUID, title: str = "The Lighthouse", story_id: UUID | None = None) -> Event:
    return event(story_events_pb2.StoryCompleted(story_id=str(story_id or uuid4()), owner_id=str(owner), title=title))


@dataclass
class Mailbox:
    """The mails that the mail sink has received."""

    folder: Path

    def mails(self) -> list[EmailMessage]:
        parse: Any = email.message_from_bytes
        return [parse(path.read_bytes(), policy=email.policy.default) for path in sorted(self.folder.glob("*.eml"))]

    def raw(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*.eml"))]

    async def one(self) -> EmailMessage:
        (mail,) = await until(self.mails)
        return mail


@dataclass
class MailWorld:
    """A worker with its database, Redis, mail sink and directory of accounts."""

    db: Database
    database_url: str
    redis: Redis
    accounts: Directory
    address: str
    smtp_port: int
    mailbox: Mailbox
    smtp_seconds: float = 10.0
    max_failures: int = 3
    erasing_batch: int = 1000

    def settings(self) -> NotificationWorkerSettings:
        return NotificationWorkerSettings(
            database_url=self.database_url,
            auth_target=self.address,
            mesh_key=MESH_KEY,
            seal_key=SEAL_KEY,
            smtp_port=self.smtp_port,
            smtp_seconds=self.smtp_seconds,
            mail_from=SENDER,
            public_url="https://stories.example/",
            lease_seconds=10,
            max_failures=self.max_failures,
        )

    async def send(self, *events: Event) -> None:
        for each in events:
            await self.redis.xadd(STREAM, {"event": each.to_bytes()})

    @asynccontextmanager
    async def working(self, *, cut_off: bool = False) -> AsyncIterator[None]:
        """Run a worker. It drains at the end of the block, or is cancelled there when `cut_off`."""
        stopping = asyncio.Event()
        async with Resources("notification", self.settings(), db=self.db, redis=self.redis) as resources:
            ops, accounts = worker_operations(self.settings(), resources), AccountDirectory(resources.channel("auth"))
            ops = replace(ops, erasing=Erasing(self.db, batch=self.erasing_batch))
            # A stopping inbox ends only after its blocking read of Redis.
            tuning = InboxTuning(block_seconds=0.05)
            inbox = worker.inbox(self.settings(), resources, ops, accounts, backoff=lambda _: 0.0, tuning=tuning)
            running = asyncio.create_task(inbox.run(stopping))
            try:
                yield
            finally:
                stopping.set()
                if cut_off:
                    running.cancel()
                await asyncio.wait([running], timeout=20)
                assert running.cancelled() == cut_off

    async def handle(self, *events: Event) -> None:
        """Publish the events and work until no event is left."""
        async with self.working():
            await self.send(*events)
            await until(self.idle)

    async def idle(self) -> bool:
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.xlen(STREAM)
            pipeline.zcard(delayed_of("notification"))
            return await pipeline.execute() == [0, 0]

    async def records(self) -> dict[UUID, RowMapping]:
        """The stored record of each event's mail."""
        async with self.db.transaction() as tx:
            return {row["event_id"]: row for row in (await tx.execute(select(mails))).mappings()}

    async def notifications(self) -> list[RowMapping]:
        async with self.db.transaction() as tx:
            return list((await tx.execute(select(notifications).order_by(notifications.c.id))).mappings())

    async def dead(self) -> list[RowMapping]:
        async with self.db.transaction() as tx:
            return list((await tx.execute(select(dead_letters))).mappings())


@pytest.fixture
async def accounts() -> AsyncIterator[tuple[Directory, str]]:
    directory = Directory()
    async with serving(directory) as address:
        yield directory, address


@pytest.fixture
async def world(
    database_of: Callable[[str], Database],
    migrated: Callable[[str], str],
    redis: Redis,
    servers: Servers,
    accounts: tuple[Directory, str],
) -> MailWorld:
    db = database_of("notification")
    await empty(db)
    for path in servers.mail_dir.glob("*.eml"):
        path.unlink()
    directory, address = accounts
    return MailWorld(
        db, migrated("notification"), redis, directory, address, servers.smtp_port, Mailbox(servers.mail_dir)
    )
