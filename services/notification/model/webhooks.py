"""Webhooks: addresses of receivers at which notices arrive, and how a receiver's failures end them. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from . import Kind
from .deliveries import Channel

SECRET_BYTES = 32
SECRET_OVERLAP = timedelta(days=1)
"""The time after a rotation in which messages are signed with the former secret as well."""

_SECRET_PREFIX = "whsec_"
_LEAST_FAILURES = 10
"""Failures in a row, however long they take, before a webhook is disabled: two of them may be days apart, with our worker away."""


class Act(StrEnum):
    """What an administrator does to a webhook of the installation. The database stores these names."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    ROTATE_SECRET = "ROTATE_SECRET"
    TEST = "TEST"
    DELETE = "DELETE"


class DisableReason(StrEnum):
    """Why a webhook is disabled. The database stores these names."""

    BY_OWNER = "BY_OWNER"
    FAILING = "FAILING"
    """It has failed for days, without a success in between."""
    GONE = "GONE"
    """The receiver answered 410, by which it asks for no more (Standard Webhooks)."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook of a person or of the installation, with its secrets sealed."""

    id: UUID
    user_id: UUID | None
    """The owner; None: the installation, which is told everybody's notices."""
    url: bytes
    """Sealed, because addresses of receivers often hold a token."""
    description: str
    kinds: frozenset[Kind]
    """The kinds of notices that it gets; empty: all that go by webhook."""
    secret: bytes
    former_secret: bytes | None
    former_secret_until: datetime | None
    disabled: DisableReason | None
    failures: int
    """Failed attempts since the last success."""
    failing_since: datetime | None
    """The time of the first of them."""
    last_failed_at: datetime | None
    last_failure: str
    """The reason of the last failed attempt: UPPER_SNAKE, permanent."""
    last_status: int
    """The HTTP status of the last answer; 0: there was none."""
    last_succeeded_at: datetime | None
    created_at: datetime
    changed_at: datetime

    @property
    def channel(self) -> Channel:
        return Channel.SYSTEM_WEBHOOK if self.user_id is None else Channel.WEBHOOK

    def wants(self, kind: Kind) -> bool:
        return not self.kinds or kind in self.kinds

    def secrets(self, now: datetime) -> tuple[bytes, ...]:
        """The sealed secrets to sign with, the newest first."""
        former = self.former_secret if self.former_secret_until and now < self.former_secret_until else None
        return (self.secret,) if former is None else (self.secret, former)

    def rotated(self, secret: bytes, now: datetime, *, end_former: bool) -> Webhook:
        """The webhook with a new sealed secret; the former one signs beside it for a day, unless `end_former`."""
        former, until = (None, None) if end_former else (self.secret, now + SECRET_OVERLAP)
        return replace(self, secret=secret, former_secret=former, former_secret_until=until, changed_at=now)

    def enabled(self) -> Webhook:
        """Enabled again, its failures forgotten."""
        return replace(self, disabled=None, failures=0, failing_since=None) if self.disabled else self

    def succeeded(self, status: int, now: datetime) -> Webhook:
        return replace(self, failures=0, failing_since=None, last_succeeded_at=now, last_status=status)

    def failed(self, reason: str, status: int, now: datetime, *, gone: bool, patience: timedelta) -> Webhook:
        """After a failed attempt: disabled if the receiver is gone, or if it has failed for longer than `patience`."""
        since = self.failing_since or now
        failures = self.failures + 1
        disabled = self.disabled
        if gone:
            disabled = disabled or DisableReason.GONE
        elif failures >= _LEAST_FAILURES and now - since >= patience:
            disabled = disabled or DisableReason.FAILING
        return replace(
            self,
            disabled=disabled,
            failures=failures,
            failing_since=since,
            last_failed_at=now,
            last_failure=reason,
            last_status=status,
        )


def shown(secret: bytes) -> str:
    """The secret in the form in which libraries of Standard Webhooks take it."""
    return _SECRET_PREFIX + base64.b64encode(secret).decode()
