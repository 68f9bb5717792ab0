"""What a presented refresh token gets: docs/decisions/0009-refresh-retries.md says why."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto

from . import RefreshToken, Session


class Refresh(Enum):
    """What is to be done about a presented refresh token."""

    ROTATE = auto()
    REPEAT = auto()
    """Answer with the same successor again: the first answer was lost."""
    REFUSE_REPEAT = auto()
    WAIT = auto()
    """Too many in a row; the session lives on."""
    REUSED = auto()
    REVOKED = auto()
    INVALID = auto()


@dataclass(frozen=True, slots=True)
class RefreshRules:
    """How long sessions live, how lenient a refresh is with retries, and how often there may be one."""

    idle: timedelta
    absolute: timedelta
    grace: timedelta
    repeats: int
    late_repeats: int
    in_a_row: int
    pause: timedelta

    def judge(self, session: Session | None, token: RefreshToken, *, ours: bool, now: datetime) -> Refresh:
        """`ours` says whether the token has the secret of its session and generation.

        What is no token of ours tells nothing about the session and does nothing to it, or whoever learns a session's id could
        end it.
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
        """Nobody has presented the newest token while it is the newest: only then its parent may ask again.

        A thief and the owner who take turns would do so in every generation, and are found out by that.
        """
        if token.generation < session.generation - 1:
            return Refresh.REUSED
        if self.is_late(session, now) and self._late_in_a_row(session) > self.late_repeats:
            return Refresh.REUSED
        return Refresh.REPEAT if session.repeats < self.repeats else Refresh.REFUSE_REPEAT

    def is_late(self, session: Session, now: datetime) -> bool:
        """Whether a retry with the parent of the newest token comes after the time in which one is expected."""
        return now - session.rotated_at > self.grace

    def repeated_late(self, session: Session) -> Session:
        """The session once its newest token is handed out again late."""
        return replace(session, late_generation=session.generation, late_repeats=self._late_in_a_row(session))

    def _late_in_a_row(self, session: Session) -> int:
        """With this generation, if it is handed out again late."""
        if session.late_generation == session.generation:
            return session.late_repeats
        return session.late_repeats + 1 if session.late_generation == session.generation - 1 else 1

    def wait(self, session: Session, now: datetime) -> timedelta:
        """How long the next refresh has to wait; zero when it may come."""
        worked_off = self.refreshed_until(session, now) - self.in_a_row * self.pause
        return max(worked_off - now, timedelta())

    def refreshed_until(self, session: Session, now: datetime) -> datetime:
        """Until when the refreshes keep the session busy, one more included."""
        return max(session.refreshed_until or now, now) + self.pause

    def expires_at(self, now: datetime, ends_at: datetime) -> datetime:
        return min(now + self.idle, ends_at)


def _is_genuine(token: RefreshToken, session: Session, ours: bool) -> bool:
    """The newest token is known by its digest, so that a new refresh key signs nobody out; spent ones are derived again."""
    if token.generation == session.generation:
        return hmac.compare_digest(token.digest, session.token_digest)
    return token.generation < session.generation and ours
