"""What a service pays to know who calls: kit's whole check, beside PyJWT alone and the signature alone, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from services.kit import keys
from services.kit.clock import system_clock
from services.kit.revocations import Kind, Revocation, Revocations
from services.kit.settings import ServiceSettings
from services.kit.tokens import AccessTokens, KeySet

_REVOCATIONS = 10_000
"""In force while tokens are checked, as on a bad day."""

_CALLS_IN_A_TURN = 200


@dataclass(frozen=True)
class Verifications:
    """Medians over the turns, in microseconds of processor time for a call."""

    kit: float
    pyjwt: float
    signature: float
    revocation_check: float


async def measure(channel: grpc.aio.Channel, access_token: str, *, seconds: float) -> Verifications:
    """The token must be one that auth has just made; its key comes from auth, too."""
    fetch = keys.fetch_from(channel)
    revocations = _revocations()
    audience, issuer = (ServiceSettings.model_fields[name].default for name in ("token_audience", "token_issuer"))
    tokens = AccessTokens(KeySet(fetch, system_clock), revocations, issuer=issuer, audience=audience)
    caller = await tokens.verify(access_token)

    header = jwt.get_unverified_header(access_token)
    (key,) = [jwt.PyJWK(dict(each), algorithm="ES256") for each in await fetch() if each["kid"] == header["kid"]]
    public_key, algorithm = key.key, ec.ECDSA(hashes.SHA256())
    signed, _, signature = access_token.rpartition(".")
    raw = jwt.utils.base64url_decode(signature)
    der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))

    async def kit() -> None:
        await tokens.verify(access_token)

    async def pyjwt() -> None:
        jwt.decode(access_token, key, algorithms=["ES256"], issuer=issuer, audience=audience)

    async def bare() -> None:
        public_key.verify(der, signed.encode(), algorithm)

    async def revocation_check() -> None:
        revocations.covers(session_id=caller.session_id, user_id=caller.user_id, kid=caller.kid)

    measured = await _in_turns(kit, pyjwt, bare, revocation_check, seconds=seconds)
    return Verifications(*measured)


async def _in_turns(*works: Callable[[], Awaitable[None]], seconds: float) -> list[float]:
    turns: list[list[float]] = [[] for _ in works]
    ends = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < ends:
        for work, costs in zip(works, turns, strict=True):
            # Processor time, so that whoever else runs on the machine does not count.
            began = time.process_time_ns()
            for _ in range(_CALLS_IN_A_TURN):
                await work()
            costs.append((time.process_time_ns() - began) / _CALLS_IN_A_TURN / 1000)
    return [statistics.median(costs) for costs in turns]


def _revocations() -> Revocations:
    revocations = Revocations(system_clock)
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    revocations.replace(Revocation(Kind.SESSION, str(uuid4()), expires_at) for _ in range(_REVOCATIONS))
    return revocations
