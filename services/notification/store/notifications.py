"""Notifications inside the application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as insert_into

from kit.data.database import Transaction
from kit.data.paging import PageRequest

from ..model import Kind
from ..model.notifications import (
    ACTORS_SHOWN,
    Actor,
    Notification,
    ShortText,
    Target,
    TargetType,
    first_sentences,
)
from ..tables import notification_actors, notifications

# Frequent statements are built once, because SQLAlchemy takes longer to build one than to send it.

_PLACE = func.coalesce(notifications.c.latest_id, notifications.c.id)
_AGE = func.coalesce(notifications.c.updated_at, notifications.c.created_at)

_INSERT = notifications.insert()
_UPDATE = update(notifications).where(notifications.c.id == bindparam("notification"))
_FIND = select(notifications).where(
    notifications.c.id == bindparam("notification"), notifications.c.user_id == bindparam("user")
)
_FIND_OPEN_GROUP = select(notifications).where(
    notifications.c.user_id == bindparam("user"),
    notifications.c.type == bindparam("kind"),
    notifications.c.target_type == bindparam("target_kind"),
    notifications.c.target_id == bindparam("target"),
    notifications.c.grouped,
    notifications.c.read_at.is_(None),
)
_JOIN = _UPDATE.values(
    title=bindparam("new_title"),
    body=bindparam("new_body"),
    language=bindparam("new_language"),
    actors=bindparam("new_actors"),
    actor_count=bindparam("new_count"),
    latest_id=bindparam("new_latest"),
    updated_at=bindparam("now"),
)

_NEW_ACTOR = insert_into(notification_actors)
_ADD_ACTOR = _NEW_ACTOR.on_conflict_do_nothing().returning(notification_actors.c.actor_id)
_RENEW_ACTOR = (
    update(notification_actors)
    .where(
        notification_actors.c.notification_id == bindparam("notification"),
        notification_actors.c.actor_id == bindparam("actor"),
    )
    .values(name=bindparam("new_name"), latest_id=bindparam("occurrence"))
)


async def insert(tx: Transaction, notification: Notification) -> None:
    """Insert a notification; its actors are to be added by `add_actor`."""
    values = {
        "id": notification.id,
        "user_id": notification.user_id,
        "type": notification.type,
        "title": notification.text.title,
        "body": notification.text.body,
        "language": notification.text.language,
        # For the former version, which knows no targets.
        "story_id": notification.target.id if notification.target.type is TargetType.STORY else None,
        "target_type": notification.target.type,
        "target_id": notification.target.id,
        "created_at": notification.created_at,
        "read_at": notification.read_at,
        "grouped": notification.grouped,
        "actors": _stored(notification.actors),
        "actor_count": notification.actor_count,
    }
    await tx.execute(_INSERT, values)


async def save_joined(tx: Transaction, notification: Notification) -> None:
    """Store what `Notification.joined` has changed."""
    values = {
        "notification": notification.id,
        "new_title": notification.text.title,
        "new_body": notification.text.body,
        "new_language": notification.text.language,
        "new_actors": _stored(notification.actors),
        "new_count": notification.actor_count,
        "new_latest": notification.latest_id,
        "now": notification.updated_at,
    }
    await tx.execute(_JOIN, values)


async def add_actor(tx: Transaction, notification_id: UUID, actor: Actor, occurrence: UUID) -> bool:
    """Record that the person has acted. False if they had before."""
    values = {"notification_id": notification_id, "actor_id": actor.id, "name": actor.name, "latest_id": occurrence}
    if (await tx.execute(_ADD_ACTOR, values)).scalar_one_or_none() is not None:
        return True
    renewed = {
        "notification": notification_id,
        "actor": actor.id,
        "new_name": actor.name,
        "occurrence": occurrence,
    }
    await tx.execute(_RENEW_ACTOR, renewed)
    return False


async def find(tx: Transaction, user_id: UUID, notification_id: UUID) -> Notification | None:
    """The person's notification."""
    row = (await tx.execute(_FIND, {"notification": notification_id, "user": user_id})).mappings().one_or_none()
    return notification_of(row) if row else None


async def find_open_group(tx: Transaction, user_id: UUID, kind: Kind, target: Target) -> Notification | None:
    """The unread notification that another occurrence joins. The person's head must be locked."""
    values = {"user": user_id, "kind": kind, "target_kind": target.type, "target": target.id}
    row = (await tx.execute(_FIND_OPEN_GROUP, values)).mappings().one_or_none()
    return notification_of(row) if row else None


async def page(
    tx: Transaction, user_id: UUID, request: PageRequest, *, unread: bool, kind: Kind | None
) -> Sequence[Notification]:
    """The person's notifications, the latest first: one more than `size` if there are more."""
    query = (
        select(notifications).where(notifications.c.user_id == user_id).order_by(_PLACE.desc()).limit(request.size + 1)
    )
    if request.before:
        query = query.where(request.before > _PLACE)
    if unread:
        query = query.where(notifications.c.read_at.is_(None))
    if kind:
        query = query.where(notifications.c.type == kind)
    return [notification_of(row) for row in (await tx.execute(query)).mappings()]


async def mark_read(tx: Transaction, notification_id: UUID, now: datetime) -> None:
    await tx.execute(_UPDATE.values(read_at=bindparam("now")), {"notification": notification_id, "now": now})


async def mark_all_read(tx: Transaction, user_id: UUID, now: datetime) -> int:
    """Mark the person's unread notifications as read, and return how many these were."""
    unread = notifications.c.user_id == user_id, notifications.c.read_at.is_(None)
    return (await tx.execute(update(notifications).where(*unread).values(read_at=now))).rowcount


async def remove(tx: Transaction, notification_id: UUID) -> None:
    await tx.execute(delete(notifications).where(notifications.c.id == notification_id))


async def people_with_expired(tx: Transaction, before: datetime, limit: int) -> set[UUID]:
    """The people of the oldest `limit` notifications whose last occurrence is before the time."""
    query = select(notifications.c.user_id).where(before > _AGE).order_by(_AGE).limit(limit)
    return set((await tx.execute(query)).scalars())


async def remove_expired(tx: Transaction, user_id: UUID, before: datetime) -> int:
    """Remove the person's notifications whose last occurrence is before the time, and return how many these were."""
    expired = notifications.c.user_id == user_id, before > _AGE
    return (await tx.execute(delete(notifications).where(*expired))).rowcount


async def acts(tx: Transaction, actor_id: UUID, limit: int) -> Sequence[tuple[UUID, UUID]]:
    """Some of the notifications that name the person as an actor, each with the id of the person to whom it belongs."""
    query = (
        select(notifications.c.id, notifications.c.user_id)
        .join(notification_actors, notification_actors.c.notification_id == notifications.c.id)
        .where(notification_actors.c.actor_id == actor_id)
        .limit(limit)
    )
    return [(row.id, row.user_id) for row in await tx.execute(query)]


async def remove_actor(tx: Transaction, notification_id: UUID, actor_id: UUID) -> int | None:
    """Remove an actor, and return how many are left; None if the person was none. The head of its owner must be locked."""
    table = notification_actors
    named = table.c.notification_id == notification_id, table.c.actor_id == actor_id
    if not (await tx.execute(delete(table).where(*named))).rowcount:
        return None
    latest = (
        select(table.c.actor_id, table.c.name)
        .where(table.c.notification_id == notification_id)
        .order_by(table.c.latest_id.desc())
        .limit(ACTORS_SHOWN)
    )
    shown = tuple(Actor(row.actor_id, row.name) for row in await tx.execute(latest))
    fewer = _UPDATE.values(actors=bindparam("shown"), actor_count=notifications.c.actor_count - 1)
    values = {"notification": notification_id, "shown": _stored(shown)}
    left: int | None = (await tx.execute(fewer.returning(notifications.c.actor_count), values)).scalar_one_or_none()
    return left


def notification_of(row: Mapping[Any, Any]) -> Notification:
    """The notification in a row of its table."""
    former = row["target_type"] is None
    return Notification(
        id=row["id"],
        user_id=row["user_id"],
        type=Kind(row["type"]),
        text=ShortText(row["title"], first_sentences(row["body"]) if former else row["body"], row["language"]).cut(),
        target=_former_target(row) if former else Target(TargetType(row["target_type"]), row["target_id"]),
        created_at=row["created_at"],
        read_at=row["read_at"],
        grouped=row["grouped"],
        actors=tuple(Actor(UUID(each["id"]), each["name"]) for each in row["actors"]),
        actor_count=row["actor_count"],
        latest_id=row["latest_id"],
        updated_at=row["updated_at"],
    )


def _former_target(row: Mapping[Any, Any]) -> Target:
    if row["story_id"]:
        return Target(TargetType.STORY, row["story_id"])
    return Target(TargetType.ACCOUNT, row["user_id"])


def _stored(actors: Sequence[Actor]) -> list[dict[str, Any]]:
    return [{"id": str(actor.id), "name": actor.name} for actor in actors]
