"""Hands one mail to a mail server over SMTP and classifies the outcome."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

import aiosmtplib

# First digits of a reply that say whether to retry (RFC 5321, 4.2.1).
_TRANSIENT = range(400, 500)
_PERMANENT = range(500, 600)
_ENHANCED_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)")  # Enhanced status code (RFC 3463).
_QUIT_SECONDS = 1.0
_CHECK_SECONDS = 2.0


class TryAgain(Exception):
    """No server has taken the mail, so sending it again is safe."""


class Refused(Exception):
    """The server will never take this mail (a 5yz reply, RFC 5321, 4.2.1)."""


class OutcomeUnknown(Exception):
    """The connection broke between the end of the mail and the server's reply."""


class Stage(Enum):
    UNSEEN = auto()
    """The content has not been sent to a server."""
    HANDED_OVER = auto()
    """The content is being sent; the server may have taken the mail."""
    TAKEN = auto()


@dataclass(slots=True)
class Handover:
    """The stage that a mail has reached, readable by a caller whose `send` is cancelled."""

    stage: Stage = Stage.UNSEEN


class Smtp:
    """Sends with one connection and one recipient per mail, so that an outcome belongs to one person.

    Its errors hold the reply's numbers and not its text, which often quotes the address, because errors are logged and stored.
    """

    def __init__(self, host: str, port: int, *, username: str, password: str, start_tls: bool, seconds: float) -> None:
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._start_tls = start_tls
        self._seconds = seconds

    async def send(self, sender: str, recipient: str, mail: bytes, handover: Handover) -> None:
        """Send a mail and keep `handover` up to date. Raises TryAgain, Refused or OutcomeUnknown."""
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
            # The outcome is known by now. QUIT only keeps an error out of the server's log.
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
            # Replies before RCPT concern our account and sender, not the recipient. They are transient: the operator can correct
            # the settings without losing the mail.
            raise TryAgain(_reply_numbers(error)) from None
        try:
            await client.rcpt(recipient)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _reply_error(error) or TryAgain(_reply_numbers(error)) from None
        handover.stage = Stage.HANDED_OVER
        try:
            await client.data(mail)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _reply_error(error) or OutcomeUnknown(_reply_numbers(error)) from None
        handover.stage = Stage.TAKEN

    async def check(self) -> None:
        """Health check. Raises when the server does not answer."""
        client = aiosmtplib.SMTP(hostname=self._host, port=self._port, timeout=_CHECK_SECONDS, start_tls=False)
        try:
            await client.connect()
            await client.quit()
        finally:
            client.close()


def _reply_error(error: Exception) -> TryAgain | Refused | None:
    """The error that a reply stands for; None if there was no valid reply."""
    code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
    if code in _TRANSIENT:
        return TryAgain(_reply_numbers(error))
    return Refused(_reply_numbers(error)) if code in _PERMANENT else None


def _reply_numbers(error: Exception) -> str:
    """The reply's numbers; the whole text of an error without a reply, which concerns the connection only."""
    if not isinstance(error, aiosmtplib.SMTPResponseException):
        return str(error)
    enhanced = _ENHANCED_CODE.match(error.message)
    return f"{error.code} {enhanced[0]}" if enhanced else f"{error.code}"
