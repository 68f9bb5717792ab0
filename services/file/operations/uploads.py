"""Uploads: parts, completion, and giving up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events

from kit.data.database import Database
from kit.data.object_errors import ObjectMissing, ObjectRefused, ObjectStoreUnavailable
from kit.data.objects import Objects, Part
from kit.data.paging import Page, Pages
from kit.data.presigning import SignedRequest
from kit.errors import InvalidArgument, Violation
from kit.events import outbox
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import FileExpired, FileNotFound, FileNotPending, FileNotUploaded
from ..model import File, Reason, State
from .files import Files, owned
from .signing import Signing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeclaredPart:
    """A part that a client says that it will upload."""

    number: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part that the store has."""

    part: Part

    @property
    def id(self) -> UUID:
        """The part's number, as page tokens take it."""
        return UUID(int=self.part.number)


class Uploads:
    """Takes the caller's own files from PENDING to CHECKING, or to EXPIRED.

    Postgres decides; no transaction is open while the store is asked. A call that was broken off between the two is repeated, and
    finds what it did before.
    """

    def __init__(
        self, db: Database, files: Files, objects: Objects, *, signing: Signing, pages: Pages, clock: Clock
    ) -> None:
        self._db = db
        self._files = files
        self._objects = objects
        self._signing = signing
        self._pages = pages
        self._clock = clock

    async def sign_parts(
        self, caller: Caller, file_id: UUID, declared: Sequence[DeclaredPart]
    ) -> list[tuple[int, SignedRequest]]:
        """Sign a PUT for each part. Begins the upload by parts at the first call.

        Raises FileNotFound, FileNotPending, InvalidArgument for a number that the file does not have or that comes twice, and
        ObjectStoreUnavailable.
        """
        file = await self._pending(caller, file_id)
        numbers = [part.number for part in declared]
        violations = [
            Violation(f"parts[{at}].number", fault)
            for at, number in enumerate(numbers)
            if (fault := _fault_of_number(number, numbers[:at], file))
        ]
        if violations:
            raise InvalidArgument(violations)
        upload_id = file.upload_id or await self._begin(file)
        checksums = {part.number: part.sha256 for part in declared}
        async with self._db.transaction() as tx:
            if file_id not in await store.files.lock(tx, [file_id]):
                raise FileNotFound
            await store.parts.declare(tx, file_id, checksums)
        return [(part.number, self._signing.part(file, upload_id, part.number, part.sha256)) for part in declared]

    async def parts(self, caller: Caller, file_id: UUID, page_size: int, page_token: str) -> Page[ListedPart]:
        """Return a page of the parts that the store has, by number.

        Raises FileNotFound, FileNotPending, InvalidArgument for a page token of another list, and ObjectStoreUnavailable.
        """
        file = await self._pending(caller, file_id)
        query = f"parts:{file_id}"
        request = self._pages.request(query, page_size, page_token)
        after = request.before.int if request.before else 0
        later = [ListedPart(part) for part in await self._uploaded(file) if part.number > after]
        return self._pages.page(query, request.size, later[: request.size + 1])

    async def complete(self, caller: Caller, file_id: UUID) -> File:
        """Have an uploaded file checked. Idempotent: a file that is checked already is returned as it is.

        Raises FileNotFound, FileNotUploaded, FileExpired and ObjectStoreUnavailable.
        """
        file = await self._files.get(caller, file_id)
        if file.state is State.PENDING:
            if file.expires_at <= self._clock():
                raise FileExpired
            await self._require_uploaded(file)
            uploaded = outbox.values_of(events.FileUploaded(file_id=str(file_id)), key=file_id)
            async with self._db.single() as tx:
                await store.files.dispatch(tx, file_id, uploaded, now=self._clock())
                # Unless it was completed, given up or deleted meanwhile.
                file = owned(await store.files.find(tx, file_id), caller)
                if file.upload_id is not None:
                    await store.parts.forget(tx, file_id)
        if file.state is State.EXPIRED:
            raise FileExpired
        return file

    async def abort(self, caller: Caller, file_id: UUID) -> File:
        """Give up a pending file; a worker removes what was uploaded of it. Idempotent. Raises FileNotFound and FileNotPending."""
        async with self._db.transaction() as tx:
            file = owned((await store.files.lock(tx, [file_id])).get(file_id), caller)
            expired = {"state": State.EXPIRED, "reason": Reason.UPLOAD_ABORTED, "completed_at": self._clock()}
            if await store.files.change(tx, file_id, within=[State.PENDING], **expired):
                file = owned(await store.files.find(tx, file_id), caller)
        if file.state is not State.EXPIRED:
            raise FileNotPending
        return file

    async def _pending(self, caller: Caller, file_id: UUID) -> File:
        file = await self._files.get(caller, file_id)
        if file.state is not State.PENDING or file.expires_at <= self._clock():
            raise FileNotPending
        return file

    async def _begin(self, file: File) -> str:
        """Begin the upload by parts, once: of two calls the second takes the first one's."""
        begun = await self._objects.start_parts(file.object_key, media_type=file.media_type)
        async with self._db.transaction() as tx:
            if await store.files.adopt_upload(tx, file.id, begun):
                return begun
            found = await store.files.find(tx, file.id)
        try:
            await self._objects.abort_parts(file.object_key, begun)
        except ObjectStoreUnavailable as error:
            log.warning("a needless upload by parts is aborted later: %s", error)
        if found is None:
            raise FileNotFound
        if found.upload_id is None:
            raise FileNotPending
        return found.upload_id

    async def _uploaded(self, file: File) -> Sequence[Part]:
        if file.upload_id is None:
            return ()
        try:
            return await self._objects.list_parts(file.object_key, file.upload_id)
        except ObjectMissing:
            return ()  # Put together already, or aborted by the store's own rule.

    async def _require_uploaded(self, file: File) -> None:
        """Have the store put the parts together, if the file came by parts. Raises FileNotUploaded unless it has the bytes then."""
        if await self._objects.head(file.object_key):
            return
        if file.upload_id is None:
            raise FileNotUploaded
        if parts := {part.number: part for part in await self._uploaded(file)}:
            await self._put_together(file, file.upload_id, parts)
        if not await self._objects.head(file.object_key):
            raise FileNotUploaded

    async def _put_together(self, file: File, upload_id: str, parts: Mapping[int, Part]) -> None:
        """Raises FileNotUploaded when a part is missing, or is not the one whose upload was signed last."""
        plan = file.parts
        for number in range(1, plan.count + 1):
            if number not in parts or parts[number].size != plan.size_of(number):
                raise FileNotUploaded(missing_part=number)
        async with self._db.single() as tx:
            declared = await store.parts.declared(tx, file.id)
        whole = [
            part if part.sha256 else replace(part, sha256=declared.get(number))
            for number, part in sorted(parts.items())
        ]
        try:
            await self._objects.complete_parts(file.object_key, upload_id, whole)
        except ObjectMissing:
            return  # Another call was faster; whether the store has the bytes is looked at again.
        except ObjectRefused as refused:
            log.warning("the parts of file %s cannot be put together: %s", file.id, refused)
            raise FileNotUploaded from None


def _fault_of_number(number: int, earlier: Sequence[int], file: File) -> str | None:
    if number in earlier:
        return "comes twice"
    return None if number <= file.parts.count else f"is beyond the last part, {file.parts.count}"
