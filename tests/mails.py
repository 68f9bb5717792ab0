"""Reads the parts of received mails."""

from __future__ import annotations

from email.message import Message


def text_of(mail: Message) -> str:
    """Return the text part of a mail."""
    return _part(mail, "text/plain")


def html_of(mail: Message) -> str:
    """Return the HTML part of a mail."""
    return _part(mail, "text/html")


def _part(mail: Message, kind: str) -> str:
    (part,) = [each for each in mail.walk() if each.get_content_type() == kind]
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode().replace("\r\n", "\n")
