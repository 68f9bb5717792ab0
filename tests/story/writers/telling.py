"""A short story as an endpoint may send it, and the text that a reader gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeAlias

import pytest

from services.story.adapters.writers import Brief, Piece, Title, WordCount, Words, WriterRefused, WriterUnavailable
from services.story.adapters.writers.openai import OpenAIWriter

from .chat_server import delta

Make: TypeAlias = Callable[..., OpenAIWriter]

KEY = "sk-proj-Zq8Lm3Xw5Tr7Yv2Kc9"
WISH = "My grandmother Ottilie hid her letters under the floor."
BRIEF = Brief(
    length=WordCount.SHORT, prompt=WISH, theme="forgiveness", preferences=("zeppelins",), first_name="Wilhelmina"
)
STORY = ("One two three four five six seven eight nine ten. " * 14).strip()
ANSWER = f"The Key\n\n{STORY}"


async def told(writer: OpenAIWriter, brief: Brief = BRIEF) -> tuple[str, str]:
    """Return the title and the text as a reader gets them."""
    pieces: list[Piece] = []
    async with aclosing(writer.write(brief)) as writing:
        pieces += [piece async for piece in writing]
    [title] = [piece.text for piece in pieces if isinstance(piece, Title)]
    return title, "".join(piece.text for piece in pieces if isinstance(piece, Words))


async def refusal_of(writer: OpenAIWriter) -> WriterRefused | WriterUnavailable:
    try:
        story = await told(writer)
    except (WriterRefused, WriterUnavailable) as failure:
        return failure
    pytest.fail(f"it told {story}")


def content(text: object) -> dict[str, object]:
    return delta({"content": text})


def frames(*payloads: object, end: str = "\n", done: str = "data: [DONE]\n\n") -> bytes:
    lines = [f"data: {json.dumps(payload)}\n\n" for payload in payloads]
    return ("".join(lines) + done).replace("\n", end).encode()
