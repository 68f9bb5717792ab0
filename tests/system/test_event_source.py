"""A client that knows only server-sent events and resumes by sending the last event id (WHATWG HTML, 9.2)."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from local.harness import RunningMesh
from tests.system.conftest import Person, registered
from tests.waiting import until


class EventSource:
    """A fetch-based EventSource whose connection breaks after every second event."""

    def __init__(self, person: Person, url: str) -> None:
        self._person = person
        self._url = url
        self.last_event_id = ""
        self.events: list[dict[str, Any]] = []
        self.closed = False

    async def connect(self, *, at_most: int) -> None:
        headers = self._person.auth | ({"last-event-id": self.last_event_id} if self.last_event_id else {})
        async with self._person.http.stream("GET", self._url, headers=headers, timeout=40) as response:
            assert response.status_code in (200, 204), await response.aread()
            self.closed = response.status_code == 204
            data, received = "", 0
            async for line in response.aiter_lines():
                field, _, value = line.partition(":")
                if field == "data":
                    data = value
                elif field == "id":
                    self.last_event_id = value.removeprefix(" ")
                elif not line and data:
                    self.events.append(json.loads(data))
                    assert self.last_event_id == self.events[-1]["resume_token"]
                    data, received = "", received + 1
                    if received == at_most:
                        return

    @property
    def text(self) -> str:
        text = ""
        for event in self.events:
            if "snapshot" in event:
                text = event["snapshot"]["text"]
            text = "" if "reset" in event else text + event.get("chunk", {}).get("text", "")
        return text


async def test_an_event_source_follows_a_story_over_broken_connections_and_ends_with_it(
    mesh: RunningMesh, http: httpx2.AsyncClient
) -> None:
    person = await registered(mesh, http)
    story = await person.new_story()
    source = EventSource(person, f"/v1/stories/{story['id']}:watch")

    async def closed() -> bool:
        await source.connect(at_most=2)
        return source.closed

    await until(closed, 60)
    stored = await person.story(story["id"])
    assert stored["state"] == "STORY_STATE_COMPLETED"
    assert source.text == stored["text"] == source.events[-1]["done"]["story"]["text"]
    assert len([event for event in source.events if "done" in event]) == 1
    await source.connect(at_most=2)
    assert source.closed
