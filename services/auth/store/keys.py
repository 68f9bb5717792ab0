"""The signing keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction

from ..model import KeyState, SigningKey
from ..tables import signing_keys


async def all_of(tx: Transaction) -> Sequence[SigningKey]:
    """All keys, newest first."""
    query = select(signing_keys).order_by(signing_keys.c.created_at.desc(), signing_keys.c.kid)
    return [_key(row) for row in (await tx.execute(query)).mappings()]


async def lock(tx: Transaction) -> Sequence[SigningKey]:
    """Serialize changes of the key states, also when there is no key yet."""
    await tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('signing_keys', 0))"))
    return await all_of(tx)


async def insert(tx: Transaction, key: SigningKey) -> None:
    """Insert the key, unless one in its state exists: PENDING and ACTIVE are unique."""
    statement = insert_into(signing_keys).values(
        kid=key.kid,
        state=key.state,
        public_jwk=key.public_jwk,
        sealed_private_key=key.sealed_private_key,
        created_at=key.created_at,
        activated_at=key.activated_at,
    )
    await tx.execute(statement.on_conflict_do_nothing())


async def set_due(tx: Transaction, kid: str, due_at: datetime) -> None:
    await tx.execute(update(signing_keys).where(signing_keys.c.kid == kid).values(due_at=due_at))


async def activate(tx: Transaction, kid: str, now: datetime) -> None:
    statement = update(signing_keys).where(signing_keys.c.kid == kid)
    await tx.execute(statement.values(state=KeyState.ACTIVE, activated_at=now))


async def retire(tx: Transaction, kid: str, now: datetime) -> None:
    """Retire the key and erase its private half."""
    statement = update(signing_keys).where(signing_keys.c.kid == kid)
    await tx.execute(statement.values(state=KeyState.RETIRED, retired_at=now, sealed_private_key=None))


async def drop(tx: Transaction, kid: str) -> None:
    await tx.execute(delete(signing_keys).where(signing_keys.c.kid == kid))


async def delete_retired(tx: Transaction, before: datetime) -> int:
    return (await tx.execute(delete(signing_keys).where(signing_keys.c.retired_at < before))).rowcount


def _key(row: RowMapping) -> SigningKey:
    return SigningKey(
        kid=row["kid"],
        state=KeyState(row["state"]),
        public_jwk=row["public_jwk"],
        sealed_private_key=row["sealed_private_key"],
        created_at=row["created_at"],
        activated_at=row["activated_at"],
        due_at=row["due_at"],
        retired_at=row["retired_at"],
    )
