"""The social service's tables."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)

metadata = MetaData()

# A deleted profile keeps its row, without handle and texts, until the account is deleted: no event makes another profile then.
profiles = Table(
    "profiles",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    Column("state", Text, nullable=False),
    # NULL unless the profile is active. Unique; a former one is reserved in former_handles.
    Column("handle", Text, unique=True),
    Column("display_name", Text, nullable=False),
    Column("bio", Text, nullable=False),
    Column("private", Boolean, nullable=False),
    Column("message_policy", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # A file that this service has claimed at the file service.
    Column("avatar_file_id", Uuid),
    Column("avatar_showing_id", Uuid),
    Index("profiles_by_avatar", "avatar_file_id", postgresql_where=text("avatar_file_id IS NOT NULL")),
)

# Handles that nobody but their former owner may take yet, as keyed digests: a former name is nobody's to read.
former_handles = Table(
    "former_handles",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    # NULL when the owner's account was deleted: nobody may take it.
    Column("owner_id", Uuid),
    Column("free_at", DateTime(timezone=True), nullable=False),
    Index("former_handles_by_owner", "owner_id"),
    Index("former_handles_by_end", "free_at"),
)

# A table of its own, because a profile that is deleted and made anew must not allow more changes.
handle_changes = Table(
    "handle_changes",
    metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    Index("handle_changes_by_user", "user_id", "changed_at"),
    Index("handle_changes_by_time", "changed_at"),
)


def _stances(name: str) -> Table:
    """Columns of the two tables of stances: user_id blocks or mutes subject_id. `id` is the order of the person's list."""
    return Table(
        name,
        metadata,
        Column("user_id", Uuid, primary_key=True),
        Column("subject_id", Uuid, primary_key=True),
        Column("id", Uuid, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False),
        CheckConstraint("user_id <> subject_id", name=f"{name}_of_others"),
        Index(f"{name}_by_id", "user_id", "id"),
        Index(f"{name}_by_subject", "subject_id"),
    )


blocks = _stances("blocks")
mutes = _stances("mutes")
