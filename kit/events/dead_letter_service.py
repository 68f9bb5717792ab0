"""storymesh.ops.v1.DeadLetterService, for the dead letters of one service or of several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.ops.v1 import dead_letter_service_pb2 as pb
from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceServicer

from kit.identity.access import bearer_token
from kit.identity.caller import caller_of, current_metadata
from kit.identity.signing import Signer
from kit.rpc.timestamps import set_time

from .dead_letter_model import (
    Administrator,
    DeadLetter,
    DeadLetterNotFound,
    DeadLetterPage,
    DeadLetterStore,
    Settlement,
    foreign_page_token,
)

Context = ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["DeadLetterService"].full_name

SETTLEMENTS: Mapping[Settlement, pb.Settlement.ValueType] = {
    Settlement.REPLAYED: pb.SETTLEMENT_REPLAYED,
    Settlement.DISCARDED: pb.SETTLEMENT_DISCARDED,
}
"""Their names in the contract."""

_QUERY = "page:deadLetters:"


class DeadLetterAggregator:
    """One list over the stores of several services; a call that names a service goes to its store."""

    def __init__(self, stores: Mapping[str, DeadLetterStore], signer: Signer) -> None:
        self._stores = stores
        self._signer = signer

    async def list(self, administrator: Administrator, service: str, page_size: int, page_token: str) -> DeadLetterPage:
        """Dead letters of the service, or of all when none is named: a page of each, in one order.

        Raises what a store raises, and so Unavailable when one does not answer: a list that lacks a service would look like one
        where nothing waits there. The others can be asked by name.
        """
        if service:
            store = self._stores.get(service)
            return await store.list(administrator, page_size, page_token) if store else DeadLetterPage((), "")
        tokens = self._tokens(page_token)
        pages = dict(
            zip(
                tokens,
                await asyncio.gather(
                    *(self._stores[name].list(administrator, page_size, token) for name, token in tokens.items())
                ),
                strict=True,
            )
        )
        letters = [letter for page in pages.values() for letter in page.letters]
        letters.sort(key=lambda letter: (letter.died_at, letter.event_id), reverse=True)
        following = {name: page.next_token for name, page in pages.items() if page.next_token}
        return DeadLetterPage(tuple(letters), self._signer.sign(_QUERY, json.dumps(following)) if following else "")

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
        """Raises DeadLetterNotFound, also for a service whose letters are not kept here."""
        store = self._stores.get(service)
        if store is None:
            raise DeadLetterNotFound
        return await store.settle(administrator, settlement, event_ids, reason=reason, dry_run=dry_run)

    def _tokens(self, page_token: str) -> Mapping[str, str]:
        """Each service's own page token; without those that have no further page."""
        if not page_token:
            return dict.fromkeys(self._stores, "")
        opened = self._signer.open(_QUERY, page_token)
        if opened is None:
            raise foreign_page_token()
        tokens: dict[str, str] = json.loads(opened)
        return {name: token for name, token in tokens.items() if name in self._stores}


class DeadLetterServicer(DeadLetterServiceServicer):
    """Protobuf in, protobuf out."""

    def __init__(self, aggregator: DeadLetterAggregator) -> None:
        self._aggregator = aggregator

    async def ListDeadLetters(  # noqa: N802  # the contract's name
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        page = await self._aggregator.list(
            _administrator(context), request.service, request.page_size, request.page_token
        )
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
        return await self._aggregator.settle(
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


def _administrator(context: Context) -> Administrator:
    """The interceptor has verified role and token."""
    return Administrator(caller_of(context).user_id, bearer_token(current_metadata.get()))
