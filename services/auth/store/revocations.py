"""Revocations: access tokens that must be refused before they expire."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, Text, cast, func, select
from sqlalchemy.dialects.postgresql import insert as insert_into

from kit.data.database import Transaction
from kit.identity.revocations import Revocation, RevocationKind

from ..tables import revocations
from .batches import delete_some

CHANNEL = "revocations"
"""NOTIFY channel that wakes the feed of every replica. The payload is empty, so Postgres merges notifications of a transaction."""


async def insert(tx: Transaction, added: Sequence[Revocation]) -> None:
    """Insert a revocation. The commit wakes the feed."""
    if not added:
        return
    statement = insert_into(revocations).values(
        [
            {
                "kind": each.kind,
                "value": each.value,
                "expires_at": each.expires_at,
                "before_epoch": each.before_epoch,
                "excepted_session_id": each.excepted,
            }
            for each in added
        ]
    )
    statement = statement.on_conflict_do_update(
        index_elements=["kind", "value"],
        set_={
            "expires_at": statement.excluded.expires_at,
            # A person's later revocation covers the former one: epochs only grow, and a null epoch ends all.
            "before_epoch": statement.excluded.before_epoch,
            "excepted_session_id": statement.excluded.excepted_session_id,
            "transaction": _number(func.pg_current_xact_id()),
        },
    )
    await tx.execute(statement)
    await tx.execute(select(func.pg_notify(CHANNEL, "")))


async def since(tx: Transaction, horizon: int, now: datetime) -> tuple[int, Sequence[Revocation]]:
    """The revocations committed since the horizon (0: all in force), and the next horizon.

    Rows become visible in the order of commits, which no sequence reflects. Every transaction below the horizon (the oldest one
    that was running) had ended when the horizon was read, so whatever commits later is at or above it. Some rows are returned
    twice.
    """
    taken: int = (await tx.execute(select(_number(func.pg_snapshot_xmin(func.pg_current_snapshot()))))).scalar_one()
    query = select(revocations).where(revocations.c.transaction >= horizon, revocations.c.expires_at > now)
    rows = (await tx.execute(query)).mappings()
    return taken, [
        Revocation(
            RevocationKind(row["kind"]),
            row["value"],
            row["expires_at"],
            row["before_epoch"],
            row["excepted_session_id"],
        )
        for row in rows
    ]


async def delete_expired(tx: Transaction, now: datetime) -> int:
    return await delete_some(tx, revocations, revocations.c.expires_at <= now)


def _number(transaction: ColumnElement[object]) -> ColumnElement[int]:
    """A 64-bit transaction id as a number. It never wraps, and Postgres casts it to a number only through text."""
    return cast(cast(transaction, Text), BigInteger)
