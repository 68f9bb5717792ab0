"""Refresh rotation: what to do about a presented refresh token. docs/decisions/0009-refresh-retries.md gives the reasons."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto

from . import RefreshToken, Session


class Refresh(Enum):
    """The decision about a presented refresh token."""

    ROTATE = auto()
    REPEAT = auto()
    """Issue the same successor again, because the first answer was lost."""
    REFUSE_REPEAT = auto()
    WAIT = auto()
    """Refuse for now, because too many came in a row; the session lives on."""
    REUSED = auto()
    REVOKED = auto()
    INVALID = auto()


@dataclass(frozen=True, slots=True)
class RefreshRules:
    """Limits of a session: its life, the tolerance for retries of a refresh, and the pace of refreshes."""

    idle: timedelta
    absolute: timedelta
    grace: timedelta
    repeats: int
    late_repeats: int
    in_a_row: int
    pause: timedelta

    def judge(self, session: Session | None, token: RefreshToken, *, ours: bool, now: datetime) -> Refresh:
        """Decide about a presented token. `ours` says whether its secret is that of its session and generation.

        A forged token is INVALID whatever the state of the session, and changes nothing; otherwise anyone who learns a session's id
        could end it.
        """
        if session is None or not _is_genuine(token, session, ours):
            return Refresh.INVALID
        expired = session.expires_at <= now
        if session.revoked_at is not None or (session.outdated and not expired):
            return Refresh.REVOKED
        if expired:
            return Refresh.INVALID
        if token.generation == session.generation:
            return Refresh.WAIT if self.wait(session, now) else Refresh.ROTATE
        return self._judge_spent(session, token, now)

    def _judge_spent(self, session: Session, token: RefreshToken, now: datetime) -> Refresh:
        """Decide about a spent token. Its retry is accepted only until the newest token has been presented.

        A thief and the owner who take turns retry late in every generation, which reveals them.
        """
        if token.generation < session.generation - 1:
            return Refresh.REUSED
        if self.is_late(session, now) and self._late_in_a_row(session) > self.late_repeats:
            return Refresh.REUSED
        return Refresh.REPEAT if session.repeats < self.repeats else Refresh.REFUSE_REPEAT

    def is_late(self, session: Session, now: datetime) -> bool:
        """Whether a retry with the parent of the newest token comes later than retries are expected."""
        return now - session.rotated_at > self.grace

    def repeated_late(self, session: Session) -> Session:
        """The session after its newest token was issued again late."""
        return replace(session, late_generation=session.generation, late_repeats=self._late_in_a_row(session))

    def _late_in_a_row(self, session: Session) -> int:
        """The number of consecutive late generations, this one included."""
        if session.late_generation == session.generation:
            return session.late_repeats
        return session.late_repeats + 1 if session.late_generation == session.generation - 1 else 1

    def wait(self, session: Session, now: datetime) -> timedelta:
        """The time until the next refresh is allowed; zero if it is allowed now."""
        worked_off = self.refreshed_until(session, now) - self.in_a_row * self.pause
        return max(worked_off - now, timedelta())

    def refreshed_until(self, session: Session, now: datetime) -> datetime:
        """GCRA's theoretical arrival time after one more refresh."""
        return max(session.refreshed_until or now, now) + self.pause

    def expires_at(self, now: datetime, ends_at: datetime) -> datetime:
        return min(now + self.idle, ends_at)


def _is_genuine(token: RefreshToken, session: Session, ours: bool) -> bool:
    """Whether this service made the token. The newest is known by its digest, so that a new refresh key signs nobody out."""
    if token.generation == session.generation:
        return hmac.compare_digest(token.digest, session.token_digest)
    return token.generation < session.generation and ours
