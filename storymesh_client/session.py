"""The session that calls are made with: its access token is renewed before it ends, once for all calls that need it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from grpc import StatusCode

from .errors import StorymeshError, not_signed_in
from .tokens import Tokens, TokenStore

Clock = Callable[[], datetime]
Pause = Callable[[float], Awaitable[None]]
Refresh = Callable[[str], Awaitable[Tokens]]
"""Exchanges a refresh token. Raises StorymeshError."""

_EARLY = timedelta(seconds=30)
"""Renewed so long before its end: a call may be on its way for a while."""

_NOT_AGAIN_WITHIN = timedelta(seconds=60)
"""A clock that goes wrong would otherwise renew the token for each call."""

_GRACE = timedelta(seconds=20)
"""Within 30 s the server answers a repeated refresh with the same successor; later it takes it for a theft and ends the session."""

_MAY_HAVE_HAPPENED = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
}
"""Failures after which nobody knows whether the token was spent."""

_ENDED = {"REFRESH_INVALID", "REFRESH_REUSED", "SESSION_REVOKED"}
_LONGEST_PAUSE_SECONDS = 4.0


def system_clock() -> datetime:
    return datetime.now(UTC)


class Session:
    """Belongs to one event loop. What others write to the store, such as another program, is seen at the next renewal."""

    def __init__(
        self,
        store: TokenStore,
        target: str,
        refresh: Refresh,
        *,
        clock: Clock = system_clock,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._store = store
        self._target = target
        self._refresh = refresh
        self._clock = clock
        self._pause = pause
        self._tokens: Tokens | None = store.load(target).tokens
        self._renewed_at: datetime | None = None
        self._renewal: asyncio.Task[Tokens] | None = None

    @property
    def signed_in(self) -> bool:
        """Whether there are tokens; the server may have ended their session."""
        return self._tokens is not None

    def device_token(self, login: str) -> str | None:
        return self._store.load(self._target).device_token(login)

    def begin(self, login: str, tokens: Tokens, device_token: str) -> None:
        """Takes the tokens of a sign-in."""
        self._tokens = tokens
        self._store.change(self._target, lambda kept: kept.signed_in(login, tokens, device_token))

    def end(self) -> None:
        """Forgets the tokens, not that this device is known."""
        self._tokens = None
        self._store.change(self._target, lambda kept: replace(kept, tokens=None))

    async def access_token(self) -> str:
        """One that is good for the call, as far as can be told from here. Raises StorymeshError."""
        if self._tokens is None:
            raise not_signed_in()
        now = self._clock()
        just_renewed = self._renewed_at is not None and now - self._renewed_at < _NOT_AGAIN_WITHIN
        if self._tokens.access_expires_at - now > _EARLY or just_renewed:
            return self._tokens.access_token
        return await self.renewed(self._tokens.access_token)

    async def renewed(self, refused: str) -> str:
        """Another access token than the one refused. All who ask at a time get the same. Raises StorymeshError."""
        held = self._tokens
        if held is None:
            raise not_signed_in()
        if held.access_token != refused:
            return held.access_token
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(held))
            self._renewal.add_done_callback(self._renewal_over)
        # Shielded: the one that gives up must not take the answer with it, which spends the token.
        return (await asyncio.shield(self._renewal)).access_token

    async def settled(self) -> None:
        """Waits for a renewal that is under way; without its answer the kept token would be a spent one."""
        if self._renewal:
            await asyncio.wait([self._renewal])

    def _renewal_over(self, renewal: asyncio.Task[Tokens]) -> None:
        self._renewal = None
        # Whoever waited has heard of it; when nobody did, asyncio would complain that nobody asked.
        if not renewal.cancelled():
            renewal.exception()

    async def _renew(self, held: Tokens) -> Tokens:
        kept = self._store.load(self._target).tokens
        # Another program may have signed out, or renewed the token before this one.
        tokens = await self._exchanged(held) if kept == held else kept
        # Somebody may have signed in or out here meanwhile; that stays.
        if self._tokens is held:
            self._tokens, self._renewed_at = tokens, self._clock()
        if tokens is None:
            raise not_signed_in()
        return tokens

    async def _exchanged(self, spent: Tokens) -> Tokens:
        try:
            tokens = await self._answered(spent.refresh_token)
        except StorymeshError as error:
            if error.reason in _ENDED:
                self._put_in_place_of(spent, None)
            raise
        self._put_in_place_of(spent, tokens)
        return tokens

    async def _answered(self, refresh_token: str) -> Tokens:
        """Repeats a refresh whose answer was lost, for as long as that is safe."""
        last_try_at, seconds = self._clock() + _GRACE, 0.25
        while True:
            try:
                return await self._refresh(refresh_token)
            except StorymeshError as error:
                if error.code() not in _MAY_HAVE_HAPPENED or self._clock() + timedelta(seconds=seconds) > last_try_at:
                    raise
            # Spread out: all clients of an edge that restarts would come back at once.
            await self._pause(seconds * (0.5 + random.random() / 2))  # noqa: S311 # no secret
            seconds = min(seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _put_in_place_of(self, spent: Tokens, tokens: Tokens | None) -> None:
        """In the store; not when somebody signed in or out meanwhile."""
        if tokens is None and self._tokens is spent:
            self._tokens = None
        self._store.change(self._target, lambda kept: replace(kept, tokens=tokens) if kept.tokens == spent else kept)
