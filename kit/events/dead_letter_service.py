"""storymesh.ops.v1.DeadLetterService, and its messages in domain words.

Each service that has the table serves it for its own dead letters; `ops` serves it for all of them, by asking each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.ops.v1 import dead_letter_service_pb2 as pb
from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceServicer

from kit.identity.access import bearer_token
from kit.identity.caller import caller_of, current_metadata
from kit.rpc.timestamps import set_time

from .dead_letter_model import Administrator, DeadLetter, DeadLetterDecision, DeadLetterStore, Settlement

Context = ServicerContext[Any, Any]

SETTLEMENTS: Mapping[Settlement, pb.Settlement.ValueType] = {
    Settlement.REPLAYED: pb.SETTLEMENT_REPLAYED,
    Settlement.DISCARDED: pb.SETTLEMENT_DISCARDED,
}
"""Their names in the contract."""

_FROM_PROTO = {number: settlement for settlement, number in SETTLEMENTS.items()}


class DeadLetterServicer(DeadLetterServiceServicer):
    """Protobuf in, protobuf out."""

    def __init__(self, store: DeadLetterStore) -> None:
        self._store = store

    async def ListDeadLetters(  # noqa: N802  # the contract's name
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        page = await self._store.list(_administrator(context), request.service, request.page_size, request.page_token)
        return pb.ListDeadLettersResponse(dead_letters=map(to_proto, page.letters), next_page_token=page.next_token)

    async def ReplayDeadLetters(  # noqa: N802  # the contract's name
        self, request: pb.ReplayDeadLettersRequest, context: Context
    ) -> pb.ReplayDeadLettersResponse:
        letters = await self._settle(Settlement.REPLAYED, request, context)
        return pb.ReplayDeadLettersResponse(dead_letters=map(to_proto, letters))

    async def DiscardDeadLetters(  # noqa: N802  # the contract's name
        self, request: pb.DiscardDeadLettersRequest, context: Context
    ) -> pb.DiscardDeadLettersResponse:
        letters = await self._settle(Settlement.DISCARDED, request, context)
        return pb.DiscardDeadLettersResponse(dead_letters=map(to_proto, letters))

    async def _settle(
        self,
        settlement: Settlement,
        request: pb.ReplayDeadLettersRequest | pb.DiscardDeadLettersRequest,
        context: Context,
    ) -> Sequence[DeadLetter]:
        return await self._store.settle(
            _administrator(context),
            request.service,
            settlement,
            # The contract wants unique texts; one id has several.
            list(dict.fromkeys(map(UUID, request.event_ids))),
            reason=request.reason,
            dry_run=request.dry_run,
        )


def to_proto(letter: DeadLetter) -> pb.DeadLetter:
    message = pb.DeadLetter(
        event_id=str(letter.event_id),
        service=letter.service,
        type=letter.type,
        key=letter.key,
        reason=letter.reason,
        failures=letter.failures,
    )
    set_time(message.die_time, letter.died_at)
    for decision in letter.decisions:
        shown = message.decisions.add(
            decision=SETTLEMENTS[decision.settlement], actor=str(decision.actor), reason=decision.reason
        )
        set_time(shown.decide_time, decision.decided_at)
    return message


def from_proto(message: pb.DeadLetter) -> DeadLetter:
    """Raises KeyError for a settlement that this version does not know, ValueError for an id that is none."""
    return DeadLetter(
        event_id=UUID(message.event_id),
        service=message.service,
        type=message.type,
        key=message.key,
        reason=message.reason,
        failures=message.failures,
        died_at=message.die_time.ToDatetime(UTC),
        decisions=tuple(
            DeadLetterDecision(
                _FROM_PROTO[each.decision], UUID(each.actor), each.reason, each.decide_time.ToDatetime(UTC)
            )
            for each in message.decisions
        ),
    )


def _administrator(context: Context) -> Administrator:
    """The interceptor has verified role and token."""
    return Administrator(caller_of(context).user_id, bearer_token(current_metadata.get()))
