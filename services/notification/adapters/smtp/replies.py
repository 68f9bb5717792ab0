"""Outcomes of a mail, and what a server's reply says about them: about the recipient, about us, or about the moment.

A reply is three digits (RFC 5321, 4.2) and, from most servers, an enhanced status code (RFC 3463). The digits say whether it is
final; the enhanced code says whom it means, because servers answer at RCPT also what they think of our host, sender or login.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

_ENHANCED_CODE = re.compile(r"[#(]{0,2}([245])\.(\d{1,3})\.(\d{1,3})(?!\d|\.)")

_RECIPIENTS_OWN = frozenset({(1, 1), (1, 2), (1, 3), (1, 6), (1, 10)})
"""Subject and detail (RFC 3463, 3.2; RFC 7505): no such mailbox, no such domain, bad syntax, moved, a domain without mail."""
_MAILBOX = 2
"""Subject of all that is wrong with the recipient's mailbox: disabled, full (RFC 3463, 3.3)."""
_NOT_INTERNATIONAL = frozenset({(6, 7), (6, 8), (6, 9)})
"""Subject and detail: internationalised mail cannot be delivered as it is (RFC 6531, 4.2 and RFC 5248)."""

# Replies without an enhanced code, at a step that names the recipient or sends the content.
_RECIPIENT_UNAVAILABLE = frozenset({550, 551, 552, 553, 556})  # RFC 5321, 4.2.3; RFC 7504.
_CONTENT_REFUSED = frozenset({550, 551, 552, 553, 554})
_ABOUT_US = re.compile(
    r"relay|authenticat|\bauth\b|log ?in|sender|helo|ehlo|\bhost\b|client|\btls\b|\bssl\b|encrypt|"
    r"\bip\b|reverse|\bptr\b|rdns|dnsbl|rbl\b|block ?list|black ?list|blocked|(?<!not )listed|prohibit|polic|reputation|"
    r"\bspf\b|dkim|dmarc",
    re.IGNORECASE,
)
"""Words by which servers without enhanced codes say that they mean our host, sender or login. Exim says `relay not permitted`."""


class Step(Enum):
    """The step of an SMTP session to which a reply belongs. The first six concern us, whoever the recipient is."""

    CONNECT = auto()
    HELLO = auto()
    TLS = auto()
    LOGIN = auto()
    RESET = auto()
    SENDER = auto()
    RECIPIENT = auto()
    DATA = auto()
    FINAL_DOT = auto()


_BEFORE_RECIPIENT = frozenset({Step.CONNECT, Step.HELLO, Step.TLS, Step.LOGIN, Step.RESET, Step.SENDER})


class MailError(Exception):
    """A mail was not taken, or nobody knows. Holds no text of a server, which often quotes the address."""

    reason: ClassVar[str]
    """UPPER_SNAKE and permanent."""

    def __init__(self, text: str = "", *, answer: str = "") -> None:
        super().__init__(text or answer)
        self.answer = answer
        """The reply's numbers, such as `550 5.1.1`; empty if no reply came."""


class TryAgain(MailError):
    """No server has taken the mail, so sending it again is safe."""

    reason = "DEFERRED"


class NoConnection(TryAgain):
    """The server cannot be reached, does not answer in time, or hung up before the mail was handed over."""

    reason = "NO_CONNECTION"


class Postponed(TryAgain):
    """Our own rate limit. No server was asked: it is no attempt and no failure."""

    reason = "RATE_LIMITED"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"its turn comes in {seconds:.1f} s")
        self.seconds = seconds
        """Seconds until it is the mail's turn."""


class NeedsOperator(TryAgain):
    """The server refuses us, or we refuse the server: settings, DNS or reputation are wrong, and every recipient is affected.

    The mail is kept and tried again, because an operator can mend the cause; health says so meanwhile.
    """

    reason = "SENDER_REFUSED"


class Refused(MailError):
    """The server will never take mail for this recipient."""

    reason = "RECIPIENT_REFUSED"


class ContentRefused(Refused):
    """The server will never take this mail, and says nothing against its recipient."""

    reason = "CONTENT_REFUSED"


class NotInternational(Refused):
    """The address needs SMTPUTF8 (RFC 6531), which a server on the way does not offer."""

    reason = "SMTPUTF8_NOT_OFFERED"


class OutcomeUnknown(MailError):
    """The connection broke between the end of the mail and the server's reply."""

    reason = "OUTCOME_UNKNOWN"


class Stage(Enum):
    UNSEEN = auto()
    """The end of the mail has not been sent to a server."""
    HANDED_OVER = auto()
    """The end of the mail is being sent; the server may have taken the mail."""
    TAKEN = auto()


@dataclass(slots=True)
class Handover:
    """The stage that a mail has reached, readable by a caller whose `send` is cancelled."""

    stage: Stage = Stage.UNSEEN


def error_of_reply(step: Step, code: int, text: str, *, international: bool = False) -> MailError:
    """The error that a reply other than consent stands for. `international`: the recipient's address is not ASCII."""
    enhanced = _ENHANCED_CODE.match(text)
    answer = f"{code} {enhanced[1]}.{enhanced[2]}.{enhanced[3]}" if enhanced else f"{code}"
    status = (int(enhanced[2]), int(enhanced[3])) if enhanced else None
    return _error_class(step, code, status, text, international=international)(answer=answer)


def _error_class(
    step: Step, code: int, status: tuple[int, int] | None, text: str, *, international: bool
) -> type[MailError]:
    if 500 <= code < 600:
        if step in _BEFORE_RECIPIENT:
            return NeedsOperator
        return _by_status(status, international=international) if status else _by_code(step, code, text)
    return OutcomeUnknown if step is Step.FINAL_DOT and not 400 <= code < 500 else TryAgain


def _by_status(status: tuple[int, int], *, international: bool) -> type[MailError]:
    if international and status in _NOT_INTERNATIONAL:
        return NotInternational
    return Refused if status in _RECIPIENTS_OWN or status[0] == _MAILBOX else NeedsOperator


def _by_code(step: Step, code: int, text: str) -> type[MailError]:
    if _ABOUT_US.search(text):
        return NeedsOperator
    if step is Step.RECIPIENT:
        return Refused if code in _RECIPIENT_UNAVAILABLE else NeedsOperator
    return ContentRefused if code in _CONTENT_REFUSED else NeedsOperator
