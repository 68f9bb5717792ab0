"""Checks of uploaded files: whether they are what was declared and harmless as far as a scanner knows, and what is made of images.

An event may come again, and two workers may check one file at a time: every step may be repeated, objects are written under keys
that follow from the row, and the verdict is written only while the file is in CHECKING. A fault of the store, the scanner or the
image processes is no verdict: the event is tried again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database
from kit.data.object_errors import ObjectMissing, ObjectStoreUnavailable
from kit.data.objects import ObjectInfo, Objects
from kit.errors import Unavailable
from kit.events import outbox
from kit.runtime.clock import Clock

from .. import store
from ..adapters.clamd import Scanner, ScannerUnavailable, ScanSizeExceeded
from ..adapters.images.messages import ImageRefused
from ..adapters.images.pool import ImagePool, ImageProcessesUnavailable
from ..model import RENDITION_MEDIA_TYPE, CheckStep, File, Reason, Rendition
from ..model.media_types import ARCHIVES, HEAD_BYTES, TAIL_BYTES, matches
from ..model.object_keys import keys_of, rendition_key
from ..model.purposes import MIB, Purpose, renders
from .removing import Removing

log = logging.getLogger(__name__)

INBOX = "file-checks"
"""Where the files come from that are to be checked."""

_MOST_IMAGE_BYTES = 32 * MIB
"""An image is decoded from memory."""

_TOLD_EVERY = timedelta(seconds=30)
"""Between two signs of life of a check that reads a large file."""


class ScannerAway(Unavailable):
    reason = "SCANNER_UNAVAILABLE"
    message = "the virus scanner gives no verdict, and no file is handed out without one"


class ImagesAway(Unavailable):
    reason = "IMAGE_PROCESSES_UNAVAILABLE"
    message = "no image process can be started"


class Digest(Protocol):
    """What hashlib computes step by step."""

    def update(self, data: bytes, /) -> None: ...


class _Unfit(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class _Gone(Exception):
    """The file is deleted, or has its verdict."""


class Checking:
    def __init__(
        self,
        db: Database,
        objects: Objects,
        images: ImagePool,
        scanner: Scanner | None,
        removing: Removing,
        *,
        clock: Clock,
    ) -> None:
        self._db = db
        self._objects = objects
        self._images = images
        self._scanner = scanner
        self._removing = removing
        self._clock = clock

    async def check(self, file_id: UUID) -> None:
        """Check the file, if it waits for that. Raises ObjectStoreUnavailable, ScannerAway and ImagesAway."""
        try:
            await self._at(file_id, CheckStep.VERIFYING)
            async with self._db.single() as tx:
                file = await store.files.find(tx, file_id)
            if file is None:
                return
            try:
                renditions = await self._examine(file)
            except _Unfit as unfit:
                await self._reject(file, unfit.reason)
            else:
                await self._accept(file, renditions)
        except _Gone:
            return

    async def _examine(self, file: File) -> list[Rendition]:
        """The renditions that were made and stored. Raises _Unfit, _Gone and what `check` raises."""
        try:
            found = await self._objects.head(file.object_key)
            if found is None:
                raise _Unfit(Reason.CONTENT_LOST)
            if found.size != file.size:
                raise _Unfit(Reason.SIZE_MISMATCH)
            if found.sha256 not in (None, file.sha256):
                raise _Unfit(Reason.CHECKSUM_MISMATCH)
            await self._end_parts(file, found)
            await self._require_type(file)
            await self._read_whole(file, found)
            return await self._render(file) if renders(file.purpose, file.media_type) else []
        except ObjectMissing:
            raise _Unfit(Reason.CONTENT_LOST) from None

    async def _end_parts(self, file: File, found: ObjectInfo) -> None:
        """Abort an upload by parts beside the single PUT that the object came by.

        A completion that was called before that PUT would put its parts in place of the bytes that are checked here. An object that
        is those parts itself is left alone: a store that was killed in the middle may have both still share their bytes.
        """
        if file.upload_id is not None and found.sha256 is not None:
            await self._objects.abort_parts(file.object_key, file.upload_id)

    async def _require_type(self, file: File) -> None:
        head = await self._objects.read(file.object_key, first=0, last=HEAD_BYTES - 1)
        tail = b""
        if file.media_type in ARCHIVES:
            first = max(0, file.size - TAIL_BYTES)
            tail = await self._objects.read(file.object_key, first=first, last=file.size - 1)
        if not matches(file.media_type, head, tail):
            raise _Unfit(Reason.MEDIA_TYPE_MISMATCH)

    async def _read_whole(self, file: File, found: ObjectInfo) -> None:
        """Have the file scanned, and its digest computed where the store does not know it, in one reading."""
        digest = hashlib.sha256() if found.sha256 is None else None
        step = CheckStep.SCANNING if self._scanner else CheckStep.VERIFYING
        content = self._content(file, step, digest)
        if self._scanner:
            await self._at(file.id, step)
            async with aclosing(content):
                try:
                    signature = await self._scanner.scan(content, size=file.size)
                except ScanSizeExceeded:
                    raise _Unfit(Reason.TOO_LARGE_TO_SCAN) from None
                except ScannerUnavailable as error:
                    log.warning("file %s waits for the virus scanner: %s", file.id, error)
                    raise ScannerAway from error
            if signature is not None:
                log.warning("the virus scanner found %s in file %s", signature, file.id)
                raise _Unfit(Reason.INFECTED)
        elif digest:
            async with aclosing(content):
                async for _ in content:
                    pass
        if digest and digest.digest() != file.sha256:
            raise _Unfit(Reason.CHECKSUM_MISMATCH)

    async def _content(self, file: File, step: CheckStep, digest: Digest | None) -> AsyncGenerator[bytes, None]:
        told_at = self._clock()
        async with aclosing(self._objects.stream(file.object_key)) as chunks:
            async for chunk in chunks:
                if digest:
                    digest.update(chunk)
                if self._clock() - told_at > _TOLD_EVERY:
                    await self._at(file.id, step)
                    told_at = self._clock()
                yield chunk

    async def _render(self, file: File) -> list[Rendition]:
        await self._at(file.id, CheckStep.RENDERING)
        if file.size > _MOST_IMAGE_BYTES:
            raise _Unfit(Reason.IMAGE_TOO_LARGE)
        data = await self._objects.read(file.object_key, first=0, last=file.size - 1)
        try:
            rendered = await self._images.render(data, square=file.purpose is Purpose.AVATAR)
        except ImageRefused as refused:
            raise _Unfit(Reason(refused.refusal.value)) from None
        except ImageProcessesUnavailable as error:
            log.error("file %s waits for an image process: %s", file.id, error)
            raise ImagesAway from error
        made = []
        for each in rendered.renditions:
            key = rendition_key(file.object_key, each.size)
            await self._objects.put(key, each.data, media_type=RENDITION_MEDIA_TYPE)
            made.append(Rendition(each.size, key, each.width, each.height, len(each.data)))
        return made

    async def _accept(self, file: File, renditions: list[Rendition]) -> None:
        async with self._db.transaction() as tx:
            accepted = await store.checking.accept(tx, file.id, renditions, now=self._clock())
            if accepted:
                await outbox.add(tx, events.FileReady(file_id=str(file.id), owner_id=str(file.owner_id)), key=file.id)
        if accepted:
            await self._clear(file)
        elif renditions:
            await self._drop(file)

    async def _reject(self, file: File, reason: Reason) -> None:
        async with self._db.transaction() as tx:
            rejected = await store.checking.reject(tx, file.id, reason, now=self._clock())
            if rejected:
                event = events.FileRejected(file_id=str(file.id), owner_id=str(file.owner_id), reason=reason)
                await outbox.add(tx, event, key=file.id)
        if rejected:
            log.info("file %s is refused: %s", file.id, reason)
            await self._clear(file)

    async def _clear(self, file: File) -> None:
        try:
            await self._removing.clear(file.id)
        except ObjectStoreUnavailable as error:
            # The verdict stands. Another round of the removal does it.
            log.warning("the bytes of file %s are removed later: %s", file.id, error)

    async def _drop(self, file: File) -> None:
        """Remove renditions that were stored while the file was being deleted, and so perhaps after its other objects."""
        async with self._db.single() as tx:
            there = await store.files.find(tx, file.id)
        if there is None:
            await self._objects.delete(list(keys_of(file.object_key)))

    async def _at(self, file_id: UUID, step: CheckStep) -> None:
        """Tell the step, and that somebody is at it. Raises _Gone."""
        async with self._db.transaction() as tx:
            if not await store.checking.begin(tx, file_id, step, now=self._clock()):
                raise _Gone
