"""Identities for tests: real access tokens signed with a key of the test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from kit.identity.revocations import Revocations
from kit.identity.tokens import AccessTokens, JsonWebKey, KeySet, ServiceTokens
from kit.runtime.clock import system_clock

ISSUER = AUDIENCE = "storymesh"
MESH_KEY = b"m" * 32


def nothing_revoked() -> Revocations:
    """Return an empty list of revocations that is known and never stale."""
    revocations = Revocations(system_clock, stale_after=timedelta.max)
    revocations.replace(())
    return revocations


@dataclass
class Issuer:
    """Signs access tokens as auth does, serves its key set, and revokes sessions."""

    kid: str = "test-key"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    revocations: Revocations = field(default_factory=nothing_revoked)
    """The revocations that verifiers of the tokens know."""

    def token(self, user_id: UUID, role: str = "USER", **changes: object) -> str:
        """Sign a token. `changes` replace claims; None leaves one out."""
        now = datetime.now(UTC)
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "sid": str(uuid4()),
            "jti": str(uuid4()),
            "iat": now,
            "exp": now + timedelta(minutes=10),
            "role": role,
        }
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self.kid})

    async def keys(self) -> list[JsonWebKey]:
        key: dict[str, str] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return [{**key, "kid": self.kid, "alg": "ES256", "use": "sig"}]

    def access_tokens(self) -> AccessTokens:
        return AccessTokens(KeySet(self.keys, system_clock), self.revocations, issuer=ISSUER, audience=AUDIENCE)


def service_tokens(service: str) -> ServiceTokens:
    return ServiceTokens(MESH_KEY, service=service, clock=system_clock)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata of a call with the token."""
    return (("authorization", f"Bearer {token}"),)
