"""A desk that follows the revocations of an auth service of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import grpc
from grpc.aio import ServicerContext
from storymesh.auth.v1 import revocation_service_pb2 as pb
from storymesh.auth.v1.revocation_service_pb2_grpc import (
    RevocationServiceServicer,
    add_RevocationServiceServicer_to_server,
)

from kit.identity.revocation_feed import RevocationFollower
from kit.identity.revocations import Revocations
from kit.rpc import channels
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS, RunningDesk

SERVICE = pb.DESCRIPTOR.services_by_name["RevocationService"].full_name

Message = pb.WatchRevocationsResponse
Context: TypeAlias = "ServicerContext[pb.WatchRevocationsRequest, Message]"


class Stopwatch:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Auth(RevocationServiceServicer):
    """Says what the test wants: a snapshot and whatever is pushed, or nothing at all."""

    def __init__(self) -> None:
        self.revoked: list[pb.Revocation] = []
        self.watchers: list[asyncio.Queue[Message | None]] = []
        self.connections = 0
        self.mute = False
        self.opening: Message | None = None
        """Said in the place of the snapshot."""

    async def WatchRevocations(
        self, request: pb.WatchRevocationsRequest, context: Context
    ) -> AsyncGenerator[Message, None]:
        self.connections += 1
        if self.mute:
            await asyncio.Event().wait()
        queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self.watchers.append(queue)
        try:
            yield self.opening or Message(snapshot=Message.Snapshot(revocations=self.revoked))
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self.watchers.remove(queue)

    def say(self, message: Message) -> None:
        for queue in self.watchers:
            queue.put_nowait(message)

    def beat(self) -> None:
        self.say(Message(heartbeat=Message.Heartbeat()))

    def hang_up(self) -> None:
        for queue in self.watchers:
            queue.put_nowait(None)

    def revoke(self, *, before_epoch: int = 0, excepted: object = "", **target: object) -> None:
        """`session_id`, `user_id` or `kid`, for ten minutes."""
        ((name, value),) = target.items()
        revocation = pb.Revocation(before_epoch=before_epoch, excepted_session_id=str(excepted))
        setattr(revocation, name, str(value))
        revocation.expire_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=10))
        self.revoked.append(revocation)
        self.say(Message(revocation=revocation))

    @asynccontextmanager
    async def serving(self, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
        """Answers other services only, as auth does. Yields the address."""
        server = Server(SETTINGS.model_copy(update={"listen": listen, "drain_seconds": 0.1}), required={})
        server.add(add_RevocationServiceServicer_to_server, self)
        running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("auth")))
        try:
            yield await server.address
        finally:
            server.stopping.set()
            await running


@dataclass
class FollowingDesk(RunningDesk):
    """A desk that knows of revocations what it was told."""

    revocations: Revocations
    elapsed: Stopwatch


@asynccontextmanager
async def following(address: str, *, silence_seconds: float = 12.0) -> AsyncIterator[FollowingDesk]:
    """Composed like every service that people call."""
    elapsed = Stopwatch()
    revocations = Revocations(system_clock, monotonic=elapsed)
    desk, issuer = desks.Desk(), Issuer(revocations=revocations)
    async with channels.connect(address, "auth", service_tokens("desk")) as auth:
        server = Server(
            SETTINGS,
            required={"revocation_snapshot": revocations.check_known},
            optional={"revocations": revocations.check_fresh},
            check_every_seconds=0.05,
            check_seconds=0.2,
        )
        desks.add(server, desk)
        server.background(RevocationFollower(auth, revocations, silence_seconds=silence_seconds, tell_seconds=0.02).run)
        revocations.show_in(server.metrics)
        running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("desk")))
        own = await server.address
        async with grpc.aio.insecure_channel(own) as channel:
            yield FollowingDesk(
                desk, desks.DeskStub(channel), channel, issuer, own, server, SETTINGS, revocations, elapsed
            )
        server.stopping.set()
        await running
