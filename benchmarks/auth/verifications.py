"""Measures the check of an access token: kit's whole check, and alternately PyJWT alone and the signature alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from uuid import uuid4

import grpc
import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from kit.identity import jwks as keys
from kit.identity.revocations import Revocation, RevocationKind, Revocations
from kit.identity.tokens import AccessTokens, FetchKeys, JsonWebKey, KeySet
from kit.runtime.clock import system_clock
from kit.runtime.settings import ServiceSettings

_REVOCATIONS = 10_000
"""Number of revocations in force while tokens are checked, a high one."""

_CALLS_IN_A_TURN = 200

_STRANGERS = 5_000
"""Number of tokens checked in turn: more than kit caches, so that each is new to it."""


@dataclass(frozen=True)
class Verifications:
    """Medians over the rounds, in microseconds of processor time per check."""

    kit: float
    """Kit's check of a new token."""
    kit_again: float
    """Kit's check of a token in its cache."""
    pyjwt: float
    signature: float
    revocation_check: float


async def measure(channel: grpc.aio.Channel, access_token: str, *, seconds: float) -> Verifications:
    """Measures the checks with a token that auth has just issued; its key is fetched from auth too."""
    fetch = keys.fetch_from(channel)
    revocations = _revocations()
    audience, issuer = (ServiceSettings.model_fields[name].default for name in ("token_audience", "token_issuer"))
    tokens = AccessTokens(KeySet(fetch, system_clock), revocations, issuer=issuer, audience=audience)
    others_keys, others = _of_others(access_token)
    others_tokens = AccessTokens(KeySet(others_keys, system_clock), revocations, issuer=issuer, audience=audience)
    caller = await tokens.verify(access_token)

    header = jwt.get_unverified_header(access_token)
    (key,) = [jwt.PyJWK(dict(each), algorithm="ES256") for each in await fetch() if each["kid"] == header["kid"]]
    public_key, algorithm = key.key, ec.ECDSA(hashes.SHA256())
    signed, _, signature = access_token.rpartition(".")
    raw = jwt.utils.base64url_decode(signature)
    der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))

    async def kit() -> None:
        await others_tokens.verify(next(others))

    async def kit_again() -> None:
        await tokens.verify(access_token)

    async def pyjwt() -> None:
        jwt.decode(access_token, key, algorithms=["ES256"], issuer=issuer, audience=audience)

    async def bare() -> None:
        public_key.verify(der, signed.encode(), algorithm)

    async def revocation_check() -> None:
        revocations.covers(session_id=caller.session_id, user_id=caller.user_id, kid=caller.kid)

    measured = await _in_turns(kit, kit_again, pyjwt, bare, revocation_check, seconds=seconds)
    return Verifications(*measured)


def _of_others(access_token: str) -> tuple[FetchKeys, Iterator[str]]:
    """Tokens with claims like this one, signed by a new key, and the key set."""
    header = jwt.get_unverified_header(access_token)
    claims = jwt.decode(access_token, options={"verify_signature": False})
    key = ec.generate_private_key(ec.SECP256R1())
    public = {**jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": header["kid"]}
    tokens = [jwt.encode({**claims, "jti": str(n)}, key, "ES256", headers=header) for n in range(_STRANGERS)]

    async def fetch() -> list[JsonWebKey]:
        return [public]

    return fetch, cycle(tokens)


async def _in_turns(*works: Callable[[], Awaitable[None]], seconds: float) -> list[float]:
    turns: list[list[float]] = [[] for _ in works]
    ends = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < ends:
        for work, costs in zip(works, turns, strict=True):
            # Processor time, so that other processes on the machine do not count.
            began = time.process_time_ns()
            for _ in range(_CALLS_IN_A_TURN):
                await work()
            costs.append((time.process_time_ns() - began) / _CALLS_IN_A_TURN / 1000)
    return [statistics.median(costs) for costs in turns]


def _revocations() -> Revocations:
    revocations = Revocations(system_clock)
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    revocations.replace(Revocation(RevocationKind.SESSION, str(uuid4()), expires_at) for _ in range(_REVOCATIONS))
    return revocations
