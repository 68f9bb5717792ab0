"""Access tokens as auth signs them, and forged ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from kit.runtime import base64url


@dataclass(frozen=True)
class SigningKey:
    """An ES256 key and its id."""

    kid: str = "current"
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def jwk(self) -> dict[str, str]:
        numbers = self.private.public_key().public_numbers()
        point = {axis: base64url.encode(getattr(numbers, axis).to_bytes(32, "big")) for axis in ("x", "y")}
        return {"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "alg": "ES256", **point}

    def sign(self, *, without: str = "", **claims: Any) -> str:
        """Sign a token that is valid except for the given claims."""
        now = int(time.time())
        payload = {"iss": "storymesh", "aud": "storymesh", "sub": "ada", "iat": now, "exp": now + 600} | claims
        payload.pop(without, None)
        return jwt.encode(payload, self.private, algorithm="ES256", headers={"kid": self.kid})
