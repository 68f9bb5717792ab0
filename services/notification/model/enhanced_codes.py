"""Enhanced status codes (RFC 3463): whose fault a mail server's answer names, the recipient's or ours."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CODE = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?![.\d])", re.ASCII)

_NO_ADDRESS = frozenset({1, 2, 3, 6, 10})
"""Details of subject 1 (addressing) that say that the address leads nowhere: no mailbox, no host, bad syntax, moved, null MX."""

_ADDRESSING, _MAILBOX = 1, 2


@dataclass(frozen=True, slots=True)
class EnhancedCode:
    """A code such as 5.1.1: class, subject and detail."""

    kind: int
    """2 success, 4 a passing failure, 5 a lasting one."""
    subject: int
    detail: int

    @classmethod
    def begins(cls, text: str) -> EnhancedCode | None:
        """The code at the beginning of the text; None if there is none."""
        found = _CODE.match(text)
        return cls(*map(int, found.groups())) if found else None

    @classmethod
    def within(cls, text: str) -> EnhancedCode | None:
        """The first code in a text such as `smtp; 550 5.1.1 no such user`. An IPv4 address is none."""
        found = re.search(rf"(?<![.\d]){_CODE.pattern}", text, re.ASCII)
        return cls(*map(int, found.groups())) if found else None

    @property
    def lasting(self) -> bool:
        return self.kind == 5

    @property
    def general(self) -> bool:
        """Whether the code says no more than its class, as 5.0.0 does."""
        return (self.subject, self.detail) == (0, 0)

    @property
    def no_address(self) -> bool:
        """Whether the address leads nowhere (x.1.1 to x.1.3, x.1.6, x.1.10)."""
        return self.subject == _ADDRESSING and self.detail in _NO_ADDRESS

    @property
    def recipients(self) -> bool:
        """Whether the fault is the recipient's: no address, or a mailbox that takes no mail (x.2.x). Any other fault is ours."""
        return self.no_address or self.subject == _MAILBOX

    def __str__(self) -> str:
        return f"{self.kind}.{self.subject}.{self.detail}"
