"""Reads the body of a successful answer as a stream of events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TypeAlias

import httpx2
from openai import AsyncAPIResponse, AsyncStream
from openai.types.chat import ChatCompletionChunk

from .. import Refusal, WriterRefused
from .event_stream import DONE, EventDecoder, ServerSentEvent
from .failures import Complaint, Failure, Redaction

Response: TypeAlias = AsyncAPIResponse[AsyncStream[ChatCompletionChunk]]

# First characters of a body that is not an event stream but HTML or JSON. A stream's lines begin with a letter or a colon.
_NO_STREAM = re.compile(rb"(?:\xef\xbb\xbf)?\s*[<{\[\"]")
_BODY_BYTES = 64_000
_HEAD_BYTES = 2000
_BODY_SECONDS = 2.0
_DRAIN_SECONDS = 0.1
_COMPLETION = re.compile(r"\s*\{[^{[]*\"choices\"")


class NoStream(Exception):
    """Raised when a successful answer is not an event stream."""

    def __init__(self, status: int, media_type: str, body: str) -> None:
        super().__init__(status)
        self._status = status
        self._media_type = media_type
        self._body = body

    def failure(self, redact: Redaction) -> Failure:
        description = (
            f"the endpoint answered {self._status} with no event stream"
            f" but {redact(self._media_type) or 'no media type'}: {redact(self._body)}"
        )
        if _COMPLETION.match(self._body):
            return WriterRefused(Refusal.WRITER_MISCONFIGURED, f"the endpoint does not stream: {description}")
        return Complaint.parse(self._body).failure(description, None)


async def events(response: Response) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the events. Raises NoStream when the body is no event stream, and ValueError for an event beyond the size limit."""
    decoder = EventDecoder()
    head = b""
    is_stream = False
    chunks = response.iter_bytes()
    async for chunk in chunks:
        if not is_stream:
            head += chunk
            if _NO_STREAM.match(head):
                raise await _no_stream(response, head, chunks)
            head = head[:_HEAD_BYTES]
        for event in decoder.feed(chunk):
            is_stream = True
            if event.data == DONE:
                await _drain(chunks)
                return
            yield event
    for event in decoder.finish():
        is_stream = True
        if event.data != DONE:
            yield event
    if not is_stream and head.strip():
        raise await _no_stream(response, head, chunks)


async def _no_stream(response: Response, head: bytes, chunks: AsyncIterator[bytes]) -> NoStream:
    body = bytearray(head)
    with suppress(TimeoutError, httpx2.HTTPError, httpx2.StreamError):
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in chunks:
                body += chunk
                if len(body) > _BODY_BYTES:
                    break
    text = body[:_BODY_BYTES].decode(errors="replace")
    return NoStream(response.status_code, response.headers.get("content-type", ""), text)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read the answer to its end, because only then is the connection used again."""
    with suppress(TimeoutError, httpx2.HTTPError, httpx2.StreamError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in chunks:
                pass
