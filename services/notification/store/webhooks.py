"""Webhooks, of people and of the installation, whose owner is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Uuid, bindparam, cast, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model import Kind
from ..model.webhooks import DisableReason, Webhook
from ..tables import webhooks

# Built once, because each notice that goes by webhook runs the first one, and building takes longer than sending it to Postgres.

_row = webhooks.c
_FOR_PERSON = (
    select(webhooks)
    .where((_row.user_id == bindparam("person", type_=Uuid)) | _row.user_id.is_(None))
    .order_by(_row.user_id.is_(None), _row.id)
)
_FIND = select(webhooks).where(_row.id == bindparam("webhook", type_=Uuid))
_LOCK = _FIND.with_for_update()


def _owned_by(user_id: UUID | None) -> ColumnElement[bool]:
    return _row.user_id.is_(None) if user_id is None else _row.user_id == user_id


async def insert_one(tx: Transaction, webhook: Webhook, most: int) -> bool:
    """Insert a webhook at a free place of its owner. False if none of `most` was free, or another call took it meanwhile."""
    place = func.generate_series(0, literal(most - 1, Integer)).column_valued("free_place")
    taken = select(_row.id).where(_owned_by(webhook.user_id), _row.place == place).exists()
    values = _values(webhook)
    row = select(place, *(cast(literal(value, _row[name].type), _row[name].type) for name, value in values.items()))
    statement = insert(webhooks).from_select(["place", *values], row.where(~taken).order_by(place).limit(1))
    inserted = statement.on_conflict_do_nothing().returning(_row.id)
    return await tx.scalar(inserted) is not None


async def count(tx: Transaction, user_id: UUID | None) -> int:
    return int(await tx.scalar(select(func.count()).where(_owned_by(user_id))) or 0)


async def for_person(tx: Transaction, user_id: UUID) -> Sequence[Webhook]:
    """The webhooks that a notice to the person concerns, which are few: theirs, then the installation's, all enabled or not."""
    return [_webhook(row) for row in (await tx.execute(_FOR_PERSON, {"person": user_id})).mappings()]


async def find(tx: Transaction, webhook_id: UUID) -> Webhook | None:
    row = (await tx.execute(_FIND, {"webhook": webhook_id})).mappings().one_or_none()
    return _webhook(row) if row else None


async def lock(tx: Transaction, webhook_id: UUID) -> Webhook | None:
    row = (await tx.execute(_LOCK, {"webhook": webhook_id})).mappings().one_or_none()
    return _webhook(row) if row else None


async def save(tx: Transaction, webhook: Webhook) -> None:
    """Write every column of a locked webhook."""
    await tx.execute(update(webhooks).where(_row.id == webhook.id).values(**_values(webhook)))


async def remove(tx: Transaction, user_id: UUID | None, webhook_id: UUID) -> bool:
    """Delete the owner's webhook. False if there is none."""
    mine = (_row.id == webhook_id, _owned_by(user_id))
    return (await tx.execute(delete(webhooks).where(*mine))).rowcount == 1


async def page(tx: Transaction, user_id: UUID | None, request: PageRequest) -> Sequence[Webhook]:
    """The owner's webhooks, newest first: one more than `size` if there are more."""
    query = select(webhooks).where(_owned_by(user_id)).order_by(_row.id.desc()).limit(request.size + 1)
    if request.before:
        query = query.where(_row.id < request.before)
    return [_webhook(row) for row in (await tx.execute(query)).mappings()]


def _values(webhook: Webhook) -> Mapping[str, Any]:
    return asdict(webhook) | {"kinds": sorted(webhook.kinds)}


def _webhook(row: RowMapping) -> Webhook:
    values = {name: value for name, value in row.items() if name != "place"}
    # A later version may have stored kinds that this one does not know; none of its notices has them.
    kinds = frozenset(Kind(name) for name in row["kinds"] if name in Kind.__members__)
    disabled = row["disabled"] and DisableReason(row["disabled"])
    return Webhook(**values | {"kinds": kinds, "disabled": disabled})
