"""Dead letters of all services, read from each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from kit.errors import DeadlineExceeded, InvalidArgument, Unavailable, Violation
from kit.events.dead_letter_model import (
    Administrator,
    DeadLetter,
    DeadLetterPage,
    DeadLetterStore,
    Settlement,
    foreign_page_token,
    page_token_purpose,
)
from kit.identity.signing import Signer


class DeadLetterAggregator:
    """Forwards a call to the service that it names, or to all of them. Each service answers for its own dead letters only."""

    def __init__(self, stores: Mapping[str, DeadLetterStore], signer: Signer) -> None:
        self._stores = stores
        self._signer = signer

    async def list(self, administrator: Administrator, service: str, page_size: int, page_token: str) -> DeadLetterPage:
        """Merge one page of each service into one order, newest first.

        Raises InvalidArgument for an unknown service and for a page token of another list. Raises Unavailable with the service's
        name if one does not answer, because a list without it would look as if it had no dead letters. The others can be listed by
        name.
        """
        tokens = self._tokens(service, page_token)
        pages = await asyncio.gather(
            *(self._list(name, administrator, page_size, token) for name, token in tokens.items())
        )
        letters = [letter for page in pages for letter in page.letters]
        letters.sort(key=lambda letter: (letter.died_at, letter.event_id), reverse=True)
        following = {name: page.next_token for name, page in zip(tokens, pages, strict=True) if page.next_token}
        return DeadLetterPage(
            tuple(letters), self._signer.sign(page_token_purpose(service), json.dumps(following)) if following else ""
        )

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
        """Settle dead letters.

        Raises InvalidArgument for an unknown service, Unavailable if it does not answer, and its refusals.
        """
        store = self._store_of(service)
        with _named(service):
            return await store.settle(administrator, service, settlement, event_ids, reason=reason, dry_run=dry_run)

    async def _list(
        self, service: str, administrator: Administrator, page_size: int, page_token: str
    ) -> DeadLetterPage:
        with _named(service):
            return await self._stores[service].list(administrator, service, page_size, page_token)

    def _store_of(self, service: str) -> DeadLetterStore:
        store = self._stores.get(service)
        if store is None:
            known = ", ".join(self._stores)
            raise InvalidArgument([Violation("service", f"is none that keeps dead letters: {known}", "STRING_IN")])
        return store

    def _tokens(self, service: str, page_token: str) -> Mapping[str, str]:
        """The page token for each service to ask; services without a further page are left out."""
        if service:
            self._store_of(service)
        if not page_token:
            return dict.fromkeys([service] if service else self._stores, "")
        opened = self._signer.open(page_token_purpose(service), page_token)
        if opened is None:
            raise foreign_page_token()
        tokens: dict[str, str] = json.loads(opened)
        return {name: token for name, token in tokens.items() if name in self._stores}


@contextmanager
def _named(service: str) -> Iterator[None]:
    """Name the service that does not answer in the error, so that the administrator can list the others by name."""
    try:
        yield
    except (Unavailable, DeadlineExceeded) as error:
        if not error.peer:
            raise
        raise Unavailable(dependency=service) from error
