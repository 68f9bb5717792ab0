"""Fixtures: the social service in this process, with real Postgres and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis
from sqlalchemy import select
from storymesh.social.v1 import block_service_pb2 as blocks_pb
from storymesh.social.v1 import directory_service_pb2 as directory_pb
from storymesh.social.v1 import profile_pb2
from storymesh.social.v1 import profile_service_pb2 as pb
from storymesh.social.v1.block_service_pb2_grpc import BlockServiceStub
from storymesh.social.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.social.v1.profile_service_pb2_grpc import ProfileServiceStub
from uuid_utils.compat import uuid7

from kit.data.database import Database
from kit.events import outbox
from kit.events.envelope import Event
from kit.events.relay import Relay
from kit.identity.tokens import ServiceTokens
from kit.rpc.resources import Resources
from kit.runtime.clock import system_clock
from mesh.event_routes import routes
from services.social import worker
from services.social.__main__ import api
from services.social.config import SocialSettings, SocialWorkerSettings
from services.social.operations import WorkerOperations, operations, worker_operations
from services.social.peers import Files
from tests.conftest import empty
from tests.identity import MESH_KEY, Issuer, bearer
from tests.social.files import FileClaims, serving

if TYPE_CHECKING:
    from storymesh.social.v1.block_service_pb2_grpc import BlockServiceAsyncStub
    from storymesh.social.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from storymesh.social.v1.profile_service_pb2_grpc import ProfileServiceAsyncStub


@dataclass
class SocialWorld:
    """The service behind its own door, and what its worker runs."""

    resources: Resources
    issuer: Issuer
    channel: grpc.aio.Channel
    handle_key: bytes
    files: FileClaims
    passed: timedelta = timedelta()
    """How far the clock of the operations is ahead."""

    @property
    def db(self) -> Database:
        return self.resources.db

    def person(self) -> Person:
        return Person(self)

    async def member(self) -> Person:
        """A person with a profile."""
        person = self.person()
        await person.own()
        return person

    @property
    def directory(self) -> DirectoryServiceAsyncStub:
        return DirectoryServiceStub(self.channel)

    @property
    def service(self) -> tuple[tuple[str, str], ...]:
        return bearer(ServiceTokens(MESH_KEY, service="notification", clock=self.resources.clock).mint("social"))

    async def seen_by_service(self, *people: Person, viewer: Person | None = None) -> list[profile_pb2.Profile]:
        request = directory_pb.GetProfilesRequest(
            user_ids=[str(each.id) for each in people], viewer_id=str(viewer.id) if viewer else ""
        )
        return list((await self.directory.GetProfiles(request, metadata=self.service)).profiles)

    async def may_contact(self, sender: Person, recipient: Person) -> bool:
        request = directory_pb.CheckContactRequest(sender_id=str(sender.id), recipient_id=str(recipient.id))
        answer = await self.directory.CheckContact(request, metadata=self.service)
        return answer.contact == directory_pb.CONTACT_ALLOWED

    @property
    def worker_settings(self) -> SocialWorkerSettings:
        return SocialWorkerSettings(
            database_url=self.resources.database_url,
            mesh_key=MESH_KEY,
            handle_key=self.handle_key,
            lease_seconds=2,
            max_failures=3,
        )

    def work(self) -> WorkerOperations:
        return worker_operations(self.worker_settings, self.resources)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run the relay and both inboxes."""
        settings, ops, stopping = self.worker_settings, self.work(), asyncio.Event()
        relay = Relay(
            self.db, self.resources.redis, routes(), service="social", database_url=self.resources.database_url
        )
        async with asyncio.TaskGroup() as group:
            for task in (
                relay,
                worker.social_inbox(settings, self.resources, ops),
                worker.accounts_inbox(settings, self.resources, ops),
            ):
                group.create_task(task.run(stopping))
            yield
            stopping.set()

    async def deliver(self, message: Message, inbox: str, key: UUID) -> None:
        """Put an event of auth into an inbox, as auth's relay does."""
        event = Event(
            id=uuid7(),
            type=message.DESCRIPTOR.full_name,
            key=str(key),
            occurred_at=system_clock(),
            traceparent="",
            payload=message.SerializeToString(),
        )
        await self.resources.redis.xadd(f"inbox:{inbox}", {"event": event.to_bytes()})

    async def events(self) -> list[tuple[str, bytes]]:
        """The events that were written, by the names of their messages, in order."""
        query = select(outbox.table.c.type, outbox.table.c.payload).order_by(outbox.table.c.position)
        async with self.db.single() as tx:
            rows = (await tx.execute(query)).all()
        return [(name.rpartition(".")[2], payload) for name, payload in rows]


@dataclass
class Person:
    """A signed-in user of the API."""

    world: SocialWorld
    id: UUID = field(default_factory=uuid7)

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.world.issuer.token(self.id))

    @property
    def profiles(self) -> ProfileServiceAsyncStub:
        return ProfileServiceStub(self.world.channel)

    @property
    def stances(self) -> BlockServiceAsyncStub:
        return BlockServiceStub(self.world.channel)

    async def own(self) -> profile_pb2.Profile:
        return (await self.profiles.GetOwnProfile(pb.GetOwnProfileRequest(), metadata=self.auth)).profile

    async def change(self, **fields: object) -> profile_pb2.Profile:
        request = pb.UpdateProfileRequest(**fields)  # type: ignore[arg-type]
        return (await self.profiles.UpdateProfile(request, metadata=self.auth)).profile

    async def delete(self) -> None:
        await self.profiles.DeleteProfile(pb.DeleteProfileRequest(), metadata=self.auth)

    async def look_at(self, other: Person | str) -> profile_pb2.Profile:
        user_id = other if isinstance(other, str) else str(other.id)
        return (await self.profiles.GetProfile(pb.GetProfileRequest(user_id=user_id), metadata=self.auth)).profile

    async def avatar(self, other: Person, size: int = 0) -> pb.GetAvatarResponse:
        request = pb.GetAvatarRequest(user_id=str(other.id), size=size)
        return await self.profiles.GetAvatar(request, metadata=self.auth)

    async def find(self, handle: str) -> profile_pb2.Profile:
        request = pb.GetProfileByHandleRequest(handle=handle)
        return (await self.profiles.GetProfileByHandle(request, metadata=self.auth)).profile

    async def look_at_all(self, *others: Person) -> list[profile_pb2.Profile]:
        request = pb.BatchGetProfilesRequest(user_ids=[str(each.id) for each in others])
        return list((await self.profiles.BatchGetProfiles(request, metadata=self.auth)).profiles)

    async def block(self, other: Person) -> profile_pb2.Relationship:
        request = blocks_pb.BlockRequest(user_id=str(other.id))
        return (await self.stances.Block(request, metadata=self.auth)).relationship

    async def unblock(self, other: Person) -> profile_pb2.Relationship:
        request = blocks_pb.UnblockRequest(user_id=str(other.id))
        return (await self.stances.Unblock(request, metadata=self.auth)).relationship

    async def mute(self, other: Person) -> profile_pb2.Relationship:
        request = blocks_pb.MuteRequest(user_id=str(other.id))
        return (await self.stances.Mute(request, metadata=self.auth)).relationship

    async def unmute(self, other: Person) -> profile_pb2.Relationship:
        request = blocks_pb.UnmuteRequest(user_id=str(other.id))
        return (await self.stances.Unmute(request, metadata=self.auth)).relationship

    async def blocked(self, **fields: object) -> blocks_pb.ListBlocksResponse:
        return await self.stances.ListBlocks(blocks_pb.ListBlocksRequest(**fields), metadata=self.auth)  # type: ignore[arg-type]

    async def muted(self, **fields: object) -> blocks_pb.ListMutesResponse:
        return await self.stances.ListMutes(blocks_pb.ListMutesRequest(**fields), metadata=self.auth)  # type: ignore[arg-type]


def ids(profiles: object) -> list[str]:
    return [each.user_id for each in profiles]  # type: ignore[attr-defined]


@pytest.fixture
async def world(
    database_of: Callable[[str], Database], migrated: Callable[[str], str], redis: Redis
) -> AsyncIterator[SocialWorld]:
    db = database_of("social")
    await empty(db)
    issuer, handle_key = Issuer(), b"h" * 32

    def clock() -> datetime:
        return system_clock() + made.passed

    files = FileClaims(clock)
    async with serving(files, clock) as file_target:
        settings = SocialSettings(
            listen="127.0.0.1:0",
            database_url=migrated("social"),
            mesh_key=MESH_KEY,
            cursor_key=b"c" * 32,
            handle_key=handle_key,
            file_target=file_target,
            drain_seconds=2,
        )

        async with Resources(
            "social", settings, clock=clock, db=db, redis=redis, revocations=issuer.revocations
        ) as resources:
            server = api(settings, resources, operations(settings, resources, Files(resources.channel("file"))))
            running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
            async with grpc.aio.insecure_channel(await server.address) as channel:
                made = SocialWorld(resources, issuer, channel, handle_key, files)
                yield made
            server.stopping.set()
            await running
