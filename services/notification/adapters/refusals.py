"""Refusals by which mail servers mean us and not the recipient: what the log and health say of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

log = logging.getLogger(__name__)

_SILENT_SECONDS = 60.0
"""At most one line in this time: while a server refuses us, every mail meets the same answer."""


class RefusedBecauseOfUs(Exception):
    """A mail server refused the last mail because of our host, sender, login or reputation."""


class Refusals:
    """Counts refusals since the last line in the log. An operator can mend the cause, so the log neither hides nor repeats it."""

    def __init__(self, seconds: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._unlogged = 0
        self._logged_at = float("-inf")
        self._answer = ""
        self._told = False

    def note(self, answer: str) -> None:
        """Record a refusal by the numbers of the server's answer or by our own sentence; never by the server's words."""
        self._answer = answer or "without a code"
        self._unlogged += 1
        if self._may_log():
            self._told = True
            log.error(
                "mail servers refuse us, not the recipients, who are kept waiting; since the last such line: %d, the last one: %s",
                self._unlogged,
                self._answer,
            )
            self._unlogged = 0

    def accepted(self) -> None:
        """Record that a server took a mail, or judged a recipient, and so takes mail from us."""
        self._answer = ""
        if self._told and self._may_log():
            self._told = False
            log.info("mail servers take our mail again")

    def check(self) -> None:
        """Health check. Raises RefusedBecauseOfUs if the last mail was refused because of us."""
        if self._answer:
            raise RefusedBecauseOfUs(self._answer)

    def _may_log(self) -> bool:
        now = self._seconds()
        if now - self._logged_at < _SILENT_SECONDS:
            return False
        self._logged_at = now
        return True
