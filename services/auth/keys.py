"""The keys that access tokens are signed with: making, using, publishing and replacing them.

Every replica reads them from the database; the private halves lie there sealed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from services.kit.clock import Clock
from services.kit.database import Database
from services.kit.errors import Unavailable
from services.kit.sealing import Seal, Unsealable
from services.kit.tokens import ACCESS_TOKEN_TYPE, JsonWebKey

from . import store
from .model import KeyState, SigningKey

log = logging.getLogger(__name__)

_RELOAD_SECONDS = 30.0
_COORDINATE_BYTES = 32

PUBLISH_AHEAD = timedelta(minutes=15)
"""Longer than any verifier, Envoy included, caches the key set: nobody meets a signature by a key it cannot know."""

KEEP_RETIRED = timedelta(minutes=30)
"""Longer than the tokens that the key signed live, and longer than a replica may go on signing with it."""


class SigningKeys:
    """This replica's view of the keys: signs with the active one and publishes all."""

    def __init__(self, db: Database, seal: Seal, clock: Clock) -> None:
        self._db = db
        self._seal = seal
        self._clock = clock
        self._active: tuple[str, EllipticCurvePrivateKey] | None = None
        self._published: Sequence[dict[str, str]] = ()

    async def run(self, stopping: asyncio.Event) -> None:
        """Rereads the keys from time to time, so that a new one is noticed."""
        while not stopping.is_set():
            try:
                await asyncio.wait_for(stopping.wait(), _RELOAD_SECONDS if self._active else 1.0)
            except TimeoutError:
                await self.refresh()

    async def refresh(self) -> None:
        """Like `load`, but goes on with the keys it has while the database does not answer."""
        try:
            await self.load()
        except Exception as error:
            log.warning("the signing keys cannot be read now: %s", error)

    async def load(self) -> list[JsonWebKey]:
        """Reads the keys, makes the very first one if there is none, and returns the public ones, newest first."""
        async with self._db.transaction() as tx:
            keys = await store.all_keys(tx)
            if not any(key.state is KeyState.ACTIVE for key in keys):
                await store.insert_key(tx, _generate(self._seal, KeyState.ACTIVE, self._clock()))
                # Another replica may have been faster, then it is theirs.
                keys = await store.all_keys(tx)
        self._published = [key.public_jwk for key in keys]
        active = next(key for key in keys if key.state is KeyState.ACTIVE)
        if self._active is None or self._active[0] != active.kid:
            self._active = active.kid, _unsealed(self._seal, active)
        return list(self._published)

    async def check(self) -> None:
        """Raises while there is no key to sign with."""
        if self._active is None:
            raise Unavailable

    def published(self) -> Sequence[dict[str, str]]:
        """Raises Unavailable before the first load: an empty set would make verifiers refuse good tokens."""
        if not self._published:
            raise Unavailable
        return self._published

    def sign(self, claims: dict[str, Any]) -> str:
        if self._active is None:
            raise Unavailable
        kid, key = self._active
        return jwt.encode(claims, key, algorithm="ES256", headers={"typ": ACCESS_TOKEN_TYPE, "kid": kid})


class KeyRotation:
    """Replaces the active key when its time has come. Any number of workers may do this at the same time."""

    def __init__(self, db: Database, seal: Seal, clock: Clock, *, period: timedelta) -> None:
        self._db = db
        self._seal = seal
        self._clock = clock
        self._period = period

    async def advance(self) -> None:
        """Takes whatever step is due: publish a successor, let it take over, forget what signed nothing that still lives."""
        now = self._clock()
        async with self._db.transaction() as tx:
            keys = {key.state: key for key in await store.lock_keys(tx) if key.state is not KeyState.RETIRED}
            active, pending = keys.get(KeyState.ACTIVE), keys.get(KeyState.PENDING)
            if pending and pending.created_at + PUBLISH_AHEAD <= now:
                if active:
                    await store.retire_key(tx, active.kid, now)
                await store.activate_key(tx, pending.kid, now)
                log.info("key %s signs from now on", pending.kid)
            elif active and not pending and _due(active, self._period) <= now:
                await store.insert_key(tx, _generate(self._seal, KeyState.PENDING, now))
                log.info("a successor of key %s is published", active.kid)
            await store.delete_retired_keys(tx, now - KEEP_RETIRED)


def thumbprint(public_jwk: dict[str, str]) -> str:
    """RFC 7638: the required members in lexical order, without spaces."""
    required = {name: public_jwk[name] for name in ("crv", "kty", "x", "y")}
    return _base64url(hashlib.sha256(json.dumps(required, separators=(",", ":")).encode()).digest())


def _due(active: SigningKey, period: timedelta) -> datetime:
    """When the successor is to be published."""
    return (active.activated_at or active.created_at) + period - PUBLISH_AHEAD


def _generate(seal: Seal, state: KeyState, now: datetime) -> SigningKey:
    private = generate_private_key(SECP256R1())
    numbers = private.public_key().public_numbers()
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": _base64url(numbers.x.to_bytes(_COORDINATE_BYTES)),
        "y": _base64url(numbers.y.to_bytes(_COORDINATE_BYTES)),
        "use": "sig",
        "alg": "ES256",
    }
    kid = thumbprint(jwk)
    secret = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey(
        kid=kid,
        state=state,
        public_jwk={**jwk, "kid": kid},
        sealed_private_key=seal.seal(_purpose(kid), secret),
        created_at=now,
        activated_at=now if state is KeyState.ACTIVE else None,
    )


def _unsealed(seal: Seal, key: SigningKey) -> EllipticCurvePrivateKey:
    try:
        secret = seal.unseal(_purpose(key.kid), key.sealed_private_key or b"")
    except Unsealable:
        raise RuntimeError(
            f"the signing key {key.kid} was not sealed with this STORYMESH_SIGNING_KEY_SECRET; set the former one again, "
            "or delete the row from signing_keys to sign everybody's access tokens anew"
        ) from None
    return cast("EllipticCurvePrivateKey", load_der_private_key(secret, password=None))


def _purpose(kid: str) -> str:
    """Binds the sealed half to its public one: swapped rows do not open."""
    return f"signing-key:{kid}"


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
