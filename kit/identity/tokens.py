"""Verifies who calls: a person's access token (RFC 9068, ES256) or a service's token for this callee.

Rules of RFC 8725: the algorithm is fixed by us, never taken from the token; the type, issuer, audience and expiry are required;
keys come from our own key set only (`jku`, `jwk` and `x5u` headers are refused).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

import jwt
from jwt.types import Options

from kit.errors import SessionRevoked, Unauthenticated, Unavailable
from kit.runtime.clock import SKEW, Clock, system_clock

from .caller import Caller, Role
from .revocations import Revocations

ACCESS_TOKEN_TYPE = "at+jwt"
SERVICE_TOKEN_TYPE = "mesh+jwt"
SERVICE_TOKEN_LIFE = timedelta(seconds=60)

# PyJWT knows the system's clock only.
_TIMES_OURSELVES: Options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
# Whatever claims and headers of the wrong types make the parsers raise.
_MALFORMED = (jwt.PyJWTError, KeyError, ValueError, TypeError, AttributeError, OverflowError, OSError)

_FOREIGN_KEY_HEADERS = {"jku", "jwk", "x5u", "x5c"}
_REFETCH_AT_MOST_EVERY = timedelta(seconds=2)
_REFETCH_AT_LEAST_EVERY = timedelta(minutes=5)
_REMEMBERED = 4096
"""Tokens of those who called last: some 2 KB each."""

_CALLERS_REMEMBERED = 256
"""Tokens of other services: each of their processes makes two a minute."""

_LONG_AGO = datetime.min.replace(tzinfo=UTC)

log = logging.getLogger(__name__)

JsonWebKey = Mapping[str, str]
FetchKeys = Callable[[], Awaitable[list[JsonWebKey]]]


class KeySet:
    """The auth service's public keys, fetched when first needed, when a key is unknown and every five minutes.

    While auth does not answer, known keys go on being used; a token under an unknown key gets Unavailable, not a refusal, for it
    may well be good.
    """

    def __init__(self, fetch: FetchKeys, clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at: datetime | None = None
        self._tried_at: datetime | None = None
        self._refetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """None when the current key set does not hold the key. Raises Unavailable when that cannot be found out."""
        now = self._clock()
        known = self._keys.get(key_id)
        fresh = self._fetched_at is not None and now - self._fetched_at < _REFETCH_AT_LEAST_EVERY
        # While one call waits for the refetch, the others go on with the key they know.
        if known and (fresh or self._refetching):
            return known
        # A flood of made-up key ids costs one fetch.
        if not self._refetching and (self._tried_at is None or now - self._tried_at >= _REFETCH_AT_MOST_EVERY):
            self._tried_at = now
            # No part of the call, whose deadline, or whose caller's leaving, would end it for all the others.
            self._refetching = asyncio.create_task(self._refetch(), context=Context())
        if self._refetching:
            await asyncio.shield(self._refetching)
        if key_id not in self._keys and self._fetched_at != self._tried_at:
            raise Unavailable
        return self._keys.get(key_id)

    async def _refetch(self) -> None:
        try:
            self._keys = {key["kid"]: jwt.PyJWK(dict(key), algorithm="ES256") for key in await self._fetch()}
        except Exception as error:
            log.warning("the key set cannot be fetched: %s", error)
        else:
            self._fetched_at = self._tried_at
        finally:
            self._refetching = None


class AccessTokens:
    """Verifies people's access tokens, and knows which were revoked since they were issued.

    The signature is checked at a token's first use, for a client sends the same one with every call. Its key, its times and whether
    it was revoked are looked at each time.
    """

    def __init__(
        self, keys: KeySet, revocations: Revocations, *, issuer: str, audience: str, clock: Clock = system_clock
    ) -> None:
        self.revocations = revocations
        self._keys = keys
        self._clock = clock
        self._issuer = issuer
        self._audience = audience
        self._key_ids = lru_cache(_REMEMBERED)(_key_id)
        # By the key itself, not by its name: a token is verified anew under each key set, and refused when its key is gone.
        self._verified = lru_cache(_REMEMBERED)(self._verify)

    async def verify(self, token: str) -> Caller:
        """Raises Unauthenticated, SessionRevoked, or Unavailable when the keys cannot be had."""
        caller = await self._caller(token)
        # After the last wait: what was revoked meanwhile counts.
        if self.revocations.covers(
            session_id=caller.session_id, user_id=caller.user_id, kid=caller.kid, epoch=caller.epoch
        ):
            raise SessionRevoked
        return caller

    async def _caller(self, token: str) -> Caller:
        key = await self._keys.find(self._key_ids(token))
        if key is None:
            raise Unauthenticated
        verified = self._verified(token, key)
        if not verified.begins_at <= self._clock() < verified.ends_at:
            raise Unauthenticated
        return verified.caller

    def _verify(self, token: str, key: jwt.PyJWK) -> _Verified:
        """All that stays true as time goes on."""
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["ES256"],
                issuer=self._issuer,
                audience=self._audience,
                options={"require": ["iss", "sub", "aud", "exp", "iat", "jti", "sid"], **_TIMES_OURSELVES},
            )
            # A version of auth without epochs issued some of the tokens that are about: all in the first one.
            epoch = int(claims.get("epoch", 0))
            caller = Caller(UUID(claims["sub"]), UUID(claims["sid"]), Role(claims["role"]), _key_id(token), epoch)
            return _Verified(caller, *_life(claims))
        except _MALFORMED:
            raise Unauthenticated from None


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token whose signature and claims are good."""

    caller: Caller
    begins_at: datetime
    """The beginning of its life, and the end, with the skew that clocks may have."""
    ends_at: datetime


def _key_id(token: str) -> str:
    """The `kid` of an access token. Raises Unauthenticated when its header is not one of ours."""
    try:
        header = jwt.get_unverified_header(token)
        if header.get("typ") != ACCESS_TOKEN_TYPE or _FOREIGN_KEY_HEADERS & header.keys():
            raise Unauthenticated
        key_id: str = header["kid"]
        return key_id
    except _MALFORMED:
        raise Unauthenticated from None


class ServiceTokens:
    """Makes and verifies the tokens by which a service proves itself to one callee."""

    def __init__(self, key: bytes, *, service: str, clock: Clock) -> None:
        self._key = key
        self._service = service
        self._clock = clock
        self._minted: dict[str, tuple[str, datetime]] = {}
        # Checked signatures and claims; times are checked at each call. Errors are not remembered.
        self._verified = lru_cache(_CALLERS_REMEMBERED)(self._claims)

    def mint(self, callee: str) -> str:
        """A token for calls of now, which has at least half of its life before it."""
        token, minted_at = self._minted.get(callee, ("", _LONG_AGO))
        now = self._clock()
        if not timedelta() <= now - minted_at < SERVICE_TOKEN_LIFE / 2:
            claims = {"iss": self._service, "aud": callee, "iat": now, "exp": now + SERVICE_TOKEN_LIFE}
            token = jwt.encode(claims, self._key, algorithm="HS256", headers={"typ": SERVICE_TOKEN_TYPE})
            self._minted[callee] = token, now
        return token

    def verify(self, token: str) -> str:
        """The name of the calling service. Raises Unauthenticated."""
        try:
            caller, begins_at, ends_at = self._verified(token)
        except _MALFORMED:
            raise Unauthenticated from None
        if not begins_at <= self._clock() < ends_at:
            raise Unauthenticated
        return caller

    def _claims(self, token: str) -> tuple[str, datetime, datetime]:
        """The calling service, and when the token begins and ends. Raises Unauthenticated, or one of _MALFORMED."""
        if jwt.get_unverified_header(token).get("typ") != SERVICE_TOKEN_TYPE:
            raise Unauthenticated
        claims: dict[str, Any] = jwt.decode(
            token,
            self._key,
            algorithms=["HS256"],
            audience=self._service,
            options={"require": ["iss", "aud", "exp", "iat"], **_TIMES_OURSELVES},
        )
        return str(claims["iss"]), *_life(claims)


def _life(claims: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """When a token begins and ends, within the skew that clocks may have."""
    begin, end = (datetime.fromtimestamp(claims[name], UTC) for name in ("iat", "exp"))
    if "nbf" in claims:
        begin = max(begin, datetime.fromtimestamp(claims["nbf"], UTC))
    return begin - SKEW, end + SKEW
