"""The auth service's tables."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()

EMAIL_UNIQUE = "users_email_unique"
USERNAME_UNIQUE = "users_username_unique"

users = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("email", Text, nullable=False),
    Column("email_canonical", Text, nullable=False),
    Column("username", Text),
    Column("username_canonical", Text),
    Column("first_name", Text, nullable=False),
    Column("last_name", Text, nullable=False),
    Column("preferences", ARRAY(Text), nullable=False),
    Column("role", Text, nullable=False),
    # Null: the account signs in by mailed codes only.
    Column("password_hash", Text),
    Column("password_changed_at", DateTime(timezone=True), nullable=False),
    Column("password_disabled_at", DateTime(timezone=True)),
    # Incremented with every change of what proofs protect: proofs of an earlier epoch are void.
    Column("proof_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # Sessions of an earlier epoch have ended, except the one that was kept.
    Column("session_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("kept_session_id", Uuid),
    # Why the sessions ended, until all of their rows are marked with it.
    Column("unmarked_reason", Text),
    Index("users_with_unmarked_sessions", "id", postgresql_where=text("unmarked_reason IS NOT NULL")),
    UniqueConstraint("email_canonical", name=EMAIL_UNIQUE),
    UniqueConstraint("username_canonical", name=USERNAME_UNIQUE),
)

registrations = Table(
    "registrations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("email", Text, nullable=False),
    Column("email_canonical", Text, nullable=False),
    Column("username", Text),
    Column("first_name", Text, nullable=False),
    Column("last_name", Text, nullable=False),
    Column("preferences", ARRAY(Text), nullable=False),
    Column("password_hash", Text),
    # Usernames, in canonical form, that were tried at completion and belong to others.
    Column("usernames_refused", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("registrations_by_email", "email_canonical"),
    Index("registrations_by_expiry", "expires_at"),
)

challenges = Table(
    "challenges",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("purpose", Text, nullable=False),
    # Both are null for an address without an account, which is not stored.
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE")),
    Column("email", Text),
    # The account's proof epoch when the code was requested.
    Column("proof_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("challenges_by_user", "user_id"),
    Index("challenges_by_expiry", "expires_at"),
)

email_change_stops = Table(
    "email_change_stops",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    # The account's address before the change.
    Column("email", Text, nullable=False),
    # SHA-256 of the mailed token, which has 256 random bits.
    Column("token_digest", LargeBinary, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("email_change_stops_by_user", "user_id", "created_at"),
    Index("email_change_stops_by_expiry", "expires_at"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("device_name", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    Column("ip", Text, nullable=False),
    Column("methods", ARRAY(Text), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("last_used_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("ends_at", DateTime(timezone=True), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("token_digest", LargeBinary, nullable=False),
    Column("rotated_at", DateTime(timezone=True), nullable=False),
    Column("repeats", Integer, nullable=False),
    Column("late_generation", Integer, nullable=False, server_default=text("0")),
    Column("late_repeats", Integer, nullable=False, server_default=text("0")),
    Column("refreshed_until", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("revoke_reason", Text),
    # The account's epoch at the sign-in, set by a trigger (migration 0004).
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Index("sessions_by_user", "user_id", "id"),
    Index("sessions_unrevoked", "user_id", "last_used_at", postgresql_where=text("revoked_at IS NULL")),
    Index("sessions_by_expiry", "expires_at"),
    Index("sessions_by_revocation", "revoked_at", postgresql_where=text("revoked_at IS NOT NULL")),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("public_jwk", JSONB, nullable=False),
    Column("sealed_private_key", LargeBinary),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("activated_at", DateTime(timezone=True)),
    Column("due_at", DateTime(timezone=True)),
    Column("retired_at", DateTime(timezone=True)),
    Index("signing_keys_one_active", "state", unique=True, postgresql_where=text("state = 'ACTIVE'")),
    Index("signing_keys_one_pending", "state", unique=True, postgresql_where=text("state = 'PENDING'")),
)

revocations = Table(
    "revocations",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    # Revoked are not all of the person's tokens, but those of sessions before this epoch, except one session's.
    Column("before_epoch", BigInteger),
    Column("excepted_session_id", Uuid),
    # The transaction that wrote the row.
    Column("transaction", BigInteger, nullable=False, server_default=text("pg_current_xact_id()::text::bigint")),
    Index("revocations_by_transaction", "transaction"),
    Index("revocations_by_expiry", "expires_at"),
)

audit_erasures = Table(
    "audit_erasures",
    metadata,
    # Accounts that were deleted and whose entries still hold addresses and agents.
    Column("subject_id", Uuid, primary_key=True),
)

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("action", Text, nullable=False),
    # The reason of the refusal; empty when the action succeeded.
    Column("reason", Text, nullable=False),
    Column("actor_id", Uuid),
    Column("subject_id", Uuid),
    Column("session_id", Uuid),
    Column("ip", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    Index("audit_entries_by_subject", "subject_id", "occurred_at"),
    Index("audit_entries_by_actor", "actor_id"),
    Index("audit_entries_by_time", "occurred_at"),
)
