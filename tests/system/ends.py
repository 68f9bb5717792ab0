"""Invariants of stories after any failure of the mesh: nothing is lost or doubled, and no client's view has a gap."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from redis.asyncio import Redis

from kit.events.inbox_stream import delayed_of, stream_of
from local.harness import RunningMesh
from services.story.model import START, Position
from services.story.store.progress import Progress, ProgressEntry, ProgressKind, fold
from tests.mails import text_of
from tests.system.conftest import Person, databases_of, mails_to
from tests.system.sse import Follower
from tests.waiting import until

_SECONDS = 60.0

_UNPUBLISHED = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
_UNREPEATED = "SELECT count(*) FROM redis_memories WHERE repeat_before IS NOT NULL OR run_id <> %s"
_UNSENT = "SELECT count(*) FROM deliveries WHERE state IN ('QUEUED', 'SENDING') AND user_id = ANY(%s)"

Database = psycopg.AsyncConnection[tuple[Any, ...]]

_LINK = re.compile(r"/s/[\w-]+")


@dataclass
class Reader:
    """A client that requests stories, repeats each request until it is accepted, and watches the stories."""

    person: Person
    accepted: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Story id and length by request id."""
    followers: list[Follower] = field(default_factory=list)

    @property
    def story_ids(self) -> list[str]:
        """The stories' ids, in the order in which they were accepted."""
        return [story_id for story_id, _ in self.accepted.values()]

    async def ask(self, request_id: str, length: str = "STORY_LENGTH_SHORT") -> str:
        """Request a story and return its id. Idempotent by request id, because a request that failed may have been carried out."""

        async def answered() -> str:
            response = await self.person.post("/v1/stories", request_id=request_id, length=length)
            assert response.status_code in (200, 503), response.text
            return str(response.json()["story"]["id"]) if response.status_code == 200 else ""

        story_id = await until(answered, _SECONDS)
        before, _ = self.accepted.setdefault(request_id, (story_id, length))
        assert story_id == before, "one request made two stories"
        return story_id

    def follow(self, story_id: str) -> Follower:
        self.followers.append(Follower(self.person, story_id))
        return self.followers[-1]


async def ended_once(mesh: RunningMesh, redis: Redis, *readers: Reader, redis_forgot: bool = False) -> None:
    """Wait until all accepted stories have ended and the mesh is at rest; assert the invariants.

    With `redis_forgot`, a story may have ended without its progress being seen.
    """
    for reader in readers:
        assert reader.accepted, "nothing was accepted, so nothing is shown"
        await _nothing_lost(mesh, reader)
    await at_rest(mesh, redis, *(reader.person for reader in readers))
    for reader in readers:
        await _nothing_doubled(mesh, reader)
        await _no_gap(redis, reader, redis_forgot)


async def at_rest(mesh: RunningMesh, redis: Redis, *people: Person) -> None:
    """Wait until no event and no mail to these people is pending, so that any duplicate has arrived."""
    user_ids = [UUID(person.user["id"]) for person in people]
    async with AsyncExitStack() as stack:
        databases = {
            service: await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
            for service, url in databases_of(mesh).items()
        }

        async def rests() -> bool:
            return not await _on_its_way(databases, redis, user_ids)

        await until(rests, _SECONDS)


async def _on_its_way(databases: Mapping[str, Database], redis: Redis, user_ids: Sequence[UUID]) -> bool:
    """True while an event is pending. Looks in the order in which events travel, so that one that moves meanwhile is found."""
    run_id = str((await redis.info("server"))["run_id"])
    for database in databases.values():
        # The relays have not yet seen this memory of Redis; if it lost events, they will publish them again.
        if await _count(database, _UNREPEATED, run_id):
            return True
    for inbox in ("story-accounts", "story", "notification"):
        if await _count(databases["auth"], _UNPUBLISHED) or await _count(databases["story"], _UNPUBLISHED):
            return True
        async with redis.pipeline(transaction=True) as pipeline:
            pipeline.xlen(stream_of(inbox))
            pipeline.zcard(delayed_of(inbox))
            if any(await pipeline.execute()):
                return True
    return await _count(databases["notification"], _UNSENT, user_ids) > 0


async def _count(database: Database, query: str, *values: object) -> int:
    row = await (await database.execute(query.encode(), values)).fetchone()
    assert row
    return int(row[0])


async def _nothing_lost(mesh: RunningMesh, reader: Reader) -> None:
    for story_id in reader.story_ids:
        story = await reader.person.finished(story_id, _SECONDS)
        assert (story["state"], story["failure_reason"]) == ("STORY_STATE_COMPLETED", "")
        assert story["title"]
        assert story["text"]
    accepted = set(reader.story_ids)

    async def told() -> bool:
        return accepted <= set(await mailed(mesh, reader)) and accepted <= set(await _notified(reader))

    await until(told, _SECONDS)


async def _nothing_doubled(mesh: RunningMesh, reader: Reader) -> None:
    once = Counter(reader.story_ids)
    assert set(once.values()) == {1}, "two requests got one story"
    for request_id, (_, length) in list(reader.accepted.items()):
        await reader.ask(request_id, length)
    listed = (await reader.person.get("/v1/stories", page_size=100)).json()["stories"]
    assert Counter(story["id"] for story in listed) == once
    assert Counter(await mailed(mesh, reader)) == once
    assert Counter(await _notified(reader)) == once


async def mailed(mesh: RunningMesh, reader: Reader) -> list[str]:
    """Return the stories that mails have announced, each by its link."""
    links = (await reader.person.get("/v1/storyLinks", page_size=100)).json()["links"]
    stories = {link["path"]: link["story_id"] for link in links}
    texts = [text_of(mail) for mail in mails_to(mesh.mail_dir, reader.person.email)]
    return [stories[path] for text in texts for path in _LINK.findall(text) if path in stories]


async def _notified(reader: Reader) -> list[str]:
    """Return the stories that in-app notifications have announced."""
    told: Sequence[dict[str, Any]] = (await reader.person.get("/v1/notifications", page_size=100)).json()[
        "notifications"
    ]
    return [each["story_id"] for each in told if each["type"] == "NOTIFICATION_TYPE_STORY_READY"]


async def _no_gap(redis: Redis, reader: Reader, redis_forgot: bool) -> None:
    for follower in reader.followers:
        stored = (await reader.person.story(follower.story_id))["text"]
        assert follower.text == stored
        # The composer is deterministic per story, so every attempt must show the same text.
        assert all(stored.startswith(view) for view in follower.views)
    for story_id in reader.story_ids:
        entries = await Progress(redis).read(UUID(story_id), START)
        assert entries or redis_forgot
        _dense(entries, await reader.person.story(story_id))


def _dense(entries: Sequence[ProgressEntry], story: dict[str, Any]) -> None:
    """Assert that the entries have no gap. Only a snapshot, which replaces all entries before it, may follow a gap."""
    latest, text = ProgressEntry(START, ProgressKind.BEGIN, ""), ""
    for entry in entries:
        attempt = entry.position.attempt
        offset = latest.position.offset + 1 if attempt == latest.position.attempt else 0
        assert entry.position == Position(attempt, offset) or entry.kind is ProgressKind.SNAPSHOT
        latest, text = entry, fold(text, entry)
        assert story["text"].startswith(text)
    if latest.kind is ProgressKind.END and latest.position.attempt == story["attempt"]:
        assert text == story["text"]
