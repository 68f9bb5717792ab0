"""What the notification service asks of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc import StatusCode
from grpc.aio import AioRpcError, Channel
from grpc_status import rpc_status
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.ops.v1 import dead_letter_service_pb2 as ops
from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

from kit.errors import InvalidArgument, PermissionDenied, Unauthenticated, Violation
from kit.events.dead_letter_service import SETTLEMENTS
from kit.events.dead_letters import Administrator, DeadLetter, DeadLetterNotFound, Decision, Letters, Settlement

from .model import Recipient

M = TypeVar("M", bound=Message)

_SETTLEMENTS = {name: settlement for settlement, name in SETTLEMENTS.items()}


class Accounts:
    """Accounts, as auth knows them at this moment."""

    def __init__(self, channel: Channel) -> None:
        self._stub = DirectoryServiceStub(channel)

    async def find(self, user_id: UUID) -> Recipient | None:
        """None for an account that is gone. Raises AioRpcError when auth does not answer; the event is then tried again."""
        try:
            response = await self._stub.GetUser(pb.GetUserRequest(user_id=str(user_id)))
        except AioRpcError as error:
            if error.code() is StatusCode.NOT_FOUND:
                return None
            raise
        return Recipient(response.user.email, response.user.first_name, user_id)


class StoryDeadLetters:
    """Those of the story service, asked for in the administrator's own name: it decides itself who is one.

    Raises AioRpcError when it does not answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._stub = DeadLetterServiceStub(channel)

    async def list(self, administrator: Administrator, page_size: int, page_token: str) -> Letters:
        request = ops.ListDeadLettersRequest(service="story", page_size=page_size, page_token=page_token)
        with _their_refusals():
            response = await self._stub.ListDeadLetters(request, metadata=_in_the_name_of(administrator))
        return Letters(tuple(map(_letter, response.dead_letters)), response.next_page_token)

    async def settle(
        self,
        administrator: Administrator,
        settlement: Settlement,
        event_ids: Sequence[UUID],
        *,
        because: str,
        dry_run: bool,
    ) -> Sequence[DeadLetter]:
        ids, metadata = list(map(str, event_ids)), _in_the_name_of(administrator)
        with _their_refusals():
            if settlement is Settlement.REPLAYED:
                replay = ops.ReplayDeadLettersRequest(service="story", event_ids=ids, reason=because, dry_run=dry_run)
                return list(map(_letter, (await self._stub.ReplayDeadLetters(replay, metadata=metadata)).dead_letters))
            discard = ops.DiscardDeadLettersRequest(service="story", event_ids=ids, reason=because, dry_run=dry_run)
            return list(map(_letter, (await self._stub.DiscardDeadLetters(discard, metadata=metadata)).dead_letters))


@contextmanager
def _their_refusals() -> Iterator[None]:
    """What the other service refuses is refused here in the same words."""
    try:
        yield
    except AioRpcError as error:
        match error.code():
            case StatusCode.NOT_FOUND:
                raise DeadLetterNotFound(event_id=_detail(error, ErrorInfo()).metadata["event_id"]) from None
            case StatusCode.INVALID_ARGUMENT:
                violations = _detail(error, BadRequest()).field_violations
                raise InvalidArgument([Violation(v.field, v.description, v.reason) for v in violations]) from None
            case StatusCode.UNAUTHENTICATED:
                raise Unauthenticated from None
            case StatusCode.PERMISSION_DENIED:
                raise PermissionDenied from None
        raise


def _detail(error: AioRpcError, kind: M) -> M:
    """Empty when the status has none of the kind."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an aio error has the three methods it reads
    for packed in status.details if status else ():
        if packed.Unpack(kind):
            break
    return kind


def _in_the_name_of(administrator: Administrator) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {administrator.access_token}"),)


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


def _decision(message: ops.DeadLetterDecision) -> Decision:
    return Decision(
        _SETTLEMENTS[message.decision], UUID(message.actor), message.reason, message.decide_time.ToDatetime(UTC)
    )
