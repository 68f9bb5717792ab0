"""One connection to the mail server: TLS, login, and mails one after the other.

Each step has its time. The reply to the final dot has a longer one: a client that hangs up earlier sends a mail again that a slow
server has taken (RFC 5321, 4.5.3.2.6).
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import aiosmtplib

from .replies import (
    ContentRefused,
    Handover,
    MailError,
    NeedsOperator,
    NoConnection,
    NotInternational,
    OutcomeUnknown,
    Refused,
    Stage,
    Step,
    TryAgain,
    error_of_reply,
)
from .session import NoReply, Reply, Session
from .syntax import path, stuffed, with_ascii_domain

log = logging.getLogger(__name__)

Tls = Literal["opportunistic", "starttls", "implicit"]
"""`opportunistic`: STARTTLS where it is offered. `starttls`: never without it. `implicit`: TLS from the first byte (RFC 8314)."""

_GO_ON = 354
_SERVICE_CLOSING = 421
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")

T = TypeVar("T")


class Stale(NoConnection):
    """A connection that was used before serves no more. Nothing was sent of the mail: another connection may take it at once."""


class _TlsFailed(TryAgain):
    """The server offers STARTTLS, and it does not succeed."""

    def __init__(self, failure: MailError) -> None:
        super().__init__(str(failure), answer=failure.answer)
        self.failure = failure
        """The error that it is where nothing may go unencrypted."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """The server that takes outgoing mail, and how to speak to it."""

    host: str
    port: int
    username: str = ""
    password: str = ""
    tls: Tls = "opportunistic"
    password_in_clear: bool = False
    """Log in without TLS where the server offers none."""
    ca_file: str = ""
    """Certificates of the authorities to trust instead of the system's."""
    ehlo_name: str = "localhost.localdomain"
    seconds: float = 60.0
    final_reply_seconds: float = 600.0


def authorities(ca_file: str) -> ssl.SSLContext:
    """A context that checks certificates and names, by the file's authorities or the system's. Raises OSError or ssl.SSLError."""
    return ssl.create_default_context(cafile=ca_file or None)


def unchecked() -> ssl.SSLContext:
    """A context for opportunistic TLS (RFC 7435): against listeners, whom TLS alone keeps out, and not against impostors."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class _Command:
    step: Step
    line: bytes
    wanted: int = 2
    """The code of consent, or its first digit."""
    international: bool = False

    def __post_init__(self) -> None:
        if _CONTROLS.search(self.line):
            raise Refused("its address cannot be written in SMTP")


class Connection:
    """A session with the server. After an error that leaves it in doubt it is closed, and `usable` is False."""

    def __init__(self, server: MailServer, context: ssl.SSLContext) -> None:
        self._server = server
        self._context = context
        self._client = self._new_client()
        self._session: Session | None = None
        """Takes over from the client when the connection is open."""
        self.mails = 0
        """Mails that were begun."""

    @property
    def usable(self) -> bool:
        return self._session.is_open if self._session else self._client.is_connected

    @property
    def pipelines(self) -> bool:
        """Whether the server takes several commands at a time (RFC 2920)."""
        return self._client.supports_extension("pipelining")

    async def open(self) -> None:
        """Connect, encrypt and log in as the server's settings say. Raises TryAgain."""
        try:
            await self._open(encrypt=True)
        except _TlsFailed as error:
            if self._server.tls != "opportunistic" or self._server.username:
                raise error.failure from None
            # Nothing secret is lost: an attacker who breaks the handshake could as well hide that TLS is offered.
            log.warning("TLS with the mail server fails, so mail goes to it unencrypted: %s", error)
            self._client = self._new_client()
            await self._open(encrypt=False)

    async def reset(self) -> bool:
        """End what a former mail may have left (RSET), and prove that the server still answers. Closes the connection if not.

        Without a round trip of its own where the server pipelines: RSET goes with the next mail's commands then.
        """
        if self.pipelines:
            return self.usable
        try:
            await self._commands([_Command(Step.HELLO, b"RSET")])
        except MailError:
            self.close()
        return self.usable

    async def send(self, sender: str, recipient: str, mail: bytes, handover: Handover) -> None:
        """Send a mail and keep `handover` up to date. Raises TryAgain, of which Stale is one, Refused or OutcomeUnknown."""
        self.mails += 1
        try:
            await self._send(sender, recipient, mail, handover)
        except asyncio.CancelledError:
            self.close()
            raise

    def leave(self) -> None:
        """Say QUIT, which keeps an error out of the server's log, and close without waiting: no mail depends on the reply."""
        if self.usable and self._session:
            with suppress(OSError):
                self._session.write(b"QUIT\r\n")
        self.close()

    def close(self) -> None:
        self._client.close()

    def _new_client(self) -> aiosmtplib.SMTP:
        # Without its timeouts, kept by asyncio.wait_for, which loses cancellations before Python 3.12 (gh-86296).
        return aiosmtplib.SMTP(
            hostname=self._server.host,
            port=self._server.port,
            local_hostname=self._server.ehlo_name,
            timeout=None,
            use_tls=self._server.tls == "implicit",
            start_tls=False,
            tls_context=self._context,
        )

    async def _open(self, *, encrypt: bool) -> None:
        try:
            await self._within(self._server.seconds, Step.CONNECT, self._client.connect())
            await self._greet()
            secure = self._server.tls == "implicit" or (encrypt and await self._start_tls())
            if self._server.username:
                await self._log_in(secure=secure)
            self._take_over()
        except (MailError, asyncio.CancelledError):
            self.close()
            raise

    def _take_over(self) -> None:
        if self._client.transport is None:
            raise NoConnection("hung up")
        self._session = Session(self._client.transport)

    async def _greet(self) -> None:
        """Say EHLO, or HELO to a server that does not know it (RFC 5321, 3.2)."""
        reply = await self._within(
            self._server.seconds, Step.HELLO, self._client.execute_command(b"EHLO", self._server.ehlo_name.encode())
        )
        if reply.code == 250:
            self._client.last_ehlo_response = reply
            return
        if reply.code // 100 != 5 or not self.usable:
            raise error_of_reply(Step.HELLO, reply.code, reply.message)
        await self._within(self._server.seconds, Step.HELLO, self._client.helo())

    async def _start_tls(self) -> bool:
        """Encrypt the session where the server offers it. Raises NeedsOperator if it must and cannot."""
        if not self._client.supports_extension("starttls"):
            if self._server.tls == "starttls":
                raise NeedsOperator("the server does not offer STARTTLS, without which no mail may go to it")
            return False
        await self._within(self._server.seconds, Step.TLS, self._client.starttls())
        await self._greet()  # What was offered before counts no more (RFC 3207, 4.2).
        return True

    async def _log_in(self, *, secure: bool) -> None:
        if not secure and not self._server.password_in_clear:
            raise NeedsOperator("the server offers no TLS, without which the password is not sent")
        if not self._client.supported_auth_methods:
            raise NeedsOperator("the server offers no login that is known here")
        login = self._client.login(self._server.username, self._server.password)
        await self._within(self._server.seconds, Step.LOGIN, login)

    async def _send(self, sender: str, recipient: str, mail: bytes, handover: Handover) -> None:
        recipient = with_ascii_domain(recipient)
        international = not recipient.isascii()
        options = self._options(mail, international=international)
        commands = [
            _Command(Step.SENDER, b" ".join([b"MAIL FROM:" + path(sender), *options])),
            _Command(Step.RECIPIENT, b"RCPT TO:" + path(recipient), international=international),
            _Command(Step.DATA, b"DATA", wanted=_GO_ON, international=international),
        ]
        if self.pipelines and self.mails > 1:
            commands.insert(0, _Command(Step.RESET, b"RSET"))
        await self._commands(commands)
        content = stuffed(mail)
        handover.stage = Stage.HANDED_OVER
        try:
            reply = await self._within(
                self._server.final_reply_seconds, Step.FINAL_DOT, self._content_and_reply(content)
            )
        except TryAgain:
            handover.stage = Stage.UNSEEN
            raise
        if reply.consents:
            handover.stage = Stage.TAKEN
            return
        error = error_of_reply(Step.FINAL_DOT, reply.code, reply.text, international=international)
        if isinstance(error, OutcomeUnknown) or reply.code == _SERVICE_CLOSING:
            self.close()
        if not isinstance(error, OutcomeUnknown):
            handover.stage = Stage.UNSEEN
        raise error

    def _options(self, mail: bytes, *, international: bool) -> list[bytes]:
        """The options of MAIL that the mail needs. Raises Refused if the server does not offer them."""
        if international and not self._client.supports_extension("smtputf8"):
            raise NotInternational("the mail server does not offer SMTPUTF8, which the address needs")
        eight_bits = not mail.isascii()
        if eight_bits and not self._client.supports_extension("8bitmime"):
            raise ContentRefused("the mail server does not offer 8BITMIME, which the mail needs")
        return [b"BODY=8BITMIME"] * eight_bits + [b"SMTPUTF8"] * international

    async def _commands(self, commands: Sequence[_Command]) -> None:
        """Have the server consent to commands, all at once if it pipelines. Raises the error of the first that it refuses."""
        if not self.pipelines:
            for command in commands:
                self._write(command.step, command.line)
                await self._consent(command)
            return
        self._write(commands[0].step, b"\r\n".join(command.line for command in commands))
        refused: MailError | None = None
        for command in commands:
            try:
                await self._consent(command)
            except MailError as error:
                refused = refused or error
                if not self._session_stands:
                    break
            else:
                if refused and command.wanted == _GO_ON:
                    # It waits for a content although it refused the recipient (RFC 2920, 3.1): it gets none.
                    self.close()
        if refused:
            raise refused

    @property
    def _session_stands(self) -> bool:
        """Whether replies to the commands under way may still come."""
        return self._session is not None and not self._session.is_closed

    async def _consent(self, command: _Command) -> None:
        reply = await self._within(self._server.seconds, command.step, self._replied())
        if command.wanted in (reply.code, reply.code // 100):
            return
        if not 400 <= reply.code < 600 or reply.code == _SERVICE_CLOSING:
            self.close()  # Its replies may no longer belong to our commands.
        if command.step is Step.RESET:
            self.close()
            raise Stale("RSET was refused")
        raise error_of_reply(command.step, reply.code, reply.text, international=command.international)

    def _write(self, step: Step, commands: bytes) -> None:
        try:
            if self._session is None:
                raise NoReply("hung up")
            self._session.write(commands + b"\r\n")
        except NoReply as error:
            self.close()
            raise _failure(step, error, unsent=True) from None

    async def _replied(self) -> Reply:
        if self._session is None:
            raise NoReply("hung up")
        return await self._session.reply()

    async def _content_and_reply(self, content: bytes) -> Reply:
        if self._session is None:
            raise NoReply("hung up")
        self._session.write(content)
        return await self._session.reply()

    async def _within(self, seconds: float, step: Step, doing: Awaitable[T]) -> T:
        """Wait for a step of the server. If it brings no reply, the connection is closed. Raises MailError."""
        try:
            async with asyncio.timeout(seconds):
                return await doing
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            unsent = step is Step.FINAL_DOT and self._unsent_bytes() > 0
            self.close()
            raise _failure(step, error, unsent=unsent) from None

    def _unsent_bytes(self) -> int:
        transport = self._client.transport
        return cast("asyncio.WriteTransport", transport).get_write_buffer_size() if transport else 0


def _failure(step: Step, error: Exception, *, unsent: bool) -> MailError:
    failure = _meaning(step, error, unsent=unsent)
    if step is Step.RESET:
        return Stale(str(failure))
    return _TlsFailed(failure) if step is Step.TLS else failure


def _meaning(step: Step, error: Exception, *, unsent: bool) -> MailError:
    if isinstance(error, aiosmtplib.SMTPResponseException) and error.code > 0:
        return error_of_reply(step, error.code, error.message)
    text = "no answer in time" if isinstance(error, TimeoutError) else _words(error)
    if step is Step.FINAL_DOT and not unsent:
        return OutcomeUnknown(text)
    # The library wraps what happens while it connects.
    tls_error = next((each for each in (error, error.__cause__) if isinstance(each, ssl.SSLError)), None)
    if isinstance(tls_error, ssl.SSLCertVerificationError):
        return NeedsOperator(f"the server's certificate is refused: {tls_error.verify_message}")
    if tls_error:
        return NeedsOperator(f"TLS with the server fails: {tls_error.reason}")
    return NoConnection(text)


def _words(error: Exception) -> str:
    """What the library says of the connection; nothing of a reply that could not be read, which may quote the address."""
    return "no valid reply" if isinstance(error, aiosmtplib.SMTPResponseException) else str(error) or "hung up"
