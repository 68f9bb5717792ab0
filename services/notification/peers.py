"""What the notification service asks of others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from uuid import UUID

from grpc.aio import Channel
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.ops.v1 import dead_letter_service_pb2 as ops
from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

from kit.errors import NotFound
from kit.events.dead_letter_model import Administrator, DeadLetter, DeadLetterDecision, DeadLetterPage, Settlement
from kit.events.dead_letter_service import SETTLEMENTS
from kit.rpc.channels import in_the_name_of

from .model import Recipient

_SETTLEMENTS = {name: settlement for settlement, name in SETTLEMENTS.items()}


class Accounts:
    """Accounts, as auth knows them at this moment."""

    def __init__(self, channel: Channel) -> None:
        self._stub = DirectoryServiceStub(channel)

    async def find(self, user_id: UUID) -> Recipient | None:
        """None for an account that is gone. Raises Unavailable when auth does not answer; the event is then tried again."""
        try:
            response = await self._stub.GetUser(pb.GetUserRequest(user_id=str(user_id)))
        except NotFound:
            return None
        return Recipient(response.user.email, response.user.first_name, user_id)


class StoryDeadLetters:
    """Those of the story service, asked for in the administrator's own name: it decides itself who is one.

    Raises Unavailable when it does not answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._stub = DeadLetterServiceStub(channel)

    async def list(self, administrator: Administrator, page_size: int, page_token: str) -> DeadLetterPage:
        request = ops.ListDeadLettersRequest(service="story", page_size=page_size, page_token=page_token)
        response = await self._stub.ListDeadLetters(request, metadata=in_the_name_of(administrator.access_token))
        return DeadLetterPage(tuple(map(_letter, response.dead_letters)), response.next_page_token)

    async def settle(
        self,
        administrator: Administrator,
        settlement: Settlement,
        event_ids: Sequence[UUID],
        *,
        reason: str,
        dry_run: bool,
    ) -> Sequence[DeadLetter]:
        ids, metadata = list(map(str, event_ids)), in_the_name_of(administrator.access_token)
        if settlement is Settlement.REPLAYED:
            replay = ops.ReplayDeadLettersRequest(service="story", event_ids=ids, reason=reason, dry_run=dry_run)
            return list(map(_letter, (await self._stub.ReplayDeadLetters(replay, metadata=metadata)).dead_letters))
        discard = ops.DiscardDeadLettersRequest(service="story", event_ids=ids, reason=reason, dry_run=dry_run)
        return list(map(_letter, (await self._stub.DiscardDeadLetters(discard, metadata=metadata)).dead_letters))


def _letter(message: ops.DeadLetter) -> DeadLetter:
    return DeadLetter(
        event_id=UUID(message.event_id),
        service=message.service,
        type=message.type,
        key=message.key,
        reason=message.reason,
        failures=message.failures,
        died_at=message.die_time.ToDatetime(UTC),
        decisions=tuple(map(_decision, message.decisions)),
    )


def _decision(message: ops.DeadLetterDecision) -> DeadLetterDecision:
    return DeadLetterDecision(
        _SETTLEMENTS[message.decision], UUID(message.actor), message.reason, message.decide_time.ToDatetime(UTC)
    )
