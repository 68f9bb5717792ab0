"""Mail servers that misbehave at one exact step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class MailServer:
    """Serves one SMTP client at a time (RFC 5321), with the replies that the test chooses."""

    greeting: str = "220 test"
    sender: str = "250 ok"
    recipient: str = "250 ok"
    data: str = "354 go on"
    taken: str | None = "250 ok"
    """The reply to the final dot. None: cut the connection instead."""
    stalls: bool = False
    """Never reply to the final dot."""
    held: asyncio.Event | None = None
    """Reply to the final dot only after this event."""
    hesitates_at: str = ""
    """Never reply to this verb; CONNECT: send no greeting."""
    port: int = field(default=0, init=False)
    connections: int = field(default=0, init=False)
    verbs: list[str] = field(default_factory=list, init=False)
    mails: list[bytes] = field(default_factory=list, init=False)
    """Every mail whose final dot has arrived, whatever the reply."""

    def replies(self) -> tuple[str, str, str, str, str | None]:
        """The replies by step."""
        return self.greeting, self.sender, self.recipient, self.data, self.taken

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hesitates_at == "CONNECT":
            await reader.read()
        await _say(writer, self.greeting)
        while line := (await reader.readline()).decode().strip():
            verb = line.partition(" ")[0].upper()
            self.verbs.append(verb)
            if verb == self.hesitates_at:
                await reader.read()
            match verb:
                case "MAIL":
                    await _say(writer, self.sender)
                case "RCPT":
                    await _say(writer, self.recipient)
                case "DATA":
                    await _say(writer, self.data)
                    if not self.data.startswith("354"):
                        continue
                    self.mails.append(await reader.readuntil(b"\r\n.\r\n"))
                    if self.stalls:
                        await reader.read()
                    if self.held:
                        await self.held.wait()
                    if self.taken is None or self.stalls:
                        return
                    await _say(writer, self.taken)
                case "QUIT":
                    await _say(writer, "221 bye")
                    return
                case _:
                    await _say(writer, "250 ok")


async def _say(writer: asyncio.StreamWriter, reply: str) -> None:
    writer.write(reply.encode() + b"\r\n")
    await writer.drain()


@asynccontextmanager
async def listening(server: MailServer) -> AsyncIterator[MailServer]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
