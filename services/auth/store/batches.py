"""Deleting what may be many rows, some at a time: no transaction grows with them, and none keeps others waiting."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, delete, select, tuple_

from kit.data.database import Transaction

MOST = 1000
"""Rows that one transaction writes of something that has no bound."""


async def delete_some(tx: Transaction, table: Table, which: ColumnElement[bool]) -> int:
    """How many; fewer than MOST when none are left."""
    key = list(table.primary_key)
    some = select(*key).where(which).limit(MOST)
    return (await tx.execute(delete(table).where(tuple_(*key).in_(some), which))).rowcount
