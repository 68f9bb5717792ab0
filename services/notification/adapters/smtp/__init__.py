"""Hands mails to a mail server over SMTP (RFC 5321).

`replies` says what each answer means, `syntax` how addresses and mails are written, `session` carries commands and replies,
`connection` speaks to the server, `pool` reuses connections, `sending` puts them together.
"""

from .connection import MailServer, Tls, authorities
from .replies import (
    ContentRefused,
    Handover,
    MailError,
    NeedsOperator,
    NoConnection,
    NotInternational,
    OutcomeUnknown,
    Postponed,
    Refused,
    Stage,
    TryAgain,
)
from .sending import Rates, Smtp

__all__ = [
    "ContentRefused",
    "Handover",
    "MailError",
    "MailServer",
    "NeedsOperator",
    "NoConnection",
    "NotInternational",
    "OutcomeUnknown",
    "Postponed",
    "Rates",
    "Refused",
    "Smtp",
    "Stage",
    "Tls",
    "TryAgain",
    "authorities",
]
