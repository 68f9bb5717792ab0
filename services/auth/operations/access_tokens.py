"""Issues access tokens (RFC 9068). Every service verifies them with the kit's AccessTokens."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from kit.identity.caller import Role
from kit.runtime.clock import Clock

from ..model import Randomness, Session
from .keys import SigningKeys


class AccessTokenIssuer:
    def __init__(
        self,
        keys: SigningKeys,
        clock: Clock,
        random: Randomness,
        *,
        issuer: str,
        audience: str,
        life: timedelta,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._random = random
        self._issuer = issuer
        self._audience = audience
        self._life = life

    def issue(self, session: Session, role: Role) -> tuple[str, datetime]:
        """Return an access token and its expiry. It holds no address or name, because tokens are logged and stored by others."""
        issued_at = self._clock().replace(microsecond=0)
        # A token must not outlive its session.
        expires_at = min(issued_at + self._life, session.ends_at.replace(microsecond=0))
        claims = {
            "iss": self._issuer,
            "sub": str(session.user_id),
            "aud": self._audience,
            "exp": expires_at,
            "iat": issued_at,
            "jti": str(UUID(bytes=self._random(16), version=4)),
            "sid": str(session.id),
            "epoch": session.epoch,
            "auth_time": int(session.created_at.timestamp()),
            "amr": list(session.methods),
            "role": str(role),
        }
        return self._keys.sign(claims), expires_at
