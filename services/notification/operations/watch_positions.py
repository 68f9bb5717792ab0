"""Resume tokens of watches: a place in the numbered changes of one person, signed and bound to that person."""

from __future__ import annotations

from uuid import UUID

from kit.errors import InvalidArgument, Violation
from kit.identity.signing import Signer


class WatchPositions:
    """Turns numbers of changes into resume tokens and back."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def token(self, user_id: UUID, number: int) -> str:
        """The token that resumes right after the change."""
        return self._signer.sign(_scope(user_id), str(number))

    def number(self, user_id: UUID, token: str) -> int | None:
        """The number in a token, None without a token. Raises InvalidArgument for one that the person was not given."""
        if not token:
            return None
        number = self._signer.open(_scope(user_id), token)
        if number is None:
            description = "is not a token that a watch or list of these notifications handed out"
            raise InvalidArgument([Violation("resume_token", description, "RESUME_TOKEN_INVALID")])
        return int(number)


def _scope(user_id: UUID) -> str:
    return f"watch:notifications:{user_id}"
