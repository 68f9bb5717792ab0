"""Renders a letter as the bytes of one mail to one recipient, and verifies that they hold the input and nothing else.

Each header is written here, byte by byte. The standard library's header objects decode encoded words (RFC 2047) wherever they find
them, also in addresses, so that a person could inject headers, recipients and bodies by their name or address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.header import Header, decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP, compat32
from email.utils import format_datetime, getaddresses
from uuid import UUID

from kit.identity.email_addresses import NotAnAddress, normalized

from . import Letter

_SEVEN_BITS = SMTP.clone(cte_type="7bit")
"""Every server accepts seven bits; eight bits need one that offers 8BITMIME (RFC 6152)."""

_PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+")
"""Looser than registration: addresses with two dots in a row exist, and older versions may have accepted them."""

_PLAIN_TEXT = re.compile(r"[!-~]+( [!-~]+)*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE = 76
_CONTENT_HEADERS = ("Content-Type", "Content-Transfer-Encoding", "MIME-Version")


class Unrenderable(Exception):
    """The rendered mail would differ from its input. Names the faulty part without its content, which may be an address."""


class Sender:
    """The sender of all mail, parsed from `Name <address>` or an address alone."""

    def __init__(self, text: str) -> None:
        """Parse the sender. Raises ValueError."""
        parsed = getaddresses([text])
        if len(parsed) != 1 or not text.isprintable():
            raise ValueError("needs one address, as in: Storymesh <no-reply@example.com>")
        self.name, address = parsed[0]
        try:
            self.address = normalized(address)
        except NotAnAddress as error:
            raise ValueError(
                f"needs an address, as in: Storymesh <no-reply@example.com>; its address {error}"
            ) from None

    @property
    def domain(self) -> str:
        return self.address.partition("@")[2]


def render(
    letter: Letter, sender: Sender, recipient: str, *, event_id: UUID, sent_at: datetime, trace_id: str
) -> bytes:
    """Render a complete mail. Raises Unrenderable."""
    if _CONTROLS.search(letter.subject):
        raise Unrenderable("its Subject is not one line of text")
    if not _PLAIN_ADDRESS.fullmatch(recipient) or "=?" in recipient:
        raise Unrenderable("its recipient is no plain address")
    texts = {
        "From": f"{_phrase(sender.name)} <{sender.address}>" if sender.name else sender.address,
        "To": recipient,
        "Subject": _encoded("Subject", letter.subject),
        "Date": format_datetime(sent_at),
        # The same for every attempt, so that a mailbox shows duplicates once.
        "Message-ID": f"<{event_id}@{sender.domain}>",
        "Auto-Submitted": "auto-generated",  # Keeps out-of-office replies away (RFC 3834).
    }
    if trace_id:
        texts["X-Trace-Id"] = trace_id
    content = EmailMessage(policy=_SEVEN_BITS)
    try:
        content.set_content(letter.body)
    except UnicodeError:
        raise Unrenderable("its body cannot be encoded") from None
    rendered = "".join(f"{name}: {text}\r\n" for name, text in texts.items()).encode("ascii") + content.as_bytes()
    _verify(rendered, texts, letter)
    return rendered


def _phrase(name: str) -> str:
    """A display name: as it is, in quotes, or as encoded words."""
    if _PLAIN_TEXT.fullmatch(name) and "=?" not in name and not set(name) & set('"\\'):
        return f'"{name}"' if set(name) & set("()<>[]:;@,.") else name
    return _encoded("From", name)


def _encoded(header: str, text: str) -> str:
    """A header value, folded as encoded words unless it is short plain text that cannot be read as encoded words."""
    if _PLAIN_TEXT.fullmatch(text) and "=?" not in text and len(f"{header}: {text}") <= _LINE:
        return text
    try:
        return Header(text, "utf-8", maxlinelen=_LINE, header_name=header).encode(linesep="\r\n")
    except UnicodeError:
        raise Unrenderable(f"its {header} cannot be encoded") from None


def _verify(rendered: bytes, texts: Mapping[str, str], letter: Letter) -> None:
    """Parse the mail as mail servers and clients do. Raises Unrenderable if that does not give the input."""
    if not rendered.isascii() or re.search(rb"\r(?!\n)|(?<!\r)\n|\0", rendered):
        raise Unrenderable("it has other bytes than lines of text")
    read = BytesParser(policy=compat32).parsebytes(rendered)
    expected = [(name, text) for name, text in texts.items()] + [(name, None) for name in _CONTENT_HEADERS]
    found = read.items()
    if sorted(name for name, _ in found) != sorted(name for name, _ in expected) or read.defects:
        raise Unrenderable("it has other headers than were put")
    for name, text in expected:
        if text is not None and str(read[name]) != text:
            raise Unrenderable(f"its {name} is not what was put")
    if _shown(read["Subject"]) != letter.subject:
        raise Unrenderable("its Subject would show something else")
    if read.get_content_type() != "text/plain" or read.is_multipart():
        raise Unrenderable("it is not plain text")
    body = read.get_payload(decode=True)
    if not isinstance(body, bytes) or body.decode().splitlines() != letter.body.splitlines():
        raise Unrenderable("its body would show something else")


def _shown(header: str) -> str:
    return str(make_header(decode_header(header)))
