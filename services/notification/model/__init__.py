"""What people are told, and how far a mail has come. Pure: no clock, no store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class NotificationType(StrEnum):
    WELCOME = "WELCOME"
    STORY_READY = "STORY_READY"
    STORY_FAILED = "STORY_FAILED"
    PASSWORD_CHANGED = "PASSWORD_CHANGED"
    PASSWORD_DISABLED = "PASSWORD_DISABLED"
    SESSION_REVOKED = "SESSION_REVOKED"
    EMAIL_CHANGED = "EMAIL_CHANGED"


@dataclass(frozen=True, slots=True)
class Notification:
    id: UUID
    user_id: UUID
    type: NotificationType
    title: str
    body: str
    story_id: UUID | None
    created_at: datetime
    read_at: datetime | None


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom a mail goes to."""

    email: str
    first_name: str
    user_id: UUID | None = None
    """None where only an address is known, as with codes."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What a mail says."""

    subject: str
    body: str


class Template(StrEnum):
    """The kinds of mail."""

    CODE = "CODE"
    """Of a registration: the first code there was."""
    SIGN_IN_CODE = "SIGN_IN_CODE"
    PASSWORD_RESET_CODE = "PASSWORD_RESET_CODE"
    EMAIL_CHANGE_CODE = "EMAIL_CHANGE_CODE"
    REGISTRATION_REPEATED = "REGISTRATION_REPEATED"
    WELCOME = "WELCOME"
    STORY_READY = "STORY_READY"
    STORY_FAILED = "STORY_FAILED"
    PASSWORD_CHANGED = "PASSWORD_CHANGED"
    PASSWORD_DISABLED = "PASSWORD_DISABLED"
    SESSION_REVOKED = "SESSION_REVOKED"
    EMAIL_CHANGED = "EMAIL_CHANGED"
    ADDRESS_CLAIMED = "ADDRESS_CLAIMED"
    NEW_DEVICE = "NEW_DEVICE"
    USERNAME_CHANGED = "USERNAME_CHANGED"
    EMAIL_CHANGE_BEGUN = "EMAIL_CHANGE_BEGUN"
    EMAIL_CHANGE_STOPPED = "EMAIL_CHANGE_STOPPED"
    ACCOUNT_DELETED = "ACCOUNT_DELETED"

    @property
    def sent_again(self) -> bool:
        """Whether a mail of unknown outcome is sent a second time, under the same Message-ID.

        Nobody can know whether a server took a mail when the connection breaks between the final dot and its answer. A second
        code or warning does no harm; a missing code locks somebody out, and a missing warning leaves a thief unseen. Of everything
        else one is enough.
        """
        return self in _SENT_AGAIN


_SENT_AGAIN = frozenset(
    {
        Template.CODE,
        Template.SIGN_IN_CODE,
        Template.PASSWORD_RESET_CODE,
        Template.EMAIL_CHANGE_CODE,
        Template.PASSWORD_CHANGED,
        Template.PASSWORD_DISABLED,
        Template.SESSION_REVOKED,
        Template.EMAIL_CHANGED,
        Template.NEW_DEVICE,
        Template.USERNAME_CHANGED,
        Template.EMAIL_CHANGE_BEGUN,
        Template.EMAIL_CHANGE_STOPPED,
        Template.ACCOUNT_DELETED,
    }
)


class MailState(StrEnum):
    WAITING = "WAITING"
    """To be tried (again): no server has taken it."""
    SENDING = "SENDING"
    """A worker is at it; found by another worker, it means that the first one died there."""
    SENT = "SENT"
    REFUSED = "REFUSED"
    """A server said that it never will take it, or it would have said something else than it should."""
    EXPIRED = "EXPIRED"
    """Its code had ended before it could be sent."""
    UNKNOWN = "UNKNOWN"
    """The connection broke where nobody can know; for a person to look at."""

    def after_crash(self, template: Template) -> MailState:
        """The state from which a worker goes on that finds the mail."""
        if self is MailState.SENDING:
            return MailState.WAITING if template.sent_again else MailState.UNKNOWN
        return self
