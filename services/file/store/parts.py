"""Checksums of parts, as declared when their uploads were signed."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from kit.data.database import Transaction

from ..tables import file_parts


async def declare(tx: Transaction, file_id: UUID, checksums: Mapping[int, bytes]) -> None:
    """Record the checksums by the parts' numbers, in place of earlier ones. Raises IntegrityError when there is no such file."""
    rows = [{"file_id": file_id, "number": number, "sha256": sha256} for number, sha256 in sorted(checksums.items())]
    adding = insert(file_parts).values(rows)
    await tx.execute(
        adding.on_conflict_do_update(index_elements=["file_id", "number"], set_={"sha256": adding.excluded.sha256})
    )


async def declared(tx: Transaction, file_id: UUID) -> Mapping[int, bytes]:
    """Return the checksums by the parts' numbers."""
    query = select(file_parts.c.number, file_parts.c.sha256).where(file_parts.c.file_id == file_id)
    return {row.number: bytes(row.sha256) for row in await tx.execute(query)}


async def forget(tx: Transaction, file_id: UUID) -> None:
    """Delete the checksums of a file that is uploaded."""
    await tx.execute(delete(file_parts).where(file_parts.c.file_id == file_id))
