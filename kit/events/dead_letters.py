"""Dead letters: events that a service could not handle, kept in its own database until an administrator decides about them.

A decision is one transaction. What is replayed goes back into its inbox afterwards, by `inbox_upkeep`, which repeats that until it
is recorded: the event may come back twice, under its own id, and never not at all. One that dies again waits for a decision again.
Every decision is kept for as long as its letter, which only an erasure removes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from kit.data.database import Database
from kit.data.paging import DEFAULT_SIZE
from kit.identity.signing import Signer

from . import dead_letter_store as store
from .dead_letter_model import (
    Administrator,
    DeadLetter,
    DeadLetterNotFound,
    DeadLetterPage,
    Settlement,
    foreign_page_token,
    page_token_purpose,
)

log = logging.getLogger(__name__)


class DeadLetters:
    """The DeadLetterStore of a service's own database, which keeps none of other services."""

    def __init__(self, db: Database, service: str, signer: Signer) -> None:
        self._db = db
        self._service = service
        self._signer = signer

    async def list(
        self, _administrator: Administrator, service: str, page_size: int, page_token: str
    ) -> DeadLetterPage:
        if service not in ("", self._service):
            return DeadLetterPage((), "")
        size, purpose = page_size or DEFAULT_SIZE, page_token_purpose(service)
        after = self._position(purpose, page_token) if page_token else None
        async with self._db.transaction() as tx:
            found = await store.page(tx, self._service, size + 1, after=after)
        letters = tuple(found[:size])
        more = len(found) > size
        return DeadLetterPage(letters, self._token(purpose, letters[-1]) if more else "")

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
        if service != self._service:
            raise DeadLetterNotFound
        async with self._db.transaction() as tx:
            known, unsettled = await store.lock(tx, self._service, event_ids)
            if missing := set(event_ids) - known:
                raise DeadLetterNotFound(event_id=min(missing))
            decided = [letter.event_id for letter in unsettled]
            if decided and not dry_run:
                actor = administrator.user_id
                await store.settle(tx, self._service, decided, settlement, actor=actor, reason=reason)
        if decided and not dry_run:
            log.warning(
                'dead letters %s because "%s": %s',
                settlement.lower(),
                reason,
                ", ".join(f"{letter.type} {letter.event_id}" for letter in unsettled),
                extra={"user.id": str(administrator.user_id)},
            )
        return unsettled

    def _token(self, purpose: str, last: DeadLetter) -> str:
        return self._signer.sign(purpose, f"{last.died_at.isoformat()} {last.event_id}")

    def _position(self, purpose: str, page_token: str) -> store.Position:
        position = self._signer.open(purpose, page_token)
        if position is None:
            raise foreign_page_token()
        died_at, _, event_id = position.partition(" ")
        return datetime.fromisoformat(died_at), UUID(event_id)
