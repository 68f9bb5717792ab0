"""The notification worker and its API, on real servers."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal
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
from kit.runtime.clock import Clock, system_clock
from local.harness import Servers
from services.notification import worker
from services.notification.config import NotificationWorkerSettings
from services.notification.model.deliveries import UNFINISHED, Channel, Pause
from services.notification.model.suppressions import AddressDigests
from services.notification.operations import WorkerOperations, letters_of, worker_operations
from services.notification.operations.channels import DeliveryChannel
from services.notification.operations.delivering import Delivering, DeliveryTuning
from services.notification.operations.digests import Digests
from services.notification.operations.erasing import Erasing
from services.notification.operations.facts import FactReader
from services.notification.operations.notices import Notices
from services.notification.operations.preference_gate import PreferenceGate
from services.notification.peers import AccountDirectory, StoryDirectory
from services.notification.tables import deliveries, delivery_steps, notifications
from tests.conftest import empty
from tests.identity import MESH_KEY
from tests.notification.app import app  # noqa: F401  # a fixture
from tests.notification.desk import desk  # noqa: F401  # a fixture
from tests.notification.directory import Directory, StoryLinks, serving, serving_stories
from tests.notification.keys import ADDRESS_KEY, SEAL_KEY, SENDER, UNSUBSCRIBE_KEY
from tests.notification.returned_mail import folder  # noqa: F401  # a fixture
from tests.notification.scripted_channel import ScriptedChannel
from tests.notification.webhook_receivers import authority, receiver, webhooks  # noqa: F401  # fixtures
from tests.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
SEAL = Seal(SEAL_KEY)
DIGESTS = AddressDigests(ADDRESS_KEY)
STREAM = stream_of("notification")
SEAL_PURPOSE = auth_events_pb2.CodeMail.DESCRIPTOR.full_name
ADDRESS_SEAL_PURPOSE = auth_events_pb2.AddressMail.DESCRIPTOR.full_name


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
    challenge: UUID | Literal["new", "none"] = "new",
    occurred_at: datetime | None = None,
) -> Event:
    mail = auth_events_pb2.CodeMail(email=to, code=code, first_name=first_name)
    issued = auth_events_pb2.CodeIssued(
        challenge_id="" if challenge == "none" else str(uuid4() if challenge == "new" else challenge),
        purpose=purpose,
        sealed_mail=seal.seal(SEAL_PURPOSE, mail.SerializeToString()),
    )
    issued.expire_time.FromDatetime(datetime.now(UTC) + life)
    return replace(event(issued), occurred_at=occurred_at or datetime.now(UTC))


def email_changed(user: UUID, old: str = "old@example.com", first_name: str = "Ada") -> Event:
    mail = auth_events_pb2.AddressMail(email=old, first_name=first_name)
    sealed = SEAL.seal(ADDRESS_SEAL_PURPOSE, mail.SerializeToString())
    return event(auth_events_pb2.EmailChanged(user_id=str(user), sealed_mail=sealed))


def user_deleted(user: UUID) -> Event:
    return event(auth_events_pb2.UserDeleted(user_id=str(user)), key=user)


def story_completed(
    owner: UUID, title: str = "The Lighthouse", story_id: UUID | None = None, *, excerpt: str = ""
) -> Event:
    completed = story_events_pb2.StoryCompleted(
        story_id=str(story_id or uuid4()), owner_id=str(owner), title=title, excerpt=excerpt
    )
    return event(completed)


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
    stories: StoryLinks
    address: str
    story_address: str
    smtp_port: int
    mailbox: Mailbox
    smtp_seconds: float = 10.0
    webhook_ca_file: str = ""
    webhook_local: bool = True
    webhook_seconds: float = 10.0
    smtp_final_reply_seconds: float = 0.0
    """0: as long as the other steps have."""
    language: str = "en"
    max_failures: int = 3
    erasing_batch: int = 1000
    bounce_folder: str = ""
    bounce_address: str = ""
    dkim_key_file: str = ""
    lease_seconds: float = 10.0
    poll_seconds: float = 0.05
    slow_seconds: float = 3.0
    concurrency: int = 4
    channel: ScriptedChannel | None = None
    """Takes the place of mail."""
    running: list[asyncio.Task[None]] = field(default_factory=list)
    """The loops of the worker that was started last."""
    clock: Clock = system_clock
    pause: Pause = field(default=lambda _attempts, _life: timedelta(milliseconds=10))

    def settings(self) -> NotificationWorkerSettings:
        return NotificationWorkerSettings(
            database_url=self.database_url,
            auth_target=self.address,
            story_target=self.story_address,
            mesh_key=MESH_KEY,
            seal_key=SEAL_KEY,
            unsubscribe_key=UNSUBSCRIBE_KEY,
            address_key=ADDRESS_KEY,
            bounce_folder=self.bounce_folder,
            bounce_address=self.bounce_address,
            dkim_key_file=self.dkim_key_file,
            smtp_port=self.smtp_port,
            smtp_seconds=self.smtp_seconds,
            smtp_final_reply_seconds=self.smtp_final_reply_seconds or self.smtp_seconds,
            mail_from=SENDER,
            default_language=self.language,
            webhook_ca_file=self.webhook_ca_file,
            webhook_local=self.webhook_local,
            webhook_seconds=self.webhook_seconds,
            public_url="https://stories.example/",
            lease_seconds=10,
            max_failures=self.max_failures,
        )

    def tuning(self) -> DeliveryTuning:
        return DeliveryTuning(
            lease_seconds=self.lease_seconds,
            concurrency=self.concurrency,
            max_failures=self.max_failures,
            poll_seconds=self.poll_seconds,
            slow_seconds=self.slow_seconds,
            pause=self.pause,
        )

    def with_channel(
        self, ops: WorkerOperations, channel: DeliveryChannel, stories: StoryDirectory
    ) -> WorkerOperations:
        facts, channels = FactReader(SEAL), {Channel.EMAIL: channel}
        digests = Digests(self.db, facts, stories, self.clock, key=ADDRESS_KEY)
        delivering = Delivering(
            self.db,
            channels,
            facts,
            self.clock,
            gate=PreferenceGate(self.db, digests, self.clock, throttles=[]),
            digests=digests,
            database_url=self.database_url,
            tuning=self.tuning(),
        )
        notices = Notices(self.db, facts, letters_of(self.settings()), delivering, self.clock)
        return replace(ops, notices=notices, delivering=delivering)

    async def send(self, *events: Event) -> None:
        for each in events:
            await self.redis.xadd(STREAM, {"event": each.to_bytes()})

    @asynccontextmanager
    async def working(self, *, cut_off: bool = False, takes_events: bool = True) -> AsyncIterator[None]:
        """Run a worker. It drains at the end of the block, or is cancelled there when `cut_off`."""
        stopping = asyncio.Event()
        async with Resources("notification", self.settings(), db=self.db, redis=self.redis) as resources:
            # Not the clock of its tokens, which auth checks by its own.
            resources.clock = self.clock
            accounts = AccountDirectory(resources.channel("auth"))
            stories = StoryDirectory(resources.channel("story"))
            ops = worker_operations(self.settings(), resources, accounts.find, stories, tuning=self.tuning())
            ops = replace(ops, erasing=Erasing(self.db, batch=self.erasing_batch))
            if self.channel:
                ops = self.with_channel(ops, self.channel, stories)
            # A stopping inbox ends only after its blocking read of Redis.
            tuning = InboxTuning(block_seconds=0.05)
            inbox = worker.inbox(self.settings(), resources, ops, backoff=lambda _: 0.0, tuning=tuning)
            delivering = (ops.delivering, ops.webhooks)
            loops = (inbox, *delivering, ops.records) if takes_events else delivering
            running = [asyncio.create_task(each.run(stopping)) for each in loops]
            self.running = running
            try:
                yield
            finally:
                stopping.set()
                if cut_off:
                    for task in running:
                        task.cancel()
                await asyncio.wait(running, timeout=20)
                assert {task.cancelled() for task in running} == {cut_off}

    async def handle(self, *events: Event) -> None:
        """Publish the events and work until no event is left."""
        async with self.working():
            await self.send(*events)
            await until(self.idle)

    async def idle(self) -> bool:
        """Whether every event is decided and every delivery has its final state."""
        return await self.decided() and not await self.unfinished()

    async def unfinished(self) -> list[RowMapping]:
        async with self.db.transaction() as tx:
            query = select(deliveries).where(deliveries.c.state.in_(UNFINISHED))
            return list((await tx.execute(query)).mappings())

    async def decided(self) -> bool:
        """Whether no event waits in the inbox."""
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.xlen(STREAM)
            pipeline.zcard(delayed_of("notification"))
            return await pipeline.execute() == [0, 0]

    async def records(self) -> dict[UUID, RowMapping]:
        """The delivery of each event's mail."""
        async with self.db.transaction() as tx:
            query = select(deliveries).where(deliveries.c.channel == "EMAIL")
            return {row["event_id"]: row for row in (await tx.execute(query)).mappings()}

    async def steps(self, event: Event, channel: str = "EMAIL") -> list[str]:
        """What was decided about the event on the channel, in order, each decision with its detail."""
        query = select(delivery_steps).where(delivery_steps.c.event_id == event.id, delivery_steps.c.channel == channel)
        async with self.db.transaction() as tx:
            rows = (await tx.execute(query.order_by(delivery_steps.c.id))).mappings()
            return [f"{row['decision']} {row['detail']}".strip() for row in rows]

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
async def stories() -> AsyncIterator[tuple[StoryLinks, str]]:
    links = StoryLinks()
    async with serving_stories(links) as address:
        yield links, address


@pytest.fixture
async def world(
    database_of: Callable[[str], Database],
    migrated: Callable[[str], str],
    redis: Redis,
    servers: Servers,
    accounts: tuple[Directory, str],
    stories: tuple[StoryLinks, str],
) -> MailWorld:
    db = database_of("notification")
    await empty(db)
    for path in servers.mail_dir.glob("*.eml"):
        path.unlink()
    directory, address = accounts
    links, story_address = stories
    return MailWorld(
        db,
        migrated("notification"),
        redis,
        directory,
        links,
        address,
        story_address,
        servers.smtp_port,
        Mailbox(servers.mail_dir),
    )
