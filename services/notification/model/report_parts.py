"""Takes apart the reports that mail servers and providers send about mails of ours (multipart/report, RFC 6522).

A report may come from anybody, so it is read as hostile: in time that grows with its length alone, without recursion, and bounded
in every count. The email package is not used for more than a header's parameters, because its parser nests as deep as the mail.
"""

from __future__ import annotations

import binascii
import quopri
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message

from kit.identity.email_addresses import canonical

MOST_BYTES = 1 << 20
"""As much of a report as is read. What decides stands before the returned mail, so a longer one is read as far as this."""

HEADER_BYTES = 1 << 16
PARAMETER_CHARACTERS = 1000
_MOST_DEPTH, _MOST_PARTS = 3, 20

_MAIL_TYPES = frozenset({"message/rfc822", "message/global"})
_HEADER_TYPES = frozenset({"text/rfc822-headers", "message/rfc822-headers", "message/global-headers"})
_ENVELOPE_HEADERS = ("to", "delivered-to", "x-original-to", "envelope-to")

_FIELD = re.compile(r"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_ADDRESS = re.compile(r"[^\s<>,;:\"()]+@[^\s<>,;:\"()]+")

Headers = Mapping[str, Sequence[str]]
"""Header values by the name in lower case, in their order."""


class NotABounce(Exception):
    """The mail is no report that can be read."""


@dataclass(frozen=True, slots=True)
class ReportMail:
    """A mail that brings a report."""

    media_type: str
    """The type of the part with the report."""
    fields: bytes
    """That part: groups of fields."""
    returned: Headers
    """The headers of the mail that the report is about; empty if it quotes none."""
    sent_to: tuple[str, ...]
    """The addresses to which the report itself was sent, in canonical form."""


def read(raw: bytes, media_types: frozenset[str]) -> ReportMail:
    """Find the first part of one of these types, and the mail after it that it is about. Raises NotABounce."""
    text = raw[:MOST_BYTES].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    headers, body = _split(text)
    found, returned = None, None
    for content_type, part in _parts(headers, body):
        if content_type in media_types and found is None:
            found = content_type, part
        elif (content_type in _MAIL_TYPES or content_type in _HEADER_TYPES) and found and returned is None:
            returned = _split(part)[0]
    if found is None:
        raise NotABounce("it has no part with a report")
    sent_to = [each for name in _ENVELOPE_HEADERS for value in headers.get(name, ()) for each in addresses_in(value)]
    return ReportMail(*found, returned or {}, tuple(dict.fromkeys(sent_to)))


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
    """The headers and the body of a mail or part."""
    if text.startswith(b"\n"):
        return {}, text[1:]
    head, _, body = text.partition(b"\n\n")
    if len(head) > HEADER_BYTES:
        raise NotABounce("its headers are too long")
    return fields_of(head.decode("latin-1")), body


def fields_of(head: str) -> Headers:
    """The fields of a header, or of a group in a report. Lines that are none are left out."""
    fields: dict[str, list[str]] = {}
    # A line that begins with a blank continues the line before it (RFC 5322, 2.2.3).
    for line in re.split(r"\n(?![ \t])", head):
        if found := _FIELD.match(line):
            fields.setdefault(found[1].lower(), []).append(found[2].replace("\n", " ").strip())
    return fields


def _content_type(headers: Headers) -> tuple[str, str]:
    """The media type in lower case, and the boundary if there is one."""
    value = only(headers, "content-type")
    if not value or len(value) > PARAMETER_CHARACTERS:
        return "text/plain", ""
    message = Message()
    message["Content-Type"] = value
    try:
        return message.get_content_type(), message.get_boundary() or ""
    except (ValueError, LookupError):
        return "text/plain", ""


def _decoded(headers: Headers, body: bytes) -> bytes:
    encoding = only(headers, "content-transfer-encoding").lower()
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


def addresses_in(value: str) -> Iterator[str]:
    """The addresses in a field such as `rfc822; ada@example.com`, in canonical form."""
    for found in _ADDRESS.finditer(value[:PARAMETER_CHARACTERS]):
        # Fields were decoded byte by byte; an internationalised address is UTF-8 (RFC 6533).
        yield canonical(found[0].encode("latin-1").decode("utf-8", "replace"))


def only(fields: Headers, name: str) -> str:
    """The value of a field that may stand there once; empty if it is missing or repeated."""
    values = fields.get(name, ())
    return values[0] if len(values) == 1 else ""


def first(fields: Headers, name: str) -> str:
    """The first value of a field; empty if it is missing."""
    return fields.get(name, ("",))[0]
