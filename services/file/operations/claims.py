"""Claims of the services that show files, and the signed downloads that they hand to those who may see them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database, Transaction
from kit.events import outbox
from kit.events.envelope import Event
from kit.events.handlers import Later
from kit.events.inbox_store import mark_processed
from kit.runtime.clock import Clock

from .. import store
from ..errors import FileClaimLimit, FileNotFound, FileNotReady, FilePurposeMismatch
from ..model import File, State
from ..model.purposes import RULES, Purpose
from .signing import Download, Signing

TENTATIVE_FOR = timedelta(hours=1)
"""How long a claim lasts whose service does not confirm it."""

MOST_HOLDERS = 100
"""Of one file."""

_CONFIRMED_WITHIN = timedelta(seconds=2)
"""Between two looks of a release whether its claim is confirmed."""


class Claims:
    """Claims are by holder: a service, and the thing of it that shows the file."""

    def __init__(self, db: Database, signing: Signing, clock: Clock) -> None:
        self._db = db
        self._signing = signing
        self._clock = clock

    async def claim(self, holder: str, owner_id: UUID, file_ids: Sequence[UUID], purpose: Purpose) -> list[File]:
        """Claim ready files of one person tentatively, all or none. Idempotent.

        Raises FileNotFound, FilePurposeMismatch, FileNotReady and FileClaimLimit.
        """
        now = self._clock()
        async with self._db.transaction() as tx:
            files = await store.files.lock(tx, file_ids)
            for file_id in file_ids:
                file = files.get(file_id)
                if file is None or file.owner_id != owner_id:
                    raise FileNotFound(file_id=file_id)
                if file.purpose is not purpose:
                    raise FilePurposeMismatch(file_id=file_id, purpose=file.purpose)
                if file.state is not State.READY:
                    raise FileNotReady(file_id=file_id, state=file.state)
            full = await store.claims.held_by_others(tx, holder, file_ids, MOST_HOLDERS, now=now)
            if full:
                raise FileClaimLimit(file_id=next(each for each in file_ids if each in full))
            await store.claims.add(tx, holder, file_ids, now=now, expires_at=now + TENTATIVE_FOR)
            return [files[file_id] for file_id in file_ids]

    async def release(self, holder: str, file_ids: Collection[UUID]) -> None:
        """End claims. Files that nothing claims any more are deleted then, but for those that their owners keep. Idempotent."""
        async with self._db.transaction() as tx:
            await self._release(tx, holder, file_ids)

    async def take_confirmation(self, event: Event, holder: str, file_ids: Collection[UUID]) -> None:
        """Make claims last, also those that have ended meanwhile. Their holder is told of files that are no more."""
        async with self._db.transaction() as tx:
            if not await mark_processed(tx, event):
                return
            there = await store.files.lock(tx, file_ids)
            await store.claims.add(tx, holder, there, now=self._clock(), expires_at=None)
            for file_id in set(file_ids) - there.keys():
                # Its FileErased may have come before the holder had shown it, and have told it nothing then.
                await outbox.add(tx, events.FileErased(file_id=str(file_id)), key=file_id)

    async def take_release(self, event: Event, holder: str, file_ids: Collection[UUID]) -> None:
        """Do what `release` does, once for the event. Raises Later while a claim is tentative.

        The holder confirmed what it now releases, and events may overtake each other: confirmed after its end, a claim would
        never end.
        """
        async with self._db.transaction() as tx:
            if not await mark_processed(tx, event):
                return
            there = await store.files.lock(tx, file_ids)
            if await store.claims.tentative(tx, holder, there, now=self._clock()):
                raise Later(_CONFIRMED_WITHIN)
            await self._release(tx, holder, file_ids)

    async def sign(self, file_ids: Sequence[UUID], target: int, valid_for: timedelta | None) -> list[Download]:
        """Sign GETs of those of the files that are ready, of the rendition if they have some, for others than their owners."""
        async with self._db.single() as tx:
            files = await store.files.find_many(tx, file_ids)
        ready = (files[each] for each in file_ids if each in files and files[each].state is State.READY)
        # What has no renditions is handed out as it is, whatever the target.
        return [download for file in ready if (download := self._download(file, target, valid_for))]

    def _download(self, file: File, target: int, valid_for: timedelta | None) -> Download | None:
        named = RULES[file.purpose].named
        return self._signing.download(file, target if file.renditions else 0, valid_for, named=named)

    async def _release(self, tx: Transaction, holder: str, file_ids: Collection[UUID]) -> None:
        now = self._clock()
        files = await store.files.lock(tx, file_ids)
        shown = await store.claims.remove(tx, holder, files)
        unshown = shown - await store.claims.claimed(tx, shown, now)
        gone = [file_id for file_id in unshown if not RULES[files[file_id].purpose].kept_unshown]
        for file_id, owner_id in (await store.files.hide(tx, gone, now=now)).items():
            await outbox.add(tx, events.FileErased(file_id=str(file_id), owner_id=str(owner_id)), key=file_id)
