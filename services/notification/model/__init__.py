"""Notices and their recipients. Pure: no clock, no store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Kind(StrEnum):
    """The kinds of notices. The database stores these names."""

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
    WEBHOOK_DISABLED = "WEBHOOK_DISABLED"
    DIGEST = "DIGEST"
    """What waited for a daily or weekly mail. Made by preferences, not by an event."""


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
    """The text part."""
    html: str = ""
    """The HTML part, shown instead of the text part by programs that can. Empty: the mail has none."""
    language: str = ""
    """The language of both parts, as a BCP 47 tag. Empty: unknown."""
