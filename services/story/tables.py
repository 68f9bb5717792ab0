"""The story service's tables."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

metadata = MetaData()

stories = Table(
    "stories",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("request_id", Text),
    Column("request_digest", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("preferences", ARRAY(Text), nullable=False),
    Column("theme", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("length", Text, nullable=False),
    Column("language", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("writer", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("failure_reason", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("completed_at", DateTime(timezone=True)),
    Column("dispatched_at", DateTime(timezone=True), nullable=False),
    Column("leased_until", DateTime(timezone=True)),
    # The time of the request, or of the latest retry.
    Column("queued_at", DateTime(timezone=True)),
    # The end of the pause after a failed attempt: no attempt begins before. NULL without a pause.
    Column("available_at", DateTime(timezone=True)),
    # A story with a deleted_at is hidden from everybody; its progress in Redis is removed first, then the row.
    Column("deleted_at", DateTime(timezone=True)),
    Index("stories_by_owner", "owner_id", "id"),
    Index("stories_by_request", "owner_id", "request_id", unique=True),
    Index("stories_unfinished", "state", "id", postgresql_where=text("state IN ('QUEUED', 'RUNNING')")),
    Index("stories_by_state", "owner_id", "state", "id"),
    Index("stories_by_completion", "completed_at", postgresql_where=text("state = 'COMPLETED'")),
    Index("stories_to_delete", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
)

# The link of a story. Deleted with the story, in whatever way that goes.
story_links = Table(
    "story_links",
    metadata,
    Column("story_id", Uuid, ForeignKey(stories.c.id, ondelete="CASCADE"), primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    # Signed, it is the token. Another one for each link that the story has had.
    Column("id", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("revoked_at", DateTime(timezone=True)),
    Index("story_links_by_id", "id", unique=True),
    Index("story_links_by_owner", "owner_id", "id"),
    Index("story_links_by_end", "expires_at", postgresql_where=text("revoked_at IS NULL")),
)

# The requests that count towards quotas. A table of its own, because a deleted story still counts and a retry counts again.
admissions = Table(
    "admissions",
    metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("admitted_at", DateTime(timezone=True), nullable=False),
    Index("admissions_by_owner", "owner_id", "admitted_at"),
    Index("admissions_by_time", "admitted_at"),
)
