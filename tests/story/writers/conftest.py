"""Fixtures: a chat server with scripted faults, and writers that call it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.story.adapters.writers.openai import OpenAIWriter

from .chat_server import ChatServer, chat_server
from .telling import KEY, Make


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server() as running:
        yield running


@pytest.fixture
async def make(server: ChatServer) -> AsyncIterator[Make]:
    writers: list[OpenAIWriter] = []

    def build(**overrides: float) -> OpenAIWriter:
        settings = {"first_wait": 0.001, "read_timeout": 10.0, "attempts": 1, **overrides}
        writers.append(OpenAIWriter(base_url=server.url, api_key=KEY, model="model-1", **settings))  # type: ignore[arg-type]
        return writers[-1]

    yield build
    for writer in writers:
        await writer.aclose()
