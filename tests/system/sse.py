"""Clients that read the server-sent events of a watch, as a browser would."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from tests.system.conftest import Person
from tests.waiting import until


class Events:
    """The events of one watch. `text` is the latest snapshot and the chunks after it; a reset empties it."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.text = ""
        self.kinds: list[str] = []
        self.resume_token = ""
        self.last: dict[str, Any] = {}

    async def step(self) -> str:
        """Return the kind of the next event; "" at the stream's end."""
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
        """Read up to the first event of these kinds; return its kind, or "" when the stream ends before."""
        while (kind := await self.step()) not in kinds:
            if not kind:
                return {}
        return self.last


@asynccontextmanager
async def watched(person: Person, story_id: str, resume_token: str = "") -> AsyncIterator[Events]:
    async with _watch(person, story_id, resume_token) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response.aiter_lines())


@asynccontextmanager
async def _watch(person: Person, story_id: str, resume_token: str) -> AsyncIterator[httpx2.Response]:
    query = {"resume_token": resume_token} if resume_token else {}
    url = f"/v1/stories/{story_id}:watch"
    async with person.http.stream("GET", url, params=query, headers=person.auth, timeout=40) as response:
        yield response


class Follower:
    """Follows one story through refusals and broken streams: it always resumes from the last token."""

    def __init__(self, person: Person, story_id: str) -> None:
        self._person = person
        self.story_id = story_id
        self.resume_token = ""
        self.views = [""]
        """The client's text after each message."""
        self.resumptions: list[tuple[str, str]] = []
        """For each resumption, the client's text and the snapshot that it got."""
        self.last: dict[str, Any] = {}

    @property
    def text(self) -> str:
        return self.views[-1]

    async def to_the_end(self, *, at_most: int = sys.maxsize) -> None:
        """Read to the end, over as many connections as needed; leave each after that many messages."""

        async def ended() -> bool:
            await self.connect(at_most=at_most)
            return "done" in self.last

        await until(ended, 60)

    async def connect(self, *, at_most: int = sys.maxsize) -> None:
        """Watch over one connection."""
        try:
            async with _watch(self._person, self.story_id, self.resume_token) as response:
                assert response.status_code in (200, 503), await response.aread()
                if response.status_code == 200:
                    await self._read(Events(response.aiter_lines()), at_most)
        except httpx2.TransportError:
            # Resume from the last token, as after any other end of a stream.
            return

    async def _read(self, events: Events, at_most: int) -> None:
        for number in range(at_most):
            kind = await events.step()
            if not kind:
                return
            if number == 0:
                assert kind == "snapshot"
                if self.resume_token:
                    self.resumptions.append((self.text, events.text))
            self.views.append(events.text)
            self.resume_token, self.last = events.resume_token, events.last
            if kind in ("done", "reconnect"):
                return
