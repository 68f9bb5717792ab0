"""What an attempt at a story may cost of its owner's tokens: reserved before it writes, settled after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from ..adapters.writers import WordCount
from ..model import Story
from .draft import Draft

_PROMPT_TOKENS = 1000
_TOKENS_A_WORD = 4
"""Generous: what was reserved too much comes back with the commit, and scripts other than Latin need several tokens a word."""

_CRASH = timedelta(hours=1)
"""How much longer than an attempt its reservation lasts, so that the next attempt finds that of one whose worker died."""

_LONGEST = timedelta(days=7)
"""The longest that the limiter keeps a reservation."""

_MOST_OF_A_COMMIT = 10**9


class Tokens(Protocol):
    """Reservations of tokens, as `peers.StoryTokens` makes them."""

    async def reserve(self, owner_id: UUID, key: str, amount: int, ttl: timedelta) -> bool: ...

    async def commit(self, key: str, amount: int) -> None: ...

    async def refund(self, key: str) -> None: ...


class Spending:
    """Reserves and settles the tokens of attempts; without `tokens`, none."""

    def __init__(self, tokens: Tokens | None, *, attempt_seconds: float) -> None:
        self._tokens = tokens
        self._ttl = min(timedelta(seconds=attempt_seconds) + _CRASH, _LONGEST)

    @asynccontextmanager
    async def reserved(self, story: Story, draft: Draft) -> AsyncIterator[None]:
        """Reserve what the attempt may use during the block; then commit what the writer has counted, or refund if the block fails.

        What a failed attempt has used is not known, as writers count at the end. Raises TokenQuotaExceeded before the block.
        """
        if self._tokens is None:
            yield
            return
        if story.attempt > 1:
            # The worker of the attempt before may have died with its reservation; one that is settled stays as it is.
            await self._tokens.refund(_key(story.id, story.attempt - 1))
        key, amount = _key(story.id, story.attempt), tokens_expected(story)
        if not await self._tokens.reserve(story.owner_id, key, amount, self._ttl):
            yield
            return
        try:
            yield
        except BaseException:
            await asyncio.shield(self._tokens.refund(key))
            raise
        await self._tokens.commit(key, min(sum(draft.tokens), _MOST_OF_A_COMMIT) or amount)


def tokens_expected(story: Story) -> int:
    """More than the story usually takes."""
    return _PROMPT_TOKENS + _TOKENS_A_WORD * WordCount[story.wish.length].words


def _key(story_id: UUID, attempt: int) -> str:
    return f"story:{story_id}:{attempt}"
