"""Mails of the sink as HTML pages. A mail is foreign content: its HTML runs no script and loads nothing from elsewhere."""

from __future__ import annotations

import email
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import default
from html import escape
from pathlib import Path
from urllib.parse import quote

NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]*\.eml")
"""The file names that the sink gives; no other file of the folder is shown."""

_ENVELOPE = ("X-MailFrom", "X-RcptTo")
_SHOWN_HEADERS = ("From", "To", "Reply-To", "Subject", "Date", "Message-ID")
_LINK = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)\]]")
_CID = re.compile(r"cid:([^\s\"'<>)]+)", re.IGNORECASE)

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy of the pages around the mails."""

_LINKS_OPEN = "allow-popups allow-popups-to-escape-sandbox"
CONTENT_POLICY = f"sandbox {_LINKS_OPEN}; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""Content-Security-Policy of a mail's HTML: its own styles and the images that it brings along, nothing else."""

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 600; white-space: nowrap }
tbody tr { border-top: 1px solid #8884 }
pre { background: #8881; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
iframe { background: #fff; border: 1px solid #8884; height: 40rem; resize: vertical; width: 100% }
"""


@dataclass(frozen=True)
class Mail:
    """A mail in the sink's folder."""

    name: str
    source: bytes

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.source, EmailMessage, policy=default)

    @property
    def arrived(self) -> str:
        """The time of arrival in UTC, which the name begins with."""
        found = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", self.name)
        return "{}-{}-{} {}:{}:{}".format(*found.groups()) if found else ""


def mails_in(folder: Path) -> list[str]:
    """The names of the folder's mails, newest first."""
    return sorted((each.name for each in folder.iterdir() if NAME.fullmatch(each.name)), reverse=True)


def read(folder: Path, name: str) -> Mail | None:
    """The mail of that name; None if there is none."""
    if not NAME.fullmatch(name):
        return None
    try:
        return Mail(name, (folder / name).read_bytes())
    except FileNotFoundError:
        return None


def list_page(mails: Iterable[Mail], left_out: int) -> str:
    """The list of mails; `left_out` is the number of older ones that it does not show."""
    rows = "".join(
        f"<tr><td>{mail.arrived}</td><td>{escape(', '.join(_values(mail.message, 'X-RcptTo')))}</td>"
        f'<td><a href="mails/{quote(mail.name)}">{escape(_subject(mail.message))}</a></td></tr>'
        for mail in mails
    )
    older = f"<p>{left_out} older mails are not listed.</p>" if left_out else ""
    nothing = "" if rows else "<p>No mail has come yet.</p>"
    table = (
        f"<table><thead><tr><th>Arrived (UTC)</th><th>To</th><th>Subject</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return _page("Mails", f"<h1>Mails</h1>{table}{nothing}{older}", '<meta http-equiv="refresh" content="5">')


def mail_page(mail: Mail) -> str:
    """A mail with its envelope, its text and its HTML, the latter in a frame without scripts."""
    message = mail.message
    envelope = _rows(message, _ENVELOPE, {"X-MailFrom": "MAIL FROM", "X-RcptTo": "RCPT TO"})
    headers = _rows(message, _SHOWN_HEADERS, {})
    parts = [f"<table><tbody>{envelope}{headers}</tbody></table>"]
    if _html(message) is not None:
        parts.append(
            f'<h2>HTML</h2><iframe src="{quote(mail.name)}/html" sandbox="{_LINKS_OPEN}" referrerpolicy="no-referrer" '
            'title="The mail as HTML"></iframe>'
        )
    text = _content(message, "plain")
    if text is not None:
        parts.append(f"<h2>Text</h2><pre>{_linked(text)}</pre>")
    attached = [
        f"<li>{escape(part.get_filename() or 'without a name')}, {escape(part.get_content_type())}</li>"
        for part in _attachments(message)
    ]
    if attached:
        parts.append(f"<h2>Attachments</h2><ul>{''.join(attached)}</ul>")
    subject = _subject(message)
    navigation = f'<p><a href="../">All mails</a> · <a href="{quote(mail.name)}/source">Source</a></p>'
    return _page(subject, f"{navigation}<h1>{escape(subject)}</h1>{''.join(parts)}")


def html_of(mail: Mail) -> str | None:
    """The mail's own HTML, with the images that it brings along; None if it has none. Serve it with CONTENT_POLICY."""
    message = mail.message
    html = _html(message)
    if html is None:
        return None
    images = dict(_images(message))
    # In front of the mail's own markup, so that its links open beside the page and not inside the frame.
    return '<!doctype html><base target="_blank">' + _CID.sub(lambda found: images.get(found[1], found[0]), html)


def _values(message: EmailMessage, name: str) -> list[str]:
    try:
        return [str(value) for value in message.get_all(name, [])]
    except Exception:  # the parser of headers fails in many ways on what is no header
        return ["(cannot be read; see the source)"]


def _subject(message: EmailMessage) -> str:
    return " ".join(_values(message, "Subject")) or "(no subject)"


def _rows(message: EmailMessage, names: Iterable[str], titles: dict[str, str]) -> str:
    return "".join(
        f"<tr><th>{titles.get(name, name)}</th><td>{escape(value)}</td></tr>"
        for name in names
        for value in _values(message, name)
    )


def _content(message: EmailMessage, kind: str) -> str | None:
    """The text of the mail's body of a kind, plain or html; None if it has none or cannot be decoded."""
    try:
        body = message.get_body((kind,))
        content = body.get_content() if body is not None else None
    except Exception:  # what claims to be a mail may have any structure, and any name of a charset
        return None
    return content if isinstance(content, str) else None


def _html(message: EmailMessage) -> str | None:
    return _content(message, "html")


def _attachments(message: EmailMessage) -> Iterator[EmailMessage]:
    try:
        yield from (part for part in message.iter_attachments() if isinstance(part, EmailMessage))
    except Exception:  # as above; the source shows all there is
        return


def _images(message: EmailMessage) -> Iterator[tuple[str, str]]:
    """The images inside the mail by their Content-ID, each as a data URL."""
    for part in message.walk():
        data = part.get_payload(decode=True) if part.get_content_maintype() == "image" else None
        if isinstance(data, bytes):
            for identity in _values(part, "Content-ID"):
                yield identity.strip("<> "), f"data:{part.get_content_type()};base64,{b64encode(data).decode()}"


def _linked(text: str) -> str:
    """Escaped text whose web addresses are links."""
    parts, at = [], 0
    for found in _LINK.finditer(text):
        parts += [
            escape(text[at : found.start()]),
            f'<a href="{escape(found[0])}" rel="noreferrer">{escape(found[0])}</a>',
        ]
        at = found.end()
    return "".join([*parts, escape(text[at:])])


def _page(title: str, body: str, head: str = "") -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
