"""Resume tokens of watches: a place in the numbered changes of one person, signed and bound to that person."""

from __future__ import annotations

from uuid import UUID

from kit.errors import InvalidArgument, Violation
from kit.identity.signing import Signer

from ..model.notifications import ChangePosition


class WatchPositions:
    """Turns positions into resume tokens and back."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def token(self, user_id: UUID, position: ChangePosition) -> str:
        """The token that resumes right after the change."""
        mark = f".{position.mark.hex}" if position.mark else ""
        return self._signer.sign(_scope(user_id), f"{position.number}{mark}")

    def position(self, user_id: UUID, token: str) -> ChangePosition | None:
        """The position in a token, None without a token. Raises InvalidArgument for one that the person was not given."""
        if not token:
            return None
        position = self._signer.open(_scope(user_id), token)
        if position is None:
            description = "is not a token that a watch or list of these notifications handed out"
            raise InvalidArgument([Violation("resume_token", description, "RESUME_TOKEN_INVALID")])
        number, _, mark = position.partition(".")
        return ChangePosition(int(number), UUID(mark) if mark else None)


def _scope(user_id: UUID) -> str:
    return f"watch:notifications:{user_id}"
