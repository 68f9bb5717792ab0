"""Hands one mail to a mail server and says honestly how that went."""

from __future__ import annotations

from email.message import EmailMessage

import aiosmtplib

_PERMANENT = 500


class TryAgain(Exception):
    """No server has taken the mail: sending it again is safe."""


class Refused(Exception):
    """The server will never take this mail (a 5yz reply, RFC 5321, 4.2.1)."""


class OutcomeUnknown(Exception):
    """The connection broke after the mail was handed over and before the answer came."""


class Smtp:
    """One connection and one recipient a mail, so that an outcome belongs to one person."""

    def __init__(self, host: str, port: int, *, username: str, password: str, start_tls: bool, seconds: float) -> None:
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._start_tls = start_tls
        self._seconds = seconds

    async def send(self, sender: str, recipient: str, message: EmailMessage) -> None:
        """Raises TryAgain, Refused or OutcomeUnknown."""
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            timeout=self._seconds,
            start_tls=self._start_tls,
            username=self._username or None,
            password=self._password or None,
        )
        try:
            await client.connect()
            await client.mail(sender)
            await client.rcpt(recipient)
        except (aiosmtplib.SMTPException, OSError) as error:
            client.close()
            raise _before_data(error) from error
        try:
            await client.data(message.as_bytes())
        except aiosmtplib.SMTPResponseException as error:
            # An answer is an answer: the server says that it did not take the mail.
            raise _before_data(error) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise OutcomeUnknown(str(error)) from error
        finally:
            client.close()

    async def check(self) -> None:
        """Raises when the server does not answer."""
        client = aiosmtplib.SMTP(hostname=self._host, port=self._port, timeout=2, start_tls=False)
        try:
            await client.connect()
        finally:
            client.close()


def _before_data(error: Exception) -> TryAgain | Refused:
    code = error.code if isinstance(error, aiosmtplib.SMTPResponseException) else 0
    # A refused sign-in (535) is our configuration's fault, not the recipient's, and is mended without losing mail.
    permanent = code >= _PERMANENT and not isinstance(error, aiosmtplib.SMTPAuthenticationError)
    return Refused(str(error)) if permanent else TryAgain(str(error))
