"""Reads server-sent events of a watch, as a browser would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.system.conftest import Person


class Events:
    """`text` is the snapshot and the chunks after it, starting over at a reset."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.text = ""
        self.kinds: list[str] = []
        self.resume_token = ""
        self.last: dict[str, Any] = {}

    async def step(self) -> str:
        """The kind of the next event; empty at the stream's end."""
        async for line in self._lines:
            if line.startswith("data:"):
                self.last = json.loads(line.removeprefix("data:"))
                break
        else:
            return ""
        self.resume_token = self.last["resume_token"]
        kind = next(name for name in self.last if name != "resume_token")
        if kind == "snapshot":
            self.text = self.last["snapshot"]["text"]
        elif kind == "chunk":
            self.text += self.last["chunk"]["text"]
        elif kind == "reset":
            self.text = ""
        self.kinds.append(kind)
        return kind

    async def until(self, *kinds: str) -> dict[str, Any]:
        """The first event of these kinds; empty when the stream ends before."""
        while (kind := await self.step()) not in kinds:
            if not kind:
                return {}
        return self.last


@asynccontextmanager
async def watched(person: Person, story_id: str, resume_token: str = "") -> AsyncIterator[Events]:
    query = {"resume_token": resume_token} if resume_token else {}
    url = f"/v1/stories/{story_id}:watch"
    async with person.http.stream("GET", url, params=query, headers=person.auth, timeout=40) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response.aiter_lines())
