"""Signing keys of access tokens: generation, publication, rotation and withdrawal.

Every replica reads them from the database, where their private halves are sealed.
"""

from __future__ import annotations

import asyncio
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

from kit.data.database import Database, Transaction
from kit.errors import Unavailable
from kit.identity.caller import Caller, Origin
from kit.identity.revocations import RevocationKind
from kit.identity.sealing import Seal, Unsealable
from kit.identity.tokens import ACCESS_TOKEN_TYPE, JsonWebKey
from kit.runtime import base64url
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from .. import store
from ..errors import KeyNotFound
from ..model import Action, KeyState, SigningKey
from .audit import Audit
from .endings import Endings

log = logging.getLogger(__name__)

_RELOAD_SECONDS = 30.0
_RETRY_SECONDS = 1.0
"""Between two tries to read the first key, without which nobody can sign in."""
_UNREADABLE = "the signing keys cannot be read now"
_COORDINATE_BYTES = 32

KEEP_RETIRED = timedelta(minutes=30)
"""Longer than the tokens that the key signed live, and than a replica may go on signing with it."""


class SigningKeys:
    """This replica's copy of the keys: signs with the active one and publishes all."""

    def __init__(self, db: Database, seal: Seal, clock: Clock, *, publish_ahead: timedelta) -> None:
        self._db = db
        self._seal = seal
        self._clock = clock
        # Reread often enough that every replica publishes a new key long before another may sign with it.
        self._reload_seconds = min(_RELOAD_SECONDS, publish_ahead.total_seconds() / 4)
        self._active: tuple[str, EllipticCurvePrivateKey] | None = None
        self._published: Sequence[dict[str, str]] = ()
        # Serializes reads: of two that overlap, the older one could end last and bring a dropped key back.
        self._reading = asyncio.Lock()

    async def run(self, stopping: asyncio.Event) -> None:
        """Reread the keys periodically until `stopping` is set."""

        def retry(_failures: int) -> float:
            return self._reload_seconds if self._active else _RETRY_SECONDS

        await every(self._reload_seconds, stopping, self._reload, failure=_UNREADABLE, retry=retry)

    async def _reload(self) -> None:
        await self.load()

    async def refresh(self) -> None:
        """Reload, but keep the present keys while the database does not answer."""
        try:
            await self.load()
        except Exception as error:
            log.warning("%s: %s", _UNREADABLE, error)

    async def load(self) -> list[JsonWebKey]:
        """Read the keys, generate the very first one if there is none, and return the public ones, newest first."""
        async with self._reading:
            async with self._db.transaction() as tx:
                keys = await store.keys.all_of(tx)
                if not any(key.state is KeyState.ACTIVE for key in keys):
                    await store.keys.insert(tx, _generate(self._seal, KeyState.ACTIVE, self._clock()))
                    # Insert without effect if another replica was faster; its key is used then.
                    keys = await store.keys.all_of(tx)
            self._published = [key.public_jwk for key in keys]
            active = next(key for key in keys if key.state is KeyState.ACTIVE)
            if self._active is None or self._active[0] != active.kid:
                self._active = active.kid, _unsealed(self._seal, active)
            return list(self._published)

    async def check(self) -> None:
        """Health check. Raises while there is no key to sign with."""
        if self._active is None:
            raise Unavailable

    def published(self) -> Sequence[dict[str, str]]:
        """The published keys. Raises Unavailable before the first load: with an empty set, verifiers would refuse good tokens."""
        if not self._published:
            raise Unavailable
        return self._published

    def sign(self, claims: dict[str, Any]) -> str:
        if self._active is None:
            raise Unavailable
        kid, key = self._active
        return jwt.encode(claims, key, algorithm="ES256", headers={"typ": ACCESS_TOKEN_TYPE, "kid": kid})


class KeyRotation:
    """Rotates the active key when it is due or on request. Safe to run in any number of processes.

    A successor is published in advance. Once it has been published for `publish_ahead`, which is longer than any verifier, Envoy
    included, caches the key set, it can take over at once, and every verifier knows it.
    """

    def __init__(
        self,
        db: Database,
        seal: Seal,
        endings: Endings,
        audit: Audit,
        clock: Clock,
        *,
        period: timedelta,
        publish_ahead: timedelta,
    ) -> None:
        self._db = db
        self._seal = seal
        self._endings = endings
        self._audit = audit
        self._clock = clock
        self._period = period
        self._publish_ahead = publish_ahead

    async def advance(self) -> None:
        """Take the step that is due: publish a successor, let it take over, delete keys whose signatures have all expired."""
        now = self._clock()
        async with self._db.transaction() as tx:
            active, successor = _in_use(await store.keys.lock(tx))
            if active and successor is None:
                await self._stand_by(tx)
            elif active and successor and max(self._due_at(active, successor), self._known_at(successor)) <= now:
                await self._take_over(tx, active, successor)
            await store.keys.delete_retired(tx, now - KEEP_RETIRED)

    async def rotate(self, caller: Caller | None, origin: Origin) -> tuple[str, datetime]:
        """Let the successor take over as soon as every verifier knows it. Returns its id and that time, now or later."""
        now = self._clock()
        async with self._audit.attempt(Action.KEY_ROTATE, origin, caller) as attempt, self._db.transaction() as tx:
            active, successor = _in_use(await store.keys.lock(tx))
            successor = successor or await self._stand_by(tx)
            begins_at = max(now, self._known_at(successor))
            if active and begins_at <= now:
                await self._take_over(tx, active, successor)
            else:
                await store.keys.set_due(tx, successor.kid, begins_at)
            await attempt.done(tx)
        return successor.kid, begins_at

    async def drop(self, kid: str, caller: Caller | None, origin: Origin) -> str:
        """Withdraw a key at once, with all tokens that it signed. Returns the id of the active key. Raises KeyNotFound."""
        async with self._audit.attempt(Action.KEY_DROP, origin, caller) as attempt, self._db.transaction() as tx:
            keys = await store.keys.lock(tx)
            if kid not in {key.kid for key in keys}:
                raise KeyNotFound
            await store.keys.drop(tx, kid)
            await self._endings.refuse(tx, RevocationKind.KEY, kid)
            active, successor = _in_use([key for key in keys if key.kid != kid])
            if active is None:
                active, successor = successor or await self._stand_by(tx), None
                await store.keys.activate(tx, active.kid, self._clock())
            if successor is None:
                await self._stand_by(tx)
            await attempt.done(tx)
        log.warning("key %s was dropped; %s signs", kid, active.kid)
        return active.kid

    async def _stand_by(self, tx: Transaction) -> SigningKey:
        successor = _generate(self._seal, KeyState.PENDING, self._clock())
        await store.keys.insert(tx, successor)
        log.info("key %s is published and stands by", successor.kid)
        return successor

    async def _take_over(self, tx: Transaction, active: SigningKey, successor: SigningKey) -> None:
        now = self._clock()
        await store.keys.retire(tx, active.kid, now)
        await store.keys.activate(tx, successor.kid, now)
        log.info("key %s signs from now on", successor.kid)
        await self._stand_by(tx)

    def _due_at(self, active: SigningKey, successor: SigningKey) -> datetime:
        return successor.due_at or (active.activated_at or active.created_at) + self._period

    def _known_at(self, successor: SigningKey) -> datetime:
        """When every verifier has had time to fetch the key."""
        return successor.created_at + self._publish_ahead


def _in_use(keys: Sequence[SigningKey]) -> tuple[SigningKey | None, SigningKey | None]:
    """The active key and its successor."""
    by_state = {key.state: key for key in keys}
    return by_state.get(KeyState.ACTIVE), by_state.get(KeyState.PENDING)


def thumbprint(public_jwk: dict[str, str]) -> str:
    """The key id (RFC 7638): hashes the required members in lexical order, without spaces."""
    required = {name: public_jwk[name] for name in ("crv", "kty", "x", "y")}
    return base64url.encode(hashlib.sha256(json.dumps(required, separators=(",", ":")).encode()).digest())


def _generate(seal: Seal, state: KeyState, now: datetime) -> SigningKey:
    private = generate_private_key(SECP256R1())
    numbers = private.public_key().public_numbers()
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": base64url.encode(numbers.x.to_bytes(_COORDINATE_BYTES)),
        "y": base64url.encode(numbers.y.to_bytes(_COORDINATE_BYTES)),
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
    """The seal's purpose. It binds the sealed half to its public one: swapped rows do not open."""
    return f"signing-key:{kid}"
