"""The notification service's tables."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid, text

metadata = MetaData()

notifications = Table(
    "notifications",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("story_id", Uuid),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("read_at", DateTime(timezone=True)),
    Index("notifications_by_user", "user_id", "id"),
)

mails = Table(
    "mails",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    # The person to whom the mail goes; null for codes, for which only an address is known, which is not stored.
    Column("user_id", Uuid),
    Column("template", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    Index("mails_by_user", "user_id", postgresql_where=text("user_id IS NOT NULL")),
)
