"""Sends mails through the pool, within the rates, and knows whether the server refuses us."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

import aiosmtplib

from ..refusals import Refusals
from .connection import Connection, MailServer, Stale, authorities, unchecked
from .pool import IDLE_SECONDS, MAILS_PER_CONNECTION, Pool
from .replies import ContentRefused, Handover, NeedsOperator, Postponed, Refused

_CHECK_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 1.0
"""A turn that comes as soon as this is waited for; giving the mail back and finding it again would take as long."""


class Rates(Protocol):
    """How many mails may be sent a second, by all workers together."""

    async def seconds_until_turn(self, domain: str) -> float:
        """0 if a mail to the domain may be sent now, which counts it; else the seconds after which to ask again."""


class Smtp:
    """Sends with one recipient per mail, so that an outcome belongs to one person."""

    def __init__(
        self,
        server: MailServer,
        *,
        rates: Rates | None = None,
        refusals: Refusals | None = None,
        idle_seconds: float = IDLE_SECONDS,
        mails_per_connection: int = MAILS_PER_CONNECTION,
    ) -> None:
        """Raises OSError if the file of authorities cannot be read."""
        self._server = server
        self._rates = rates
        # Without credentials, and where mail goes also unencrypted, an unknown certificate is better than none.
        checks = server.tls != "opportunistic" or bool(server.username)
        self._context = authorities(server.ca_file) if checks else unchecked()
        self._pool = Pool(self._connect, idle_seconds=idle_seconds, mails_per_connection=mails_per_connection)
        self._refusals = refusals or Refusals()

    async def send(self, sender: str, recipient: str, mail: bytes, handover: Handover) -> None:
        """Send a mail and keep `handover` up to date. Raises TryAgain, Refused or OutcomeUnknown.

        It takes up to ten minutes with a slow server (`final_reply_seconds`), and some steps' time before: renew the lease of what
        is sent while this runs, or another worker sends it too.
        """
        await self._wait_for_turn(recipient)
        try:
            await self._send(sender, recipient, mail, handover)
        except NeedsOperator as refusal:
            self._refusals.note(str(refusal))
            raise
        except Refused as refusal:
            if not isinstance(refusal, ContentRefused) and refusal.answer:
                self._refusals.accepted()  # A server that judges recipients takes mail from us.
            raise
        self._refusals.accepted()

    async def _send(self, sender: str, recipient: str, mail: bytes, handover: Handover) -> None:
        while True:
            try:
                async with self._pool.connection() as connection:
                    return await connection.send(sender, recipient, mail, handover)
            except Stale:
                continue  # To an end, because a new connection is not stale.

    async def check(self) -> None:
        """Health check. Raises when the server does not answer, or refused the last mail because of us."""
        self._refusals.check()
        client = aiosmtplib.SMTP(
            hostname=self._server.host,
            port=self._server.port,
            timeout=_CHECK_SECONDS,
            use_tls=self._server.tls == "implicit",
            start_tls=False,
            tls_context=self._context,
        )
        try:
            await client.connect()
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit()
        finally:
            client.close()

    def close(self) -> None:
        """Leave the server."""
        self._pool.close()

    async def _connect(self) -> Connection:
        connection = Connection(self._server, self._context)
        await connection.open()
        return connection

    async def _wait_for_turn(self, recipient: str) -> None:
        if self._rates is None:
            return
        domain = recipient.rpartition("@")[2].lower()
        seconds = await self._rates.seconds_until_turn(domain)
        if 0 < seconds <= _LONGEST_PAUSE_SECONDS:
            await asyncio.sleep(seconds)
            seconds = await self._rates.seconds_until_turn(domain)
        if seconds > 0:
            raise Postponed(seconds)
