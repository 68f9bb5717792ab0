"""Renders a letter as the bytes of one mail to one recipient, and verifies that headers and parts hold the input and nothing else.

Each header is written here, byte by byte. The standard library's header objects decode encoded words (RFC 2047) wherever they find
them, also in addresses, so that a person could inject headers, recipients and bodies by their name or address.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.header import Header, decode_header, make_header
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import compat32
from email.utils import format_datetime, getaddresses
from unicodedata import category
from uuid import UUID

import idna

from kit.identity.email_addresses import NotAnAddress, normalized

from . import Letter

_PLAIN_ADDRESS = re.compile(r"(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]|[^\x00-\x7f])+@[A-Za-z0-9.-]+")
"""Looser than registration: addresses with two dots in a row exist, and older versions may have accepted them."""
_WRITING = frozenset("LMN")
"""Unicode's categories of letters, marks and digits: of other scripts, a local part holds nothing else that could be misread."""

_PLAIN_TEXT = re.compile(r"[!-~]+( [!-~]+)*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_TEXT = bytes({*range(0x20), 0x7F} - set(b"\t\n\r"))
_LINE = 76
_PART_HEADERS = ("Content-Type", "Content-Transfer-Encoding")
_ENCODINGS = _SEVEN_BITS, _QUOTED_PRINTABLE = "7bit", "quoted-printable"
_HEADERS = BytesHeaderParser(policy=compat32)
_KINDS = ("text/plain", "text/html")
"""From the plainest to the richest: programs show the last that they can (RFC 2046, 5.1.4)."""
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_HTTP_URL = re.compile(r"https?://[!#-+\--;=?-~]{1,900}")
"""What can stand in List-Unsubscribe: no comma and no angle bracket, which separate URLs there, and no line too long for SMTP."""


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
    letter: Letter,
    sender: Sender,
    recipient: str,
    *,
    event_id: UUID,
    sent_at: datetime,
    trace_id: str,
    unsubscribe_url: str = "",
    feedback_id: str = "",
) -> bytes:
    """Render a complete mail: text, and HTML as its alternative. Raises Unrenderable.

    `unsubscribe_url` takes the POST of a mail program's one-click unsubscription (RFC 8058); empty: the mail offers none.
    `feedback_id` is that under which mailbox providers count complaints.
    """
    if _CONTROLS.search(letter.subject):
        raise Unrenderable("its Subject is not one line of text")
    if not _is_text(letter.body + letter.html):
        raise Unrenderable("its body holds what is no text")
    recipient = _address(recipient)
    texts = {
        "From": f"{_phrase(sender.name)} <{sender.address}>" if sender.name else sender.address,
        "To": recipient,
        "Subject": _encoded("Subject", letter.subject),
        "Date": format_datetime(sent_at),
        # The same for every attempt, so that a mailbox shows duplicates once.
        "Message-ID": f"<{event_id}@{sender.domain}>",
        "Auto-Submitted": "auto-generated",  # Keeps out-of-office replies away (RFC 3834).
    }
    if letter.language:
        texts["Content-Language"] = _language(letter.language)
    if unsubscribe_url:
        texts["List-Unsubscribe"] = _in_brackets(unsubscribe_url)
        texts["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    if feedback_id:
        texts["Feedback-ID"] = feedback_id
    if trace_id:
        texts["X-Trace-Id"] = trace_id
    texts["MIME-Version"] = "1.0"
    try:
        parts = [_part("text/plain", letter.body)] + ([_part("text/html", letter.html)] if letter.html else [])
    except UnicodeError:
        raise Unrenderable("its body cannot be encoded") from None
    lines = [f"{name}: {text}" for name, text in texts.items()]
    if len(parts) == 1:
        lines += parts
    else:
        # No encoded line can have this form (RFC 2045, 6.7).
        boundary = f"=_{event_id.hex}"
        lines += [f'Content-Type: multipart/alternative; boundary="{boundary}"', ""]
        for part in parts:
            lines += [f"--{boundary}", part]
        lines += [f"--{boundary}--", ""]
    try:
        rendered = "\r\n".join(lines).encode()
    except UnicodeError:
        raise Unrenderable("it cannot be encoded") from None
    _verify(rendered, texts, letter)
    return rendered


def _address(recipient: str) -> str:
    """The recipient as the header has it: the domain in ASCII (IDNA 2008), the local part in any script (RFC 6532)."""
    local, _, domain = recipient.rpartition("@")
    try:
        address = f"{local}@{idna.encode(domain, uts46=True).decode()}" if not domain.isascii() else recipient
    except idna.IDNAError:
        address = ""
    foreign = (each for each in local if not each.isascii())
    if (
        not _PLAIN_ADDRESS.fullmatch(address)
        or "=?" in address
        or any(category(each)[0] not in _WRITING for each in foreign)
    ):
        raise Unrenderable("its recipient is no plain address")
    return address


def _part(kind: str, text: str) -> str:
    """A part with its headers. Quoted-printable, unless it is short lines of ASCII: every server accepts seven bits (RFC 6152)."""
    lines = text.splitlines()
    encoded = "".join(f"{line}\n" for line in lines)
    encoding = _SEVEN_BITS
    if not text.isascii() or max(map(len, lines), default=0) > _LINE:
        encoding = _QUOTED_PRINTABLE
        encoded = binascii.b2a_qp(encoded.encode(), istext=True).decode("ascii")
    return f"{_part_head(kind, encoding)}\r\n\r\n" + encoded.replace("\n", "\r\n")


def _part_head(kind: str, encoding: str) -> str:
    return f'Content-Type: {kind}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}'


def _is_text(text: str) -> bool:
    """Whether it holds no control characters but tabs and ends of lines. On bytes, which is ten times faster than an expression."""
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded.translate(None, _NO_TEXT)) == len(encoded)


def _language(tag: str) -> str:
    if not _LANGUAGE.fullmatch(tag):
        raise Unrenderable("its language is no language tag")
    return tag


def _in_brackets(url: str) -> str:
    if not _HTTP_URL.fullmatch(url):
        raise Unrenderable("its address to unsubscribe is no URL for a header")
    return f"<{url}>"


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
    """Read the mail as mail servers and clients do. Raises Unrenderable if that does not give the input.

    The headers are read by the standard library's parser. Its parser of contents takes as long as all the rest of a mail: it goes
    line by line, and compiles an expression for each boundary.
    """
    to = f"\r\nTo: {texts['To']}\r\n".encode()
    if not rendered.replace(to, b"\r\n", 1).isascii() or not _is_lines(rendered):
        raise Unrenderable("it has other bytes than lines of text")
    head, _, content = rendered.partition(b"\r\n\r\n")
    read = _HEADERS.parsebytes(head)
    described = ["Content-Type"] if letter.html else list(_PART_HEADERS)
    if read.defects or read.get_payload() or sorted(read.keys()) != sorted([*texts, *described]):
        raise Unrenderable("it has other headers than were put")
    found = {name: str(text) for name, text in read.raw_items()}
    for name, text in texts.items():
        if found[name].encode("ascii", "surrogateescape") != text.encode():
            raise Unrenderable(f"its {name} is not what was put")
    if _shown(read["Subject"]) != letter.subject:
        raise Unrenderable("its Subject would show something else")
    if letter.html:
        _verify_parts(read, content, (letter.body, letter.html))
    else:
        _verify_part(
            "\r\n".join(f"{name}: {read[name]}" for name in _PART_HEADERS).encode(), content, _KINDS[0], letter.body
        )


def _is_lines(rendered: bytes) -> bool:
    ends = rendered.count(b"\r\n")
    return ends == rendered.count(b"\r") == rendered.count(b"\n") and b"\0" not in rendered


def _verify_parts(read: Message, content: bytes, texts: Sequence[str]) -> None:
    """Split the content at its boundary as RFC 2046, 5.1.1 has it: at each line that begins with it."""
    boundary = read.get_boundary("")
    begin, *parts, end = (b"\r\n" + content).split(f"\r\n--{boundary}".encode())
    if read.get_content_type() != "multipart/alternative" or not boundary or len(parts) != len(_KINDS):
        raise Unrenderable("it has other parts than were put")
    if (begin, end) != (b"", b"--\r\n"):
        raise Unrenderable("it has text beside its parts")
    for part, kind, text in zip(parts, _KINDS, texts, strict=True):
        head, _, body = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        _verify_part(head, body, kind, text)


def _verify_part(head: bytes, body: bytes, kind: str, text: str) -> None:
    """Decode a part whose headers are exactly what one of its encodings needs."""
    encoding = next((each for each in _ENCODINGS if head == _part_head(kind, each).encode()), None)
    if encoding is None:
        raise Unrenderable("a part has other headers than were put")
    try:
        shown = (binascii.a2b_qp(body) if encoding == _QUOTED_PRINTABLE else body).decode().splitlines()
    except UnicodeDecodeError:
        shown = None
    if shown != text.splitlines():
        raise Unrenderable("its body would show something else")


def _shown(header: str) -> str:
    return str(make_header(decode_header(header)))
