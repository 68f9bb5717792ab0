"""Deletes many rows in batches, so that no transaction grows with them or blocks others for long."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, delete, select, tuple_

from kit.data.database import Transaction

MOST = 1000
"""Rows that one transaction writes at most, where their number is unbounded."""


async def delete_some(tx: Transaction, table: Table, which: ColumnElement[bool]) -> int:
    """Delete at most MOST rows and return how many; fewer than MOST means that none is left."""
    key = list(table.primary_key)
    some = select(*key).where(which).limit(MOST)
    return (await tx.execute(delete(table).where(tuple_(*key).in_(some), which))).rowcount
