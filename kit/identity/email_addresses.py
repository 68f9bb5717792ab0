"""E-mail addresses: which ones the mesh takes, and the one form in which it keeps and compares them.

Taken is what RFC 5321 allows without quotes and what every mail server delivers: a dot-atom of ASCII before the @ and the name of a
host with at least one dot behind it. Quoted local parts, comments, address literals and local parts in other scripts (RFC 6531) are
refused, and so is `=?`, by which a mail's header would begin an encoded word (RFC 2047).
"""

from __future__ import annotations

import re
import unicodedata

import idna

_BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200C)))
    + "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
"""What a copied or typed address may have around it: Unicode's white space, and three characters without width."""

_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# A last label of digits alone is the end of an IPv4 address (RFC 3696, 2).
_DOMAIN = re.compile(rf"({_LABEL}\.)+(?![0-9]+\Z){_LABEL}")
_LOCAL_LENGTH, _DOMAIN_LENGTH, _LENGTH = 64, 253, 254
_LONGEST_TEXT = 512
"""With blanks and with a domain in another script, which is shorter in ASCII; work on more of it would be for nothing."""


class NotAnAddress(ValueError):
    """Says in words what is wrong with it, without the address."""


def normalized(text: str) -> str:
    """The address as it is kept: without blanks around, its domain in ASCII (IDNA 2008, mapped as in UTS 46).

    Raises NotAnAddress.
    """
    if len(text) > _LONGEST_TEXT:
        raise NotAnAddress(f"must be at most {_LENGTH} bytes long")
    local, at, domain = stripped(text).rpartition("@")
    if not at:
        raise NotAnAddress("must be an address such as ada@example.com")
    if len(local) > _LOCAL_LENGTH:
        raise NotAnAddress(f"must have at most {_LOCAL_LENGTH} characters before the @")
    if not _LOCAL.fullmatch(local) or "=?" in local:
        raise NotAnAddress(
            "must have only letters of ASCII, digits, single dots between them and !#$%&'*+/=?^_`{|}~- before the @, and not =?"
        )
    domain = _ascii(domain)
    if len(domain) > _DOMAIN_LENGTH or not _DOMAIN.fullmatch(domain):
        raise NotAnAddress("must have the name of a mail domain behind the @, such as example.com")
    if len(local) + len(domain) + 1 > _LENGTH:
        raise NotAnAddress(f"must be at most {_LENGTH} bytes long")
    return f"{local}@{domain}"


def canonical(text: str) -> str:
    """The form in which addresses are compared: as `normalized`, in lower case. Text that is no address has one as well.

    Tags and dots stay: only the mailbox's provider knows whether they matter, and merging two people's addresses would give one
    the other's account.
    """
    try:
        return normalized(text).lower()
    except NotAnAddress:
        return unicodedata.normalize("NFC", stripped(text)).lower()


def stripped(text: str) -> str:
    return text.strip(_BLANKS)


def _ascii(domain: str) -> str:
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True, std3_rules=True).decode()
    except idna.IDNAError:
        raise NotAnAddress("must have a domain that IDNA 2008 allows behind the @") from None
