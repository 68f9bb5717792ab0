"""Hands one mail to a mail server and says honestly how that went."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

import aiosmtplib

# The first digit of a reply says whether to come back (RFC 5321, 4.2.1).
_TRANSIENT = range(400, 500)
_PERMANENT = range(500, 600)
_ENHANCED_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)")  # RFC 3463
_QUIT_SECONDS = 1.0
_CHECK_SECONDS = 2.0


class TryAgain(Exception):
    """No server has taken the mail: sending it again is safe."""


class Refused(Exception):
    """The server will never take this mail (a 5yz reply, RFC 5321, 4.2.1)."""


class OutcomeUnknown(Exception):
    """The connection broke after the mail was handed over and before the answer came."""


class Stage(Enum):
    UNSEEN = auto()
    """No server knows what the mail says."""
    HANDED_OVER = auto()
    """Perhaps taken."""
    TAKEN = auto()


@dataclass(slots=True)
class Handover:
    """How far a mail has come: for whoever is cut off while it is sent, and gets no answer."""

    stage: Stage = Stage.UNSEEN


class Smtp:
    """One connection and one recipient a mail, so that an outcome belongs to one person.

    What it raises says the reply's numbers and not its words, which often quote the address: errors are logged and kept.
    """

    def __init__(self, host: str, port: int, *, username: str, password: str, start_tls: bool, seconds: float) -> None:
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._start_tls = start_tls
        self._seconds = seconds

    async def send(self, sender: str, recipient: str, mail: bytes, handover: Handover) -> None:
        """Raises TryAgain, Refused or OutcomeUnknown. Keeps `handover` up to date."""
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            timeout=self._seconds,
            start_tls=self._start_tls,
            username=self._username or None,
            password=self._password or None,
        )
        try:
            await self._hand_over(client, sender, recipient, mail, handover)
            # The outcome is known by now; leaving without a word would only fill the other side's log.
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=_QUIT_SECONDS)
        finally:
            client.close()

    async def _hand_over(
        self, client: aiosmtplib.SMTP, sender: str, recipient: str, mail: bytes, handover: Handover
    ) -> None:
        try:
            await client.connect()
            await client.mail(sender)
        except (aiosmtplib.SMTPException, OSError) as error:
            # Whatever the server says so far, it says to us and not of the recipient: a refused sign-in or sender is mended in our
            # settings without losing the mail.
            raise TryAgain(_said(error)) from None
        try:
            await client.rcpt(recipient)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _answered(error) or TryAgain(_said(error)) from None
        handover.stage = Stage.HANDED_OVER
        try:
            await client.data(mail)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _answered(error) or OutcomeUnknown(_said(error)) from None
        handover.stage = Stage.TAKEN

    async def check(self) -> None:
        """Raises when the server does not answer."""
        client = aiosmtplib.SMTP(hostname=self._host, port=self._port, timeout=_CHECK_SECONDS, start_tls=False)
        try:
            await client.connect()
            await client.quit()
        finally:
            client.close()


def _answered(error: Exception) -> TryAgain | Refused | None:
    """What the server's reply means; None when there was none that makes sense."""
    code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
    if code in _TRANSIENT:
        return TryAgain(_said(error))
    return Refused(_said(error)) if code in _PERMANENT else None


def _said(error: Exception) -> str:
    """An error without a reply speaks of the connection only."""
    if not isinstance(error, aiosmtplib.SMTPResponseException):
        return str(error)
    enhanced = _ENHANCED_CODE.match(error.message)
    return f"{error.code} {enhanced[0]}" if enhanced else f"{error.code}"
