"""Keeps a process's list of revocations up to date from auth's stream, for every service but auth itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC
from uuid import UUID

from grpc.aio import Channel
from storymesh.auth.v1 import revocation_service_pb2 as pb
from storymesh.auth.v1.revocation_service_pb2_grpc import RevocationServiceStub

from kit.errors import MeshError
from kit.runtime.loops import every

from .revocations import Revocation, RevocationKind, Revocations

log = logging.getLogger(__name__)

_SILENCE_SECONDS = 12.0
"""Auth sends a heartbeat every five seconds. Two may be late; after that the stream is dead, even if TCP has not noticed."""

_TELL_SECONDS = 1.0


def wait_seconds(failures: int) -> float:
    """Full jitter, up to a second: a replica that reconnects late learns late which sessions were revoked."""
    return random.uniform(0, min(0.05 * 2.0 ** min(failures, 10), 1.0))  # noqa: S311  # spreads load; nothing secret depends on it


class RevocationFollower:
    """Connects, and connects again, for as long as the process serves. Auth's failures never end it.

    The log tells each change once: lost, stale, back.
    """

    def __init__(
        self,
        auth: Channel,
        revocations: Revocations,
        *,
        silence_seconds: float = _SILENCE_SECONDS,
        wait: Callable[[int], float] = wait_seconds,
        tell_seconds: float = _TELL_SECONDS,
    ) -> None:
        self._stub = RevocationServiceStub(auth)
        self._revocations = revocations
        self._silence_seconds = silence_seconds
        self._wait = wait
        self._tell_seconds = tell_seconds
        self._failures = 0
        self._told_lost = False
        self._told_stale = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Follows the feed until `stopping` is set."""
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow())
            await every(self._tell_seconds, stopping, self._tell_when_stale, failure="staleness cannot be told now")
            following.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                await self._read()
                self._lost("auth ended the stream")
            except TimeoutError:
                self._lost(f"auth was silent for {self._silence_seconds:g} s")
            except MeshError as error:
                self._lost(f"{error.reason}: {error}")
            except Exception as error:
                # A message that is not understood must not be passed over: the list counts as incomplete from here on.
                self._lost(f"auth said what is not understood: {error!r}")
            self._failures += 1
            await asyncio.sleep(self._wait(self._failures))

    async def _read(self) -> None:
        """Takes messages until the stream ends. Raises TimeoutError when it falls silent."""
        call = self._stub.WatchRevocations(pb.WatchRevocationsRequest())
        messages = aiter(call)
        begun = False
        try:
            while True:
                async with asyncio.timeout(self._silence_seconds):
                    message = await anext(messages, None)
                if message is None:
                    return
                self._take(message, begun=begun)
                begun = True
                self._back()
        finally:
            call.cancel()

    def _take(self, message: pb.WatchRevocationsResponse, *, begun: bool) -> None:
        match message.WhichOneof("message"):
            case "snapshot":
                self._revocations.replace([_from_proto(each) for each in message.snapshot.revocations])
            case "revocation" if begun:
                self._revocations.add(_from_proto(message.revocation))
            case "heartbeat" if begun:
                self._revocations.heard()
            case other:
                raise ValueError(f"unexpected message: {other}")

    def _lost(self, reason: str) -> None:
        if not self._told_lost:
            self._told_lost = True
            log.warning("the revocation feed is lost: %s", reason)

    def _back(self) -> None:
        self._failures = 0
        if self._told_stale:
            log.warning("the revocation feed is back: writes are taken again")
        elif self._told_lost:
            log.info("the revocation feed is back")
        self._told_lost = self._told_stale = False

    async def _tell_when_stale(self) -> None:
        if self._revocations.overdue and not self._told_stale:
            self._told_stale = True
            log.error("the list of revocations is stale: writes are refused until the feed is back")


def _from_proto(message: pb.Revocation) -> Revocation:
    """Raises ValueError for a kind that this version does not know, or an id that is none."""
    expires_at = message.expire_time.ToDatetime(tzinfo=UTC)
    match message.WhichOneof("target"):
        case "session_id":
            return Revocation(RevocationKind.SESSION, str(UUID(message.session_id)), expires_at)
        case "user_id":
            excepted = UUID(message.excepted_session_id) if message.excepted_session_id else None
            return Revocation(
                RevocationKind.USER, str(UUID(message.user_id)), expires_at, message.before_epoch or None, excepted
            )
        case "kid":
            return Revocation(RevocationKind.KEY, message.kid, expires_at)
        case _:
            raise ValueError("a revocation of an unknown kind")
