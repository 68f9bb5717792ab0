"""The dead letters of all services, asked for from each of them."""

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
    """Asks the service that a call is about, or all of them: each answers for its own, and none but that."""

    def __init__(self, stores: Mapping[str, DeadLetterStore], signer: Signer) -> None:
        self._stores = stores
        self._signer = signer

    async def list(self, administrator: Administrator, service: str, page_size: int, page_token: str) -> DeadLetterPage:
        """A page of each service, in one order.

        Raises InvalidArgument for an unknown service and for a page token of another list. Raises Unavailable, with the service's
        name, when one does not answer: a list that lacks a service would look like one where nothing waits there. The others can
        be asked by name.
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
        """Raises InvalidArgument for an unknown service, Unavailable when it does not answer, and what it refuses."""
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
        """The page token of each service that is to be asked; without those that have no further page."""
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
    """Says which service does not answer; otherwise nobody would know which of the others to ask for by name."""
    try:
        yield
    except (Unavailable, DeadlineExceeded) as error:
        if not error.peer:
            raise
        raise Unavailable(dependency=service) from error
