"""Files: inserted, read, changed and deleted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Text, Uuid, bindparam, cast, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from kit.data.database import Transaction
from kit.data.paging import PageRequest
from kit.data.prepared import Prepared, Row
from kit.events import dead_letter_store, outbox

from ..model import CheckStep, Declaration, File, Reason, Rendition, State
from ..model.purposes import Purpose
from ..tables import file_claims, file_renditions, files

CHANNEL = "files"
"""NOTIFY tells the watches of every process of a change; the payload is the file's id."""

_COLUMNS = (
    *("id", "owner_id", "purpose", "name", "size", "media_type", "sha256", "state", "check_step", "reason"),
    *("object_key", "upload_id", "part_size", "revision", "created_at", "expires_at", "completed_at"),
)
_GIVEN = (
    *("id", "owner_id", "request_id", "request_digest", "purpose", "name", "size", "media_type", "sha256"),
    *("object_key", "part_size", "created_at", "expires_at"),
)
_BEGINNING: dict[str, Any] = {
    "state": State.PENDING,
    "check_step": CheckStep.NONE,
    "reason": Reason.NONE,
    "revision": 1,
    "stored": True,
    "rendered": False,
}

# Frequent statements are built once, because SQLAlchemy takes longer to build one than to send it.

_SHOWN = (
    exists()
    .where(
        file_claims.c.file_id == files.c.id,
        or_(file_claims.c.expires_at.is_(None), file_claims.c.expires_at > func.now()),
    )
    .label("claimed")
)
_FILES = select(*(files.c[name] for name in _COLUMNS), _SHOWN).where(files.c.deleted_at.is_(None))
_FIND = Prepared(_FILES.where(files.c.id == bindparam("file")))
_FIND_BY_REQUEST = Prepared(
    _FILES.add_columns(files.c.request_digest).where(
        files.c.owner_id == bindparam("owner"), files.c.request_id == bindparam("request")
    )
)
_FIND_MANY = Prepared(_FILES.where(files.c.id == func.any(bindparam("ids", type_=ARRAY(Uuid)))))
# In one order: two calls that share files cannot wait for each other then.
_LOCK_MANY = Prepared(
    _FILES.where(files.c.id == func.any(bindparam("ids", type_=ARRAY(Uuid)))).order_by(files.c.id).with_for_update()
)
_RENDITIONS = Prepared(
    select(file_renditions)
    .where(file_renditions.c.file_id == func.any(bindparam("ids", type_=ARRAY(Uuid))))
    .order_by(file_renditions.c.target)
)
_INSERT = Prepared(insert(files), columns=(*_GIVEN, *_BEGINNING))
TELL = func.pg_notify(CHANNEL, cast(files.c.id, Text))
_dispatched = (
    update(files)
    .where(files.c.id == bindparam("file"), files.c.state == State.PENDING, files.c.deleted_at.is_(None))
    .values(
        state=State.CHECKING,
        check_step=CheckStep.QUEUED,
        dispatched_at=bindparam("now", type_=DateTime(timezone=True)),
        revision=files.c.revision + 1,
    )
    .returning(files.c.id, TELL)
    .cte("dispatched")
)
_DISPATCH = Prepared(select(_dispatched.c.id).add_cte(outbox.addition(_dispatched)))


async def find(tx: Transaction, file_id: UUID) -> File | None:
    row = await _FIND.one_or_none(tx, {"file": file_id})
    return (await _whole(tx, [row]))[0] if row else None


async def find_many(tx: Transaction, file_ids: Collection[UUID]) -> dict[UUID, File]:
    """Return those of the files that exist, by id."""
    return {file.id: file for file in await _whole(tx, await _FIND_MANY.execute(tx, {"ids": list(file_ids)}))}


async def lock(tx: Transaction, file_ids: Collection[UUID]) -> dict[UUID, File]:
    """Return those of the files that exist, by id, and let everybody else who would change them wait for the transaction."""
    return {file.id: file for file in await _whole(tx, await _LOCK_MANY.execute(tx, {"ids": list(file_ids)}))}


async def find_by_request(tx: Transaction, owner_id: UUID, request_id: str) -> tuple[File, bytes] | None:
    """Return the file and the digest of its declaration."""
    row = await _FIND_BY_REQUEST.one_or_none(tx, {"owner": owner_id, "request": request_id})
    return ((await _whole(tx, [row]))[0], row["request_digest"]) if row else None


async def page(
    tx: Transaction, owner_id: UUID, state: State | None, purpose: Purpose | None, request: PageRequest
) -> Sequence[File]:
    """Return the owner's files, newest first: the page, and one file more if there is a next page."""
    query = _FILES.where(files.c.owner_id == owner_id).order_by(files.c.id.desc()).limit(request.size + 1)
    if state:
        query = query.where(files.c.state == state)
    if purpose:
        query = query.where(files.c.purpose == purpose)
    if request.before:
        query = query.where(files.c.id < request.before)
    return await _whole(tx, [dict(row) for row in (await tx.execute(query)).mappings()])


async def add(
    tx: Transaction,
    file_id: UUID,
    owner_id: UUID,
    declaration: Declaration,
    *,
    request_id: str | None,
    object_key: str,
    part_size: int,
    now: datetime,
    expires_at: datetime,
) -> File:
    """Insert a pending file. Raises IntegrityError for a request id that the owner has used."""
    values = {
        "id": file_id,
        "owner_id": owner_id,
        "request_id": request_id,
        "request_digest": declaration.digest(),
        "purpose": declaration.purpose,
        "name": declaration.name,
        "size": declaration.size,
        "media_type": declaration.media_type,
        "sha256": declaration.sha256,
        "object_key": object_key,
        "part_size": part_size,
        "created_at": now,
        "expires_at": expires_at,
        **_BEGINNING,
    }
    await _INSERT.execute(tx, values)
    return _file_of({**values, "upload_id": None, "completed_at": None, "claimed": False})


async def change(tx: Transaction, file_id: UUID, *, within: Collection[State], **values: Any) -> bool:
    """Set columns of a file that is in one of these states, and tell its watches. False when it is not, or is deleted."""
    statement = (
        update(files)
        .where(files.c.id == file_id, files.c.state.in_(within), files.c.deleted_at.is_(None))
        .values(revision=files.c.revision + 1, **values)
        .returning(TELL)
    )
    return (await tx.execute(statement)).first() is not None


async def dispatch(tx: Transaction, file_id: UUID, event: Mapping[str, object], *, now: datetime) -> bool:
    """Move a pending file to CHECKING and write the event of `outbox.values_of`. False when it is not pending, or deleted.

    One statement, which needs neither BEGIN nor COMMIT.
    """
    return bool(await _DISPATCH.execute(tx, {"file": file_id, "now": now, **event}))


async def adopt_upload(tx: Transaction, file_id: UUID, upload_id: str) -> bool:
    """Record the store's name of an upload by parts. False when the file has one, is not pending, or is deleted."""
    statement = update(files).where(
        files.c.id == file_id,
        files.c.state == State.PENDING,
        files.c.upload_id.is_(None),
        files.c.deleted_at.is_(None),
    )
    return (await tx.execute(statement.values(upload_id=upload_id))).rowcount == 1


async def hide(tx: Transaction, file_ids: Collection[UUID], *, now: datetime) -> Mapping[UUID, UUID]:
    """Hide the files from everybody, free their request ids, and tell their watches. Returns the owners of those hidden now."""
    statement = (
        update(files)
        .where(files.c.id.in_(file_ids), files.c.deleted_at.is_(None))
        .values(deleted_at=now, request_id=None, revision=files.c.revision + 1)
        .returning(files.c.id, files.c.owner_id, TELL)
    )
    return {row.id: row.owner_id for row in await tx.execute(statement)}


async def erase(tx: Transaction, file_ids: Collection[UUID]) -> None:
    """Delete the files with their renditions and claims, their unpublished checks and their dead letters."""
    await tx.execute(delete(files).where(files.c.id.in_(file_ids)))
    keys = [str(file_id) for file_id in file_ids]
    await tx.execute(delete(dead_letter_store.dead_letters).where(dead_letter_store.dead_letters.c.key.in_(keys)))
    for key in keys:
        await outbox.forget(tx, key=key)


async def _whole(tx: Transaction, rows: Sequence[Row]) -> list[File]:
    """The files of these rows, with the renditions of those that are ready."""
    ready = [row["id"] for row in rows if row["state"] == State.READY]
    made: dict[UUID, list[Rendition]] = {}
    for each in await _RENDITIONS.execute(tx, {"ids": ready}) if ready else ():
        rendition = Rendition(each["target"], each["object_key"], each["width"], each["height"], each["size"])
        made.setdefault(each["file_id"], []).append(rendition)
    return [_file_of(row, tuple(made.get(row["id"], ()))) for row in rows]


def _file_of(row: Row, renditions: tuple[Rendition, ...] = ()) -> File:
    return File(
        id=row["id"],
        owner_id=row["owner_id"],
        purpose=Purpose(row["purpose"]),
        name=row["name"],
        size=row["size"],
        media_type=row["media_type"],
        sha256=bytes(row["sha256"]),
        state=State(row["state"]),
        check_step=CheckStep(row["check_step"]),
        reason=Reason(row["reason"]),
        object_key=row["object_key"],
        upload_id=row["upload_id"],
        part_size=row["part_size"],
        revision=row["revision"],
        claimed=row["claimed"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        completed_at=row["completed_at"],
        renditions=renditions,
    )
