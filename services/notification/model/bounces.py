"""Reads delivery status notifications: the reports by which mail servers return a mail (RFC 3464, in the form of RFC 3462).

A report may come from anybody, so it is read as hostile: in time that grows with its length alone, without recursion, and bounded
in every count. The email package is not used for more than a header's parameters, because its parser nests as deep as the mail.

What a report says of addresses is never believed. It only matters for a mail that it names by our Message-ID or by the envelope
address that we gave that mail (`return_paths`), and then it concerns the one address to which we sent that mail.
"""

from __future__ import annotations

import binascii
import quopri
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum

from kit.identity.email_addresses import canonical

from .enhanced_codes import EnhancedCode

MOST_BYTES = 1 << 20
"""As much of a report as is read. What decides stands before the returned mail, so a longer one is read as far as this."""

_HEADER_BYTES = 1 << 16
_PARAMETER_CHARACTERS = 1000
_MOST_DEPTH, _MOST_PARTS, _MOST_GROUPS = 3, 20, 50

_STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})
_MAIL_TYPES = frozenset({"message/rfc822", "message/global"})
_HEADER_TYPES = frozenset({"text/rfc822-headers", "message/rfc822-headers", "message/global-headers"})
_ENVELOPE_HEADERS = ("to", "delivered-to", "x-original-to", "envelope-to")

_FIELD = re.compile(r"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_WORD = re.compile(r"\s*([A-Za-z-]+)")
_ADDRESS = re.compile(r"[^\s<>,;:\"()]+@[^\s<>,;:\"()]+")

Headers = Mapping[str, Sequence[str]]
"""Header values by the name in lower case, in their order."""


class NotABounce(Exception):
    """The mail is no delivery status notification that can be read."""


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


def read(raw: bytes) -> Report:
    """Read a report. Raises NotABounce."""
    text = raw[:MOST_BYTES].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    headers, body = _split(text)
    status, message_id = None, ""
    for content_type, part in _parts(headers, body):
        if content_type in _STATUS_TYPES and status is None:
            status = part
        elif (content_type in _MAIL_TYPES or content_type in _HEADER_TYPES) and status is not None and not message_id:
            message_id = _only(_split(part)[0], "message-id")
    if status is None:
        raise NotABounce("it has no part that tells the delivery's status")
    recipients = tuple(_recipients(status))
    if not recipients:
        raise NotABounce("it tells of no recipient")
    sent_to = [
        address for name in _ENVELOPE_HEADERS for value in headers.get(name, ()) for address in _addresses(value)
    ]
    return Report(message_id, tuple(dict.fromkeys(sent_to)), recipients)


def _parts(headers: Headers, body: bytes) -> Iterator[tuple[str, bytes]]:
    """The parts that are no multipart, in order, with their decoded content. Iterative, and bounded in depth and number."""
    waiting = [(headers, body, 0)]
    seen = 0
    while waiting:
        headers, body, depth = waiting.pop()
        content_type, boundary = _content_type(headers)
        if not content_type.startswith("multipart/"):
            yield content_type, _decoded(headers, body)
            continue
        if depth == _MOST_DEPTH or not boundary:
            raise NotABounce("its parts nest too deep or have no boundary")
        inside = []
        for piece in _between(body, boundary):
            seen += 1
            if seen > _MOST_PARTS:
                raise NotABounce("it has too many parts")
            inside.append((*_split(piece), depth + 1))
        waiting.extend(reversed(inside))


def _between(body: bytes, boundary: str) -> Iterator[bytes]:
    """The texts between the boundary's lines (RFC 2046, 5.1.1). The last one may lack its end, as when the mail was cut."""
    line = re.compile(rb"^--" + re.escape(boundary.encode("latin-1", "replace")) + rb"(--)?[ \t]*$", re.MULTILINE)
    begun = None
    for found in line.finditer(body):
        if begun is not None:
            yield body[begun : found.start()]
        begun = None if found[1] else found.end() + 1
        if found[1]:
            return
    if begun is not None:
        yield body[begun:]


def _split(text: bytes) -> tuple[Headers, bytes]:
    """The headers and the body of a mail or part. Lines that are no field are left out."""
    if text.startswith(b"\n"):
        return {}, text[1:]
    head, _, body = text.partition(b"\n\n")
    if len(head) > _HEADER_BYTES:
        raise NotABounce("its headers are too long")
    return _fields(head.decode("latin-1")), body


def _fields(head: str) -> Headers:
    fields: dict[str, list[str]] = {}
    # A line that begins with a blank continues the line before it (RFC 5322, 2.2.3).
    for line in re.split(r"\n(?![ \t])", head):
        if found := _FIELD.match(line):
            fields.setdefault(found[1].lower(), []).append(found[2].replace("\n", " ").strip())
    return fields


def _content_type(headers: Headers) -> tuple[str, str]:
    """The media type in lower case, and the boundary if there is one."""
    value = _only(headers, "content-type")
    if not value or len(value) > _PARAMETER_CHARACTERS:
        return "text/plain", ""
    message = Message()
    message["Content-Type"] = value
    try:
        return message.get_content_type(), message.get_boundary() or ""
    except (ValueError, LookupError):
        return "text/plain", ""


def _decoded(headers: Headers, body: bytes) -> bytes:
    encoding = _only(headers, "content-transfer-encoding").lower()
    if encoding == "base64":
        try:
            body = binascii.a2b_base64(body)
        except binascii.Error:
            return b""
    elif encoding == "quoted-printable":
        body = quopri.decodestring(body)
    else:
        return body
    return body.replace(b"\r\n", b"\n")


def _recipients(status: bytes) -> Iterator[RecipientReport]:
    """The groups of fields about recipients. A group without an action or a status, as the first one, concerns the whole mail."""
    groups = re.split(rb"\n[ \t]*\n+", status[:_HEADER_BYTES].lstrip(b"\n"), maxsplit=_MOST_GROUPS)
    for group in groups[:_MOST_GROUPS]:
        fields = _fields(group.decode("latin-1"))
        if "action" not in fields and "status" not in fields:
            continue
        action = _WORD.match(_first(fields, "action"))
        quoted = (_first(fields, name) for name in ("original-recipient", "final-recipient"))
        yield RecipientReport(
            action=action[1].lower() if action else "",
            code=_code(_first(fields, "status"), _first(fields, "diagnostic-code")),
            addresses=frozenset(address for value in quoted for address in _addresses(value)),
        )


def _code(status: str, diagnostic: str) -> EnhancedCode | None:
    """The code of the field Status; that of the server's own words, if they say more and do not contradict."""
    code = EnhancedCode.begins(status)
    said = EnhancedCode.within(diagnostic[:_PARAMETER_CHARACTERS]) if diagnostic.lower().startswith("smtp") else None
    if said and (code is None or (code.general and code.kind == said.kind)):
        return said
    return code


def _addresses(value: str) -> Iterator[str]:
    """The addresses in a field such as `rfc822; ada@example.com`, in canonical form."""
    for found in _ADDRESS.finditer(value[:_PARAMETER_CHARACTERS]):
        # Fields were decoded byte by byte; an internationalised address is UTF-8 (RFC 6533).
        yield canonical(found[0].encode("latin-1").decode("utf-8", "replace"))


def _only(fields: Headers, name: str) -> str:
    """The value of a field that may stand there once; empty if it is missing or repeated."""
    values = fields.get(name, ())
    return values[0] if len(values) == 1 else ""


def _first(fields: Headers, name: str) -> str:
    return fields.get(name, ("",))[0]
