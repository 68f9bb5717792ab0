"""Reads complaints: the reports by which mailbox providers tell that a reader marked a mail as spam (ARF, RFC 5965).

As with returned mail, what a report says of addresses is not believed: it counts for the one mail of ours that it names. The
addresses that it quotes are not even compared with ours, because providers blacken them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .report_parts import HEADER_BYTES, NotABounce, ReportMail, addresses_in, fields_of, only

FEEDBACK_TYPES = frozenset({"message/feedback-report"})

_UNWANTED = frozenset({"abuse", "fraud", "opt-out", "opt-out-list"})
"""Types by which readers say that they do not want such mail. Others are about viruses and signatures, or take a report back."""

_TYPE = re.compile(r"[A-Za-z][A-Za-z-]{0,39}")


@dataclass(frozen=True, slots=True)
class Complaint:
    """A complaint about one mail."""

    message_id: str
    """The Message-ID of the mail; empty if the report has none or more than one."""
    sent_to: tuple[str, ...]
    """Addresses of which one may be the envelope address that we gave the mail."""
    type: str
    """The registered type of the feedback, such as `abuse`, in lower case."""

    @property
    def counts(self) -> bool:
        return self.type in _UNWANTED


def read(mail: ReportMail) -> Complaint:
    """Read a complaint. Raises NotABounce."""
    fields = fields_of(mail.fields[:HEADER_BYTES].decode("latin-1"))
    kind = feedback_type(only(fields, "feedback-type"))
    quoted = [*fields.get("original-mail-from", ())[:1], *mail.returned.get("return-path", ())[:1]]
    envelope = [address for value in quoted for address in addresses_in(value)]
    return Complaint(only(mail.returned, "message-id"), tuple(dict.fromkeys([*envelope, *mail.sent_to])), kind)


def feedback_type(text: str) -> str:
    """The type in lower case. Raises NotABounce."""
    if not _TYPE.fullmatch(text.strip()):
        raise NotABounce("it does not say of which type the feedback is")
    return text.strip().lower()
