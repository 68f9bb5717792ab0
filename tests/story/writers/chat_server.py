"""An HTTP server that streams chat completions as OpenAI does, with faults that the test chooses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

Reply: TypeAlias = Callable[["Exchange"], Awaitable[None]]


@dataclass(frozen=True)
class Exchange:
    """One request and its response; `left` is set once the client has closed the connection."""

    headers: Mapping[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    left: asyncio.Event

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        await self._send("\r\n".join([*lines, "Connection: close", "", ""]).encode())

    async def chunk(self, data: str) -> None:
        await self._send(f"{len(data.encode()):x}\r\n{data}\r\n".encode())

    async def event(self, payload: object) -> None:
        await self.chunk(f"data: {payload if isinstance(payload, str) else json.dumps(payload)}\n\n")

    async def text(self, text: str) -> None:
        await self.event(delta({"content": text}))

    async def end(self) -> None:
        await self.event("[DONE]")
        await self.chunk("")

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


def delta(content: Mapping[str, object], finish_reason: str | None = None) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": dict(content), "finish_reason": finish_reason}],
    }


def streaming(*texts: str, finish_reason: str | None = "stop", usage: tuple[int, int] | None = None) -> Reply:
    """Send a whole answer, one chunk per text. Without a finish reason the stream ends properly but the answer is incomplete."""

    async def reply(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        await exchange.event(delta({"role": "assistant", "content": ""}))
        for text in texts:
            await exchange.text(text)
        if finish_reason is not None:
            await exchange.event(delta({}, finish_reason))
        if usage is not None:
            tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
            await exchange.event({**delta({}), "choices": [], "usage": tokens})
        await exchange.end()

    return reply


def refusing(status: int, *, code: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    return answering(status, {"error": {"message": "no", "type": "error", "code": code}}, headers=headers)


def answering(
    status: int, body: object, *, media_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Reply:
    """Send a body that is not a stream: a string as it is, anything else as JSON."""

    async def reply(exchange: Exchange) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        length = {"Content-Type": media_type, "Content-Length": str(len(content))}
        await exchange.begin(status, length | dict(headers or {}))
        exchange.writer.write(content)

    return reply


def sending_bytes(stream: bytes, *, size: int = 0) -> Reply:
    """Send these bytes as an event stream, in pieces of that size if one is given."""

    async def reply(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "text/event-stream"})
        for start in range(0, len(stream), size or len(stream)):
            exchange.writer.write(stream[start : start + (size or len(stream))])
            await exchange.writer.drain()
            await asyncio.sleep(0)

    return reply


def breaking_off(*texts: str) -> Reply:
    """Drop the connection in the middle of the answer."""

    async def reply(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for text in texts:
            await exchange.text(text)
        exchange.writer.transport.abort()

    return reply


def sending(*payloads: object) -> Reply:
    """Send these events as they are, and end."""

    async def reply(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for payload in payloads:
            await exchange.event(payload)
        await exchange.end()

    return reply


def falling_silent(*texts: str) -> Reply:
    """Send these texts, then nothing until the client disconnects."""

    async def reply(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for text in texts:
            await exchange.text(text)
        await exchange.left.wait()

    return reply


@dataclass
class ChatServer:
    """Answers each request with the next reply of its script; `exchanges` records them."""

    port: int = 0
    script: list[Reply] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:])}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            exchange = Exchange({"request-line": head[0], **headers}, body, writer, asyncio.Event())
            self.exchanges.append(exchange)
            watching = asyncio.create_task(self._watch(reader, exchange.left))
            try:
                await self.script.pop(0)(exchange)
            finally:
                watching.cancel()
        writer.close()

    async def _watch(self, reader: asyncio.StreamReader, left: asyncio.Event) -> None:
        with suppress(ConnectionError):
            await reader.read()
        left.set()


@asynccontextmanager
async def chat_server() -> AsyncIterator[ChatServer]:
    chat = ChatServer()
    server = await asyncio.start_server(chat.serve, "127.0.0.1", 0)
    chat.port = server.sockets[0].getsockname()[1]
    async with server:
        yield chat
