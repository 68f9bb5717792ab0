"""A mail server that does at each step what the test says: accept, defer, refuse, hang, cut, break TLS."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.notification.adapters.smtp import MailServer as Address
from services.notification.adapters.smtp import Smtp
from tests.waiting import until

OFFERS = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8")


@dataclass
class MailServer:
    """Serves SMTP clients (RFC 5321), several at a time, with the replies that the test chooses.

    A step is named by its verb; CONNECT is the greeting, CONTENT the end of a mail.
    """

    greeting: str = "220 test"
    hello: str = "250"
    """The reply's code to EHLO. Others than 250: the server knows HELO only."""
    helo: str = "250 ok"
    offers: tuple[str, ...] = OFFERS
    sender: str = "250 ok"
    recipient: str = "250 ok"
    recipients: Mapping[str, str] = field(default_factory=dict)
    """Replies to single recipients, which go before `recipient`."""
    data: str = "354 go on"
    taken: str | None = "250 ok"
    """The reply to the final dot. None: cut the connection instead."""
    takes_for_nobody: bool = False
    """Consent to DATA although every recipient was refused, as RFC 2920, 3.1, allows."""
    reset: str = "250 ok"
    holds_replies: bool = False
    """Send the replies to the commands of a mail only after DATA, together, as a server far away seems to."""
    stalls: bool = False
    """Never reply to the final dot."""
    held: asyncio.Event | None = None
    """Reply to the final dot only after this event."""
    hesitates_at: str = ""
    """Never reply to this verb; CONNECT: send no greeting."""
    cuts_at: str = ""
    """Close the connection instead of replying at this step."""
    reads_no_content: bool = False
    """Stop reading when the content begins."""
    tls: ssl.SSLContext | None = None
    """If given, STARTTLS is offered."""
    implicit: bool = False
    """TLS from the first byte, instead of STARTTLS."""
    starttls: str = "220 go on"
    breaks_tls: bool = False
    """Answer the handshake with something else."""
    injected: str = ""
    """Sent in clear together with the reply to STARTTLS, as an attacker does."""
    accounts: Mapping[str, str] = field(default_factory=dict)
    """If any, AUTH is offered, and asked for before MAIL."""
    auth: str = "AUTH PLAIN LOGIN"
    login: str = "235 2.7.0 welcome"
    port: int = field(default=0, init=False)
    connections: int = field(default=0, init=False)
    open: int = field(default=0, init=False)
    """Connections that are open now."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list, init=False, repr=False)
    verbs: list[str] = field(default_factory=list, init=False)
    lines: list[str] = field(default_factory=list, init=False)
    """Each command, content and logins left out."""
    logins: list[tuple[str, str, bool]] = field(default_factory=list, init=False)
    """Username, password, and whether they came encrypted."""
    mails: list[bytes] = field(default_factory=list, init=False)
    """Every mail whose final dot has arrived, whatever the reply."""
    encrypted: list[bool] = field(default_factory=list, init=False)
    """Whether each of the mails came encrypted."""

    @property
    def attempts(self) -> int:
        """Mails that were begun, or connections if none came so far."""
        return self.verbs.count("MAIL") or self.connections

    def replies(self) -> tuple[str, str, str, str, str | None]:
        """The replies by step."""
        return self.greeting, self.sender, self.recipient, self.data, self.taken

    async def hang_up(self) -> None:
        """Close all connections, and wait until their clients can know."""
        for writer in self.writers:
            writer.close()
        await until(lambda: self.open == 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        try:
            await _Session(self, reader, writer).converse()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, _Cut):
            pass
        finally:
            self.open -= 1
            self.writers.remove(writer)
            writer.close()


class _Cut(Exception):
    """The server hangs up."""


@dataclass
class _Session:
    server: MailServer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    welcome: bool = False
    """The client has logged in."""
    held_back: str = ""
    """Replies that are yet to be sent."""
    has_recipient: bool = False
    """The server has consented to a recipient of the mail."""

    @property
    def secure(self) -> bool:
        return self.writer.get_extra_info("sslcontext") is not None

    async def converse(self) -> None:
        await self.misbehave("CONNECT")
        await self.say(self.server.greeting)
        while line := (await self.reader.readline()).decode().strip():
            verb = line.partition(" ")[0].upper()
            self.server.verbs.append(verb)
            if verb != "AUTH":
                self.server.lines.append(line)
            await self.misbehave(verb)
            if verb == "QUIT":
                await self.say("221 bye")
                return
            await self.obey(verb, line)

    async def obey(self, verb: str, line: str) -> None:
        server = self.server
        match verb:
            case "EHLO":
                await self.say(self.greeting_of_ehlo())
            case "HELO":
                await self.say(server.helo)
            case "STARTTLS":
                await self.start_tls()
            case "AUTH":
                await self.log_in(line)
            case "MAIL":
                self.has_recipient = False
                await self.say("530 5.7.0 log in" if server.accounts and not self.welcome else server.sender)
            case "RCPT":
                address = line.partition("<")[2].partition(">")[0]
                reply = server.recipients.get(address, server.recipient)
                self.has_recipient = reply.startswith("2")
                await self.say(reply)
            case "DATA":
                await self.take()
            case "RSET":
                self.has_recipient = False
                await self.say(server.reset)
            case _:
                await self.say("250 ok")

    def greeting_of_ehlo(self) -> str:
        if self.server.hello != "250":
            return f"{self.server.hello} what?"
        offers = list(self.server.offers)
        if self.server.tls and not self.secure and not self.server.implicit:
            offers.append("STARTTLS")
        if self.server.accounts:
            offers.append(self.server.auth)
        lines = ["test", *offers]
        return "\r\n".join(f"250{'-' if number < len(lines) else ' '}{line}" for number, line in enumerate(lines, 1))

    async def start_tls(self) -> None:
        self.writer.write(f"{self.server.starttls}\r\n{self.server.injected}".encode())
        await self.writer.drain()
        if not self.server.starttls.startswith("220"):
            return
        if self.server.breaks_tls:
            await self.reader.read(1)
            await self.say("this is no TLS")
            raise _Cut
        assert self.server.tls
        await self.writer.start_tls(self.server.tls)

    async def log_in(self, line: str) -> None:
        _, method, *rest = line.split(" ")
        if method.upper() == "PLAIN":
            _, username, password = base64.b64decode(rest[0]).decode().split("\0")
        else:
            username = base64.b64decode(rest[0]).decode()
            await self.say("334 UGFzc3dvcmQ6")
            password = base64.b64decode(await self.reader.readline()).decode()
        self.server.logins.append((username, password, self.secure))
        self.welcome = self.server.accounts.get(username) == password and self.server.login.startswith("235")
        await self.say(self.server.login if self.server.accounts.get(username) == password else "535 5.7.8 wrong")

    async def take(self) -> None:
        server = self.server
        if not (self.has_recipient or server.takes_for_nobody):
            await self.say("554 5.5.1 no valid recipients")
            return
        await self.say(server.data)
        if not server.data.startswith("354"):
            return
        if server.reads_no_content:
            transport: Any = self.writer.transport
            transport.pause_reading()
            await asyncio.Event().wait()
        server.mails.append(await self.reader.readuntil(b"\r\n.\r\n"))
        server.encrypted.append(self.secure)
        await self.misbehave("CONTENT")
        if server.stalls:
            await self.reader.read()
        if server.held:
            await server.held.wait()
        if server.taken is None or server.stalls:
            raise _Cut
        await self.say(server.taken)

    async def misbehave(self, step: str) -> None:
        if step == self.server.hesitates_at:
            await self.reader.read()
            raise _Cut
        if step == self.server.cuts_at:
            raise _Cut

    async def say(self, reply: str) -> None:
        said, self.held_back = f"{self.held_back}{reply}\r\n", ""
        if self.server.holds_replies and self.server.verbs and self.server.verbs[-1] in ("RSET", "MAIL", "RCPT"):
            self.held_back = said
            return
        self.writer.write(said.encode())
        await self.writer.drain()


@asynccontextmanager
async def listening(server: MailServer) -> AsyncIterator[MailServer]:
    listener = await asyncio.start_server(
        server.serve, "127.0.0.1", 0, ssl=server.tls if server.implicit else None, limit=1 << 24
    )
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def smtp(server: MailServer, *, seconds: float = 5.0, final_reply_seconds: float = 5.0, **options: Any) -> Smtp:
    """A client of the server; `options` are those of MailServer in the adapter, and of Smtp."""
    own = {name: options.pop(name) for name in ("rates", "idle_seconds", "mails_per_connection") if name in options}
    options |= {"seconds": seconds, "final_reply_seconds": final_reply_seconds}
    return Smtp(Address("127.0.0.1", server.port, **options), **own)
