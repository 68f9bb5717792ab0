"""How addresses and mails are written in SMTP."""

from __future__ import annotations

import idna
from aiosmtplib.protocol import normalize_message_line_endings

from .replies import Refused

_NOT_IN_A_PATH = frozenset('<>\\"(),;: ') | set(map(chr, range(0x20))) | set(map(chr, range(0x7F, 0xA0)))


def with_ascii_domain(address: str) -> str:
    """The address with its domain as the DNS has it (IDNA 2008), so that only a local part in another script needs SMTPUTF8."""
    local, _, domain = address.rpartition("@")
    if domain.isascii():
        return address
    try:
        return f"{local}@{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError:
        return address


def path(address: str) -> bytes:
    """The address as SMTP writes it. Raises Refused for one that would be read as something else."""
    local, _, domain = address.rpartition("@")
    if not local or not domain or "@" in local or not _NOT_IN_A_PATH.isdisjoint(address):
        raise Refused("its address cannot be written in SMTP")
    try:
        return f"<{address}>".encode()
    except UnicodeEncodeError:
        raise Refused("its address cannot be written in SMTP") from None


def stuffed(mail: bytes) -> bytes:
    """The mail as its content is sent: a period doubled where it begins a line, and one alone at the end (RFC 5321, 4.5.2)."""
    ends = mail.count(b"\r\n")
    if not (mail.endswith(b"\r\n") and ends == mail.count(b"\r") == mail.count(b"\n")):
        mail = normalize_message_line_endings(mail)
    return (b"." if mail.startswith(b".") else b"") + mail.replace(b"\r\n.", b"\r\n..") + b".\r\n"
