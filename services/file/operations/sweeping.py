"""Compares the rows of files with the objects of the store, both ways.

An object without a row is what an interrupted upload, check or deletion left; it is deleted. A row without an object is a loss: it
is told, and nothing else is done, because the store may be restored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from kit.data.database import Database
from kit.data.objects import Objects
from kit.runtime.clock import Clock
from kit.runtime.loops import every
from kit.runtime.metrics import Metrics

from .. import store
from ..model.object_keys import IMAGES, UPLOADS, upload_of
from ..model.quotas import DAY

log = logging.getLogger(__name__)

_PAGE = 1000
_SETTLED_AFTER = timedelta(hours=1)
"""A file that became ready since then is left out: its objects may be younger than the page of the listing."""

_NAMED = 20
"""Keys that a line of the log names at most."""

_MOST_KEPT = 100_000
_FEW = 100
_SUSPICIOUS_SHARE = 0.5
"""When more of the objects than that have no row, the rows are those of another store, or older than the objects."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison found."""

    objects: int
    """How many the store has."""
    unneeded: frozenset[str]
    """Keys of objects, a day old, that no row needs."""
    missing: frozenset[str]
    """Keys at which a ready file must have an object, and has none."""
    seals: frozenset[str]
    """Keys of empty objects, a day old: no file is empty, and no signed upload is good for so long."""
    uploads: Sequence[tuple[str, str]]
    """Uploads by parts, a day old, that no row goes on with: object key and the store's name."""

    @property
    def doubtful(self) -> bool:
        """Whether so much is unneeded that the rows are rather the wrong ones."""
        return len(self.unneeded) > max(_FEW, self.objects * _SUSPICIOUS_SHARE)


class Sweeper:
    """Compares periodically, and tells what it finds in the log, once, and in metrics.

    An object is deleted when two comparisons in a row found that no row needs it: the first one is the dry run of the second.
    """

    def __init__(
        self, db: Database, objects: Objects, clock: Clock, *, deletes: bool, seconds: float, old: timedelta = DAY
    ) -> None:
        self._db = db
        self._objects = objects
        self._clock = clock
        self._deletes = deletes
        self._seconds = seconds
        self._old = old
        self._unneeded: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        self._deleted = 0

    def show_in(self, metrics: Metrics) -> None:
        """Show what the latest comparison found."""
        metrics.gauge(
            "storymesh_file_objects_missing",
            "Objects of ready files that the store does not have: lost, unless the store is restored.",
            lambda: len(self._missing),
        )
        metrics.gauge(
            "storymesh_file_objects_unneeded",
            "Objects that no file needs, a day old; deleted when they are found a second time.",
            lambda: len(self._unneeded),
        )

    async def check(self) -> None:
        """Raise LookupError while ready files are without their objects: a check of health."""
        if self._missing:
            raise LookupError(f"the store has lost {len(self._missing)} objects of ready files")

    async def run(self, stopping: asyncio.Event) -> None:
        """Sweep until `stopping` is set."""
        await every(self._seconds, stopping, self.sweep, failure="files and objects cannot be compared now")

    async def sweep(self) -> Found:
        """Compare, tell, and delete what was found before. Raises ObjectStoreUnavailable."""
        found = await self.compare()
        if found.doubtful:
            log.error(
                "%d of %d objects have no row: nothing is deleted, because the database seems to be another one, or an old copy",
                len(found.unneeded),
                found.objects,
            )
        elif self._deletes:
            await self._delete(found)
        if found.seals:
            await self._objects.delete(sorted(found.seals))
        self._tell("no file needs these objects", found.unneeded - self._unneeded, logging.WARNING)
        self._tell("the store has lost these objects of ready files", found.missing - self._missing, logging.ERROR)
        self._unneeded = frozenset(sorted(found.unneeded)[:_MOST_KEPT])
        self._missing = found.missing
        return found

    async def compare(self) -> Found:
        """Look, and change nothing. Raises ObjectStoreUnavailable."""
        counted, unneeded, missing, seals = 0, set[str](), set[str](), set[str]()
        for prefix in (IMAGES, UPLOADS):
            after, more = prefix, True
            while more:
                page = await self._objects.list(prefix, after=after, most=_PAGE)
                keys = [each.key for each in page.objects]
                counted += len(keys)
                more = page.more and bool(keys)
                upto = keys[-1] if more else prefix[:-1] + chr(ord("/") + 1)
                old = {each.key: each.size for each in page.objects if each.modified_at < self._clock() - self._old}
                seals |= {key for key, size in old.items() if not size}
                unneeded |= await self._unneeded_of({key for key, size in old.items() if size})
                missing |= await self._missing_between(after, upto, frozenset(keys))
                after = upto
        return Found(counted, frozenset(unneeded), frozenset(missing), frozenset(seals), await self._open_uploads())

    async def _unneeded_of(self, old: set[str]) -> set[str]:
        if not old:
            return set()
        async with self._db.single() as tx:
            uploaded, rendered = await store.sweeping.needed_among(tx, {upload_of(key) for key in old})
        return {key for key in old if upload_of(key) not in (rendered if key.startswith(IMAGES) else uploaded)}

    async def _missing_between(self, after: str, upto: str, there: frozenset[str]) -> set[str]:
        missing = set[str]()
        while True:
            async with self._db.single() as tx:
                expected = await store.sweeping.expected_between(
                    tx, after, upto, _PAGE, ready_before=self._clock() - _SETTLED_AFTER
                )
            # A listing may be older than a look at the object itself.
            absent = [key for key in expected if key not in there and await self._objects.head(key) is None]
            async with self._db.single() as tx:
                missing |= await store.sweeping.expected_among(tx, absent) if absent else set()
            if len(expected) < _PAGE:
                return missing
            after = expected[-1]

    async def _open_uploads(self) -> Sequence[tuple[str, str]]:
        old = [
            (each.key, each.upload_id)
            async for each in self._objects.list_uploads(UPLOADS)
            if each.started_at < self._clock() - self._old
        ]
        if not old:
            return ()
        async with self._db.single() as tx:
            used = await store.sweeping.uploads_in_use(tx, {key for key, _ in old})
        return [each for each in old if each not in used]

    async def _delete(self, found: Found) -> None:
        twice = found.unneeded & self._unneeded
        if twice:
            await self._objects.delete(sorted(twice))
        for key, upload_id in found.uploads:
            await self._objects.abort_parts(key, upload_id)
        if twice or found.uploads:
            log.info("deleted %d objects that no file needs, and %d uploads by parts", len(twice), len(found.uploads))

    def _tell(self, what: str, keys: frozenset[str], level: int) -> None:
        if keys:
            named = ", ".join(sorted(keys)[:_NAMED])
            log.log(level, "%s: %d, such as %s", what, len(keys), named)
