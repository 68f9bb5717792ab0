"""The table of notices: which event tells whom of what, on which channels, and with what care.

A new kind of notice is one row here, its name in `Kind` and its template in `letters`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from . import Kind
from .deliveries import Channel
from .notifications import TargetType

LIFE = timedelta(days=5)
"""How long a delivery is tried that has no end of its own (RFC 5321, 4.5.4.1: four to five days)."""

_MAIL = frozenset({Channel.EMAIL})
_MAIL_AND_APP = frozenset({Channel.EMAIL, Channel.IN_APP, Channel.WEBHOOK})
"""What stands in the application goes by webhook too: its words hold no address and no code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A kind of notice. Fields of the event's message are named as the contract names them."""

    kind: Kind
    event: str
    """The event's message, in the package of the events."""
    when: tuple[str, str] | None = None
    """A field of the event and the name of the enum value that it must have; None: each such event is this notice."""
    person: str = "user_id"
    """The field with the id of the person to be told; empty if the event names an address alone."""
    sealed: tuple[str, str] | None = None
    """The field with sealed bytes, and the message in them. If that holds an `email`, the mail goes there, not to the account's."""
    about: str = ""
    """The field with the id of what it is about; empty: it is about the person's account."""
    links_story: bool = False
    """Whether it leads to the story's page: without a link if the owner has taken it back, and not sent if the story is gone."""
    target: TargetType = TargetType.STORY
    """What `about` is."""
    actor: tuple[str, str] | None = None
    """The fields with the id and the name of the person who did what it tells of, if that is somebody else."""
    grouped: bool = False
    """Inside the application it joins the unread notification of its kind that is about the same: "Ada and 12 others"."""
    expires: str = ""
    """The field with the time after which it is not sent any more; empty: `LIFE` after the decision."""
    series: str = ""
    """The field with an id that it shares with others of which only the latest is sent; empty: it stands alone."""
    channels: frozenset[Channel] = field(default=_MAIL)
    """The channels on which it goes unless the person wishes otherwise."""
    security: bool = False
    """A code or a warning: it goes before other notices, and no wish of the person holds it back."""
    proven: bool = True
    """Whether the address is proven to be the person's. If not, the letter holds no text of people, which would reach strangers."""
    may_come_twice: bool = False
    """Whether a delivery of unknown outcome is made once more, under the same Message-ID.

    Nobody can know whether a server took a mail when the connection breaks between the final dot and the reply. A second code
    or warning does no harm, but a missing code locks a person out and a missing warning hides a thief. Others are sent once.
    """


def _code(kind: Kind, purpose: str, *, proven: bool = True) -> Notice:
    return Notice(
        kind=kind,
        event="CodeIssued",
        when=("purpose", purpose),
        person="",
        sealed=("sealed_mail", "CodeMail"),
        expires="expire_time",
        series="challenge_id",
        proven=proven,
        security=True,
        may_come_twice=True,
    )


_NOTICES = (
    _code(Kind.CODE, "CODE_PURPOSE_REGISTRATION", proven=False),
    _code(Kind.SIGN_IN_CODE, "CODE_PURPOSE_SIGN_IN"),
    _code(Kind.PASSWORD_RESET_CODE, "CODE_PURPOSE_PASSWORD_RESET"),
    _code(Kind.EMAIL_CHANGE_CODE, "CODE_PURPOSE_EMAIL_CHANGE", proven=False),
    Notice(kind=Kind.REGISTRATION_REPEATED, event="RegistrationRepeated", security=True),
    Notice(kind=Kind.WELCOME, event="UserRegistered", channels=_MAIL_AND_APP),
    Notice(
        kind=Kind.SESSION_REVOKED,
        event="SessionRevoked",
        when=("reason", "SESSION_REVOKE_REASON_REFRESH_REUSED"),
        about="session_id",
        target=TargetType.SESSION,
        channels=_MAIL_AND_APP,
        security=True,
        may_come_twice=True,
    ),
    Notice(
        kind=Kind.PASSWORD_CHANGED,
        event="PasswordChanged",
        channels=_MAIL_AND_APP,
        security=True,
        may_come_twice=True,
    ),
    Notice(
        kind=Kind.PASSWORD_DISABLED,
        event="PasswordDisabled",
        channels=_MAIL_AND_APP,
        security=True,
        may_come_twice=True,
    ),
    # To the old address, which auth does not have any more.
    Notice(
        kind=Kind.EMAIL_CHANGED,
        event="EmailChanged",
        sealed=("sealed_mail", "AddressMail"),
        channels=_MAIL_AND_APP,
        security=True,
        may_come_twice=True,
    ),
    # To the address that the account had when the change began, even if it has changed since.
    Notice(
        kind=Kind.EMAIL_CHANGE_BEGUN,
        event="EmailChangeBegun",
        sealed=("sealed_mail", "EmailChangeMail"),
        security=True,
        may_come_twice=True,
    ),
    Notice(kind=Kind.EMAIL_CHANGE_STOPPED, event="EmailChangeStopped", security=True, may_come_twice=True),
    Notice(kind=Kind.ADDRESS_CLAIMED, event="AddressClaimed", security=True),
    Notice(
        kind=Kind.NEW_DEVICE,
        event="NewDeviceSignedIn",
        sealed=("sealed_device", "DeviceMail"),
        security=True,
        may_come_twice=True,
    ),
    Notice(kind=Kind.USERNAME_CHANGED, event="UsernameChanged", security=True, may_come_twice=True),
    # The event has no account id, so that the mail outlives the erasure.
    Notice(
        kind=Kind.ACCOUNT_DELETED,
        event="AccountDeleted",
        person="",
        sealed=("sealed_mail", "AddressMail"),
        security=True,
        may_come_twice=True,
    ),
    Notice(
        kind=Kind.STORY_READY,
        event="StoryCompleted",
        person="owner_id",
        about="story_id",
        links_story=True,
        channels=_MAIL_AND_APP,
    ),
    Notice(kind=Kind.STORY_FAILED, event="StoryFailed", person="owner_id", about="story_id", channels=_MAIL_AND_APP),
)

NO_NEWS_OTHERWISE = frozenset({"SessionRevoked"})
"""Events that are no news where no row fits: the owner caused the other endings of a session, or gets other notices of them."""


def _by_event() -> Mapping[str, tuple[Notice, ...]]:
    found: defaultdict[str, tuple[Notice, ...]] = defaultdict(tuple)
    for notice in _NOTICES:
        found[notice.event] += (notice,)
    return dict(found)


NOTICES_OF: Mapping[str, tuple[Notice, ...]] = _by_event()
"""The rows by the event's message."""

WEBHOOK_DISABLED = Notice(
    kind=Kind.WEBHOOK_DISABLED,
    event="",
    about="webhook_id",
    target=TargetType.WEBHOOK,
    channels=frozenset({Channel.IN_APP}),
)
"""Tells the owner of a webhook. No event asks for it; the delivery whose failure disabled the webhook does."""

DIGEST = Notice(kind=Kind.DIGEST, event="")
"""One mail instead of those of the notices that wait for it. No event asks for it; preferences make its delivery."""

NOTICES: Mapping[str, Notice] = {notice.kind: notice for notice in (*_NOTICES, WEBHOOK_DISABLED, DIGEST)}
"""The rows by their kind."""

BY_WEBHOOK = frozenset(notice.kind for notice in _NOTICES if Channel.WEBHOOK in notice.channels)
"""The kinds that go by webhook, by a person's and by those of the installation."""
