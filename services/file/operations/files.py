"""Files as their owners see them: declared, read, downloaded and deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from unicodedata import normalize
from uuid import UUID

from storymesh.events.v1 import file_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.data.presigning import SignedRequest
from kit.errors import InvalidArgument, Violation
from kit.events import outbox
from kit.identity.caller import Caller
from kit.runtime.clock import Clock

from .. import store
from ..errors import FileInUse, FileNotFound, FileNotReady, RequestIdReused
from ..model import Declaration, File, State
from ..model.file_names import fault_of
from ..model.media_types import allowed
from ..model.object_keys import UPLOADS
from ..model.parts import PART_BYTES
from ..model.purposes import RULES, Purpose
from .quotas import Quotas
from .signing import Download, Signing

_KEY_BYTES = 16


class Files:
    """Acts on the caller's own files; another person's file looks like one that does not exist."""

    def __init__(
        self,
        db: Database,
        pages: Pages,
        signing: Signing,
        quotas: Quotas,
        clock: Clock,
        *,
        random: Callable[[int], bytes],
        pending_for: timedelta,
    ) -> None:
        self._db = db
        self._pages = pages
        self._signing = signing
        self._quotas = quotas
        self._clock = clock
        self._random = random
        self._pending_for = pending_for

    async def create(
        self, caller: Caller, declared: Declaration, request_id: str | None
    ) -> tuple[File, SignedRequest | None]:
        """Declare a file and reserve its place; return it with the PUT that uploads it.

        Idempotent by `request_id`: a repeated request returns the file that the first one made. Raises InvalidArgument,
        RequestIdReused, FileQuotaExceeded, and SessionRevoked for a deleted account.
        """
        declaration = replace(declared, name=normalize("NFC", declared.name).strip())
        if violations := list(_violations(declaration)):
            raise InvalidArgument(violations)
        now = self._clock()
        async with self._db.transaction() as tx:
            await self._quotas.hold(tx, caller.user_id)
            # Below the person's lock, so that of two calls with one request id the second finds the first one's file.
            file = await self._repeated(tx, caller, declaration, request_id) if request_id else None
            if file is None:
                await self._quotas.admit(tx, caller.user_id, declaration.size, now)
                file = await store.files.add(
                    tx,
                    uuid7(),
                    caller.user_id,
                    declaration,
                    request_id=request_id,
                    object_key=f"{UPLOADS}{self._random(_KEY_BYTES).hex()}",
                    part_size=PART_BYTES,
                    now=now,
                    expires_at=now + self._pending_for,
                )
        return file, self._signing.upload(file)

    async def get(self, caller: Caller, file_id: UUID) -> File:
        """Raises FileNotFound."""
        async with self._db.single() as tx:
            return owned(await store.files.find(tx, file_id), caller)

    async def list(
        self, caller: Caller, state: State | None, purpose: Purpose | None, page_size: int, page_token: str
    ) -> Page[File]:
        """Return a page of the caller's files, newest first; with a `state` or `purpose`, only those of it.

        Raises InvalidArgument for a page token of another list.
        """
        query = f"files:{caller.user_id}:{state or ''}:{purpose or ''}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.single() as tx:
            rows = await store.files.page(tx, caller.user_id, state, purpose, request)
        return self._pages.page(query, request.size, rows)

    async def download(self, caller: Caller, file_id: UUID, target: int) -> Download:
        """Sign a GET. Raises FileNotFound, FileNotReady, and InvalidArgument for a target that the file has no rendition of."""
        file = await self.get(caller, file_id)
        if file.state is not State.READY:
            raise FileNotReady(file_id=file_id, state=file.state)
        download = self._signing.download(file, target)
        if download is None:
            raise InvalidArgument([Violation("target", "is one that the file has no rendition of")])
        return download

    async def delete(self, caller: Caller, file_id: UUID) -> None:
        """Hide the file from everybody; a worker removes its bytes, and then its row. Raises FileNotFound and FileInUse."""
        now = self._clock()
        async with self._db.transaction() as tx:
            owned((await store.files.lock(tx, [file_id])).get(file_id), caller)
            # A statement apart from the lock's, which a claim may have held: it would not see that claim.
            if await store.claims.claimed(tx, [file_id], now):
                raise FileInUse
            await store.files.hide(tx, [file_id], now=now)
            await outbox.add(tx, events.FileErased(file_id=str(file_id), owner_id=str(caller.user_id)), key=file_id)

    async def _repeated(
        self, tx: Transaction, caller: Caller, declaration: Declaration, request_id: str
    ) -> File | None:
        found = await store.files.find_by_request(tx, caller.user_id, request_id)
        if found is None:
            return None
        file, digest = found
        if digest != declaration.digest():
            raise RequestIdReused(request_id=request_id)
        return file


def owned(file: File | None, caller: Caller) -> File:
    """The file, if it is the caller's. Raises FileNotFound: strangers must not learn that it exists."""
    if file is None or file.owner_id != caller.user_id:
        raise FileNotFound
    return file


def _violations(declaration: Declaration) -> list[Violation]:
    found = []
    if fault := fault_of(declaration.name):
        found.append(Violation("name", fault, "FILE_NAME_INVALID"))
    rules, media_types = RULES[declaration.purpose], allowed(declaration.purpose)
    if declaration.size > rules.most_bytes:
        description = f"must be {rules.most_bytes} at most for this purpose"
        found.append(Violation("size", description, "FILE_TOO_LARGE"))
    if declaration.media_type not in media_types:
        description = f"must be one of these for this purpose: {', '.join(sorted(media_types))}"
        found.append(Violation("media_type", description, "MEDIA_TYPE_NOT_ALLOWED"))
    return found
