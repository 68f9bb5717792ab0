"""Reads delivery status notifications: the reports by which mail servers return a mail (RFC 3464).

What a report says of addresses is never believed. It only matters for a mail that it names by our Message-ID or by the envelope
address that we gave that mail (`return_paths`), and then it concerns the one address to which we sent that mail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from .enhanced_codes import EnhancedCode
from .report_parts import (
    HEADER_BYTES,
    PARAMETER_CHARACTERS,
    NotABounce,
    ReportMail,
    addresses_in,
    fields_of,
    first,
    only,
)

_MOST_GROUPS = 50

STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})

_WORD = re.compile(r"\s*([A-Za-z-]+)")


class BounceKind(StrEnum):
    """The kinds of bounces."""

    NO_ADDRESS = "NO_ADDRESS"
    """The address does not exist (5.1.1 to 5.1.3, 5.1.6, 5.1.10)."""
    MAILBOX = "MAILBOX"
    """The mailbox exists and takes no mail (5.2.x): disabled or full."""
    SOFT = "SOFT"
    """The server gave up after a passing failure (4.x.x), or says nothing that concerns the address."""
    OURS = "OURS"
    """The server refuses us, not the recipient: policy, relay, content (any other 5.x.x)."""

    @property
    def hard(self) -> bool:
        """Whether the address is suppressed because of it."""
        return self in (BounceKind.NO_ADDRESS, BounceKind.MAILBOX)


@dataclass(frozen=True, slots=True)
class RecipientReport:
    """What a report says of one recipient."""

    action: str
    """`failed`, `delayed`, `delivered`, `relayed` or `expanded`; anything else is no failure."""
    code: EnhancedCode | None
    addresses: frozenset[str]
    """The original and the final recipient in canonical form. Compared with our address, never used by themselves."""

    @property
    def kind(self) -> BounceKind | None:
        """The kind of the bounce; None if the report is no final failure."""
        if self.action != "failed":
            return None
        if self.code is None or self.code.general or not self.code.lasting:
            return BounceKind.SOFT
        if not self.code.recipients:
            return BounceKind.OURS
        return BounceKind.NO_ADDRESS if self.code.no_address else BounceKind.MAILBOX


@dataclass(frozen=True, slots=True)
class Report:
    """A delivery status notification."""

    message_id: str
    """The Message-ID of the returned mail; empty if the report has none or more than one."""
    sent_to: tuple[str, ...]
    """The addresses to which the report itself was sent: one of them may be the envelope address that we gave the mail."""
    recipients: tuple[RecipientReport, ...]

    @property
    def counts(self) -> bool:
        """Whether it tells of a final failure."""
        return any(recipient.kind for recipient in self.recipients)


def read(mail: ReportMail) -> Report:
    """Read a report. Raises NotABounce."""
    recipients = tuple(_recipients(mail.fields))
    if not recipients:
        raise NotABounce("it tells of no recipient")
    return Report(only(mail.returned, "message-id"), mail.sent_to, recipients)


def _recipients(status: bytes) -> Iterator[RecipientReport]:
    """The groups of fields about recipients. A group without an action or a status, as the first one, concerns the whole mail."""
    groups = re.split(rb"\n[ \t]*\n+", status[:HEADER_BYTES].lstrip(b"\n"), maxsplit=_MOST_GROUPS)
    for group in groups[:_MOST_GROUPS]:
        fields = fields_of(group.decode("latin-1"))
        if "action" not in fields and "status" not in fields:
            continue
        action = _WORD.match(first(fields, "action"))
        quoted = (first(fields, name) for name in ("original-recipient", "final-recipient"))
        yield RecipientReport(
            action=action[1].lower() if action else "",
            code=_code(first(fields, "status"), first(fields, "diagnostic-code")),
            addresses=frozenset(address for value in quoted for address in addresses_in(value)),
        )


def _code(status: str, diagnostic: str) -> EnhancedCode | None:
    """The code of the field Status; that of the server's own words, if they say more and do not contradict."""
    code = EnhancedCode.begins(status)
    said = EnhancedCode.within(diagnostic[:PARAMETER_CHARACTERS]) if diagnostic.lower().startswith("smtp") else None
    if said and (code is None or (code.general and code.kind == said.kind)):
        return said
    return code
