"""The client's session. Its access token is renewed before it expires, once for all calls that wait for it."""

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
"""A function that exchanges a refresh token for new tokens. Raises StorymeshError."""

_EARLY = timedelta(seconds=30)
"""Time before its expiry at which a token is renewed, so that it does not expire on the way."""

_NOT_AGAIN_WITHIN = timedelta(seconds=60)
"""Least time between two renewals before expiry; without it, a wrong clock would cause one for each call."""

_GRACE = timedelta(seconds=20)
"""Time in which a refresh is repeated. For 30 s the server answers with the same successor; later it ends the session."""

_MAY_HAVE_HAPPENED = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
}
"""Statuses after which the refresh token may or may not be spent."""

_ENDED = {"REFRESH_INVALID", "REFRESH_REUSED", "SESSION_REVOKED"}
_LONGEST_PAUSE_SECONDS = 4.0


def system_clock() -> datetime:
    return datetime.now(UTC)


class Session:
    """The session of one event loop. Changes that another program makes in the store are read at the next renewal."""

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
        """Whether there are tokens; the server may have ended the session."""
        return self._tokens is not None

    def device_token(self, login: str) -> str | None:
        return self._store.load(self._target).device_token(login)

    def begin(self, login: str, tokens: Tokens, device_token: str) -> None:
        """Stores the tokens of a sign-in."""
        self._tokens = tokens
        self._store.change(self._target, lambda kept: kept.signed_in(login, tokens, device_token))

    def end(self) -> None:
        """Forgets the session's tokens, and keeps the device token."""
        self._tokens = None
        self._store.change(self._target, lambda kept: replace(kept, tokens=None))

    async def access_token(self) -> str:
        """A token that is valid by this machine's clock; renewed if it expires soon. Raises StorymeshError."""
        if self._tokens is None:
            raise not_signed_in()
        now = self._clock()
        just_renewed = self._renewed_at is not None and now - self._renewed_at < _NOT_AGAIN_WITHIN
        if self._tokens.access_expires_at - now > _EARLY or just_renewed:
            return self._tokens.access_token
        return await self.renewed(self._tokens.access_token)

    async def renewed(self, refused: str) -> str:
        """An access token other than the refused one. Concurrent callers share one renewal. Raises StorymeshError."""
        held = self._tokens
        if held is None:
            raise not_signed_in()
        if held.access_token != refused:
            return held.access_token
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(held))
            self._renewal.add_done_callback(self._renewal_over)
        # Shielded, because a cancelled caller must not cancel the renewal, whose refresh token may be spent already.
        return (await asyncio.shield(self._renewal)).access_token

    async def settled(self) -> None:
        """Waits for a renewal in progress; without its answer the stored refresh token would be a spent one."""
        if self._renewal:
            await asyncio.wait([self._renewal])

    def _renewal_over(self, renewal: asyncio.Task[Tokens]) -> None:
        self._renewal = None
        # Mark the exception as retrieved: waiting callers got it, and without any asyncio would log it.
        if not renewal.cancelled():
            renewal.exception()

    async def _renew(self, held: Tokens) -> Tokens:
        kept = self._store.load(self._target).tokens
        # Another program may have signed out or renewed the token meanwhile.
        tokens = await self._exchanged(held) if kept == held else kept
        # A sign-in or sign-out in this program meanwhile takes precedence.
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
        """Refreshes the session; repeats a refresh whose answer was lost, within the grace period. Raises StorymeshError."""
        last_try_at, seconds = self._clock() + _GRACE, 0.25
        while True:
            try:
                return await self._refresh(refresh_token)
            except StorymeshError as error:
                if error.code() not in _MAY_HAVE_HAPPENED or self._clock() + timedelta(seconds=seconds) > last_try_at:
                    raise
            # Jitter, so that the clients of a restarted edge do not all return at the same moment.
            await self._pause(seconds * (0.5 + random.random() / 2))  # noqa: S311 # not a secret
            seconds = min(seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _put_in_place_of(self, spent: Tokens, tokens: Tokens | None) -> None:
        """Replaces the spent tokens in the store, unless a sign-in or sign-out has replaced them meanwhile."""
        if tokens is None and self._tokens is spent:
            self._tokens = None
        self._store.change(self._target, lambda kept: replace(kept, tokens=tokens) if kept.tokens == spent else kept)
