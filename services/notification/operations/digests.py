"""Digests: one mail a day or a week instead of many. A digest is a delivery of its own, for which others wait."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.errors import DeadlineExceeded, MeshError, ResourceExhausted, Unavailable
from kit.events.envelope import Event, Undecodable, from_bytes
from kit.events.handlers import Permanent
from kit.runtime.clock import Clock

from .. import store
from ..model import Kind
from ..model.deliveries import Channel, Delivery, DeliveryState, NewDelivery, Outcome
from ..model.letters import by_actors
from ..model.notices import DIGEST, LIFE, NOTICES
from ..model.preferences import Action, Preferences, Reason, defaults_of, judge, next_digest
from ..store.deliveries import Insertion
from ..store.digests import DigestProgress, WaitingNotice
from .channels import StoryPages, Undeliverable
from .facts import FactReader, Reading

_MOST = 50
"""Notices of which a digest tells one by one; of more it tells the number."""
_EVENT = "Digest"
"""What stands for the type of an event in the rows of digests, which no event asks for."""
_LATE = timedelta(minutes=5)
_GONE = "STORY_GONE"

log = logging.getLogger(__name__)


class Digests:
    """Puts deliveries into digests, and reads what a digest has to say."""

    def __init__(self, db: Database, facts: FactReader, stories: StoryPages, clock: Clock, *, key: bytes) -> None:
        """`key` makes the ids of digests, which name their mails: who knows a person must not be able to name their mail."""
        self._db = db
        self._key = key
        self._facts = facts
        self._stories = stories
        self._clock = clock

    async def put(
        self, tx: Transaction, delivery: Delivery, preferences: Preferences, reason: Reason, due_at: datetime
    ) -> datetime:
        """Have the delivery wait for the person's digest that is due then, or for the first later one that nobody has begun.

        Returns when that one is due.
        """
        while not (digest := await self._lock(tx, preferences.user_id, reason, due_at)).is_open:
            due_at = next_digest(reason, preferences, due_at)
        expires_at = due_at + LIFE + _LATE
        await store.digests.put(tx, digest.digest_id, delivery.event_id, preferences.user_id, expires_at=expires_at)
        return due_at

    async def read(self, digest: Delivery) -> Reading:
        """What the digest has to say: `notices`, oldest first, and the number of those that are left out, `more`.

        Each notice has the link that a mail of its own would have. Notices that the person does not want any more go their own way,
        and those of stories that are gone end. Raises Undeliverable if nothing is left, and MeshError while story is away.
        """
        person = digest.user_id
        if person is None:
            raise Undeliverable(Outcome(DeliveryState.FAILED, "EVENT_UNREADABLE"))
        pages: dict[UUID, str] = {}
        while True:
            waiting, total = await self._wanted(digest.event_id, person)
            readings = {each.event_id: reading for each in waiting if (reading := self._reading(each))}
            if not readings:
                raise Undeliverable(Outcome(DeliveryState.SUPPRESSED, "DIGEST_EMPTY"))
            stories = {
                event_id: reading.about
                for event_id, reading in readings.items()
                if reading.notice.links_story and reading.about
            }
            pages |= await self._pages(digest, {story for story in stories.values() if story not in pages})
            gone = [event_id for event_id, story in stories.items() if story not in pages]
            if not gone:
                break
            async with self._db.transaction() as tx:
                await store.preferences.lock(tx, person)
                await store.digests.leave_out(tx, digest.event_id, gone, _GONE, self._clock())
        paths = {event_id: pages[story] for event_id, story in stories.items()}
        notices = [
            replace(each, facts={**each.facts, "page_path": paths.get(event_id, "")})
            for event_id, each in readings.items()
        ]
        told = [(each.notice.kind, each.facts) for each in _grouped(notices)]
        return Reading(DIGEST, {"notices": told, "more": total - len(notices)}, person, None, None)

    async def _wanted(self, digest_id: UUID, person: UUID) -> tuple[Sequence[WaitingNotice], int]:
        """The first notices that wait for the digest and that the person still wants, and the number of all."""
        now = self._clock()
        async with self._db.transaction() as tx:
            await store.preferences.lock(tx, person)
            preferences = await store.preferences.find(tx, person)
            counts = await store.digests.kinds(tx, digest_id)
            unwanted = {kind for kind in counts if not _is_wanted(kind, preferences, now)}
            if unwanted:
                await store.digests.release(tx, digest_id, unwanted, now)
            waiting = await store.digests.first(tx, digest_id, _MOST)
        return waiting, sum(count for kind, count in counts.items() if kind not in unwanted)

    async def _pages(self, digest: Delivery, story_ids: Collection[UUID]) -> Mapping[UUID, str]:
        """The stories' pages by one call; without those of stories that are gone.

        After an error that waiting would not mend, the digest goes without links: it tells of more than these stories.
        """
        if not story_ids:
            return {}
        try:
            return await self._stories.pages_of(story_ids)
        except (Unavailable, DeadlineExceeded, ResourceExhausted):
            raise
        except MeshError as error:
            log.warning("the digest of event %s goes without links: %s", digest.event_id, error)
            return dict.fromkeys(story_ids, "")

    def _reading(self, waiting: WaitingNotice) -> Reading | None:
        try:
            return self._facts.read(from_bytes(waiting.event))
        except (Undecodable, Permanent):
            return None

    def _id(self, user_id: UUID, due_at: datetime) -> UUID:
        """Follows from the person and the time, so that all workers have the same one."""
        name = f"digest\0{user_id}\0{due_at.isoformat()}"
        return UUID(bytes=hmac.digest(self._key, name.encode(), hashlib.sha256)[:16], version=5)

    async def _lock(self, tx: Transaction, user_id: UUID, reason: Reason, due_at: datetime) -> DigestProgress:
        """Lock the person's digest that is due then, which is inserted if there is none."""
        digest_id, now = self._id(user_id, due_at), self._clock()
        new = NewDelivery(
            id=uuid7(),
            event_id=digest_id,
            channel=Channel.EMAIL,
            target="",
            user_id=user_id,
            kind=Kind.DIGEST,
            state=DeliveryState.QUEUED,
            reason=reason,
            attempts=0,
            unknowns=0,
            urgent=False,
            event=Event(digest_id, _EVENT, str(user_id), now, traceparent="", payload=b"").to_bytes(),
            due_at=due_at,
            expires_at=due_at + LIFE,
            created_at=now,
        )
        await store.deliveries.insert_new(tx, [Insertion(new, DeliveryState.QUEUED, reason)], now)
        return await store.digests.lock(tx, digest_id)


def _grouped(readings: Sequence[Reading]) -> Sequence[Reading]:
    """The notices, oldest first, those that are grouped inside the application as one, in the place of the first of them."""
    groups: dict[object, list[Reading]] = {}
    for number, each in enumerate(readings):
        key = (each.notice.kind, each.about) if each.notice.grouped else number
        groups.setdefault(key, []).append(each)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Reading]) -> Reading:
    """The latest of a group, as what all of its actors did."""
    latest = group[-1]
    names = {each.actor.id: each.actor.name for each in reversed(group) if each.actor}
    return replace(latest, facts={**latest.facts, **by_actors([*names.values()], len(names))}) if names else latest


def _is_wanted(kind: str, preferences: Preferences, now: datetime) -> bool:
    notice = NOTICES.get(kind)
    return (
        notice is not None and judge(defaults_of(notice), Channel.EMAIL, preferences, now).action is not Action.SUPPRESS
    )
