"""The operators' service's calls to other services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from grpc.aio import Channel
from storymesh.ops.v1 import dead_letter_service_pb2 as pb
from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from storymesh.ops.v1.rate_limit_service_pb2_grpc import RateLimitServiceStub

from kit.errors import DeadlineExceeded, Unavailable
from kit.events.dead_letter_model import Administrator, DeadLetter, DeadLetterPage, DeadLetterStore, Settlement
from kit.events.dead_letter_service import from_proto
from kit.rpc.channels import in_the_name_of
from kit.rpc.resources import Resources

from .config import RECEIVERS

M = TypeVar("M", bound=Message)


def dead_letter_stores(resources: Resources) -> Mapping[str, DeadLetterStore]:
    """The dead letters of every service that keeps any, by its name."""
    return {name: ServiceDeadLetters(resources.channel(name)) for name in RECEIVERS}


class ServiceDeadLetters:
    """Another service's dead letters. That service itself checks that the caller is an administrator.

    Raises its refusals, and Unavailable if it does not answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._stub = DeadLetterServiceStub(channel)

    async def list(self, administrator: Administrator, service: str, page_size: int, page_token: str) -> DeadLetterPage:
        request = pb.ListDeadLettersRequest(service=service, page_size=page_size, page_token=page_token)
        page = await self._stub.ListDeadLetters(request, metadata=in_the_name_of(administrator.access_token))
        return DeadLetterPage(tuple(map(from_proto, page.dead_letters)), page.next_page_token)

    async def settle(
        self,
        administrator: Administrator,
        service: str,
        settlement: Settlement,
        event_ids: Sequence[UUID],
        *,
        reason: str,
        dry_run: bool,
    ) -> Sequence[DeadLetter]:
        ids, metadata = list(map(str, event_ids)), in_the_name_of(administrator.access_token)
        if settlement is Settlement.REPLAYED:
            replay = pb.ReplayDeadLettersRequest(service=service, event_ids=ids, reason=reason, dry_run=dry_run)
            return list(map(from_proto, (await self._stub.ReplayDeadLetters(replay, metadata=metadata)).dead_letters))
        discard = pb.DiscardDeadLettersRequest(service=service, event_ids=ids, reason=reason, dry_run=dry_run)
        return list(map(from_proto, (await self._stub.DiscardDeadLetters(discard, metadata=metadata)).dead_letters))


class RateLimits:
    """The limiter's methods for administrators. The limiter itself checks that the caller is one, and records who changed what.

    Raises its refusals, and Unavailable if it does not answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._stub = RateLimitServiceStub(channel)

    async def call(self, administrator: Administrator, method: str, request: Message, _answer: type[M]) -> M:
        """The limiter's answer to the method of this name, which takes and answers the same messages as ours."""
        try:
            answer: M = await getattr(self._stub, method)(request, metadata=in_the_name_of(administrator.access_token))
        except (Unavailable, DeadlineExceeded) as error:
            if not error.peer:
                raise
            raise Unavailable(dependency="ratelimit") from error
        return answer
