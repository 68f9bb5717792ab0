"""Notices and the states of a mail. Pure: no clock, no store."""

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
    """The person to whom a mail goes."""

    email: str
    first_name: str
    user_id: UUID | None = None
    """None if only an address is known, as with codes."""


@dataclass(frozen=True, slots=True)
class Letter:
    """The content of a mail."""

    subject: str
    body: str


class Template(StrEnum):
    """The kinds of mail. The database stores these names."""

    CODE = "CODE"
    """A code to register. Named before other codes existed."""
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
        """Whether a mail of unknown outcome is sent again, with the same Message-ID.

        Nobody can know whether a server took a mail when the connection breaks between the final dot and the reply. A second code
        or warning does no harm, but a missing code locks a person out and a missing warning hides a thief. Other mails are sent at
        most once.
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
    """To be tried, or tried again: no server has taken it."""
    SENDING = "SENDING"
    """A worker is sending it. If another worker finds this state, the first one crashed while it was sending."""
    SENT = "SENT"
    REFUSED = "REFUSED"
    """A server refused it permanently, or the mail could not be rendered safely."""
    EXPIRED = "EXPIRED"
    """Its code expired before it could be sent."""
    UNKNOWN = "UNKNOWN"
    """The connection broke when the outcome was open; a person must decide."""

    def after_crash(self, template: Template) -> MailState:
        """The state from which a worker continues that finds the mail."""
        if self is MailState.SENDING:
            return MailState.WAITING if template.sent_again else MailState.UNKNOWN
        return self
