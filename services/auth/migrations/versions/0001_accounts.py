"""Accounts, pending registrations, sessions and signing keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("email_canonical", sa.Text, nullable=False),
        sa.Column("username", sa.Text),
        sa.Column("username_canonical", sa.Text),
        sa.Column("first_name", sa.Text, nullable=False),
        sa.Column("last_name", sa.Text, nullable=False),
        sa.Column("preferences", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("password_changed_at", moment, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.CheckConstraint("role IN ('USER', 'ADMIN')", name="users_role_known"),
        sa.UniqueConstraint("email_canonical", name="users_email_unique"),
        sa.UniqueConstraint("username_canonical", name="users_username_unique"),
    )
    op.create_table(
        "registrations",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("email_canonical", sa.Text, nullable=False),
        sa.Column("username", sa.Text),
        sa.Column("first_name", sa.Text, nullable=False),
        sa.Column("last_name", sa.Text, nullable=False),
        sa.Column("preferences", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
    )
    op.create_index("registrations_by_email", "registrations", ["email_canonical"])
    op.create_index("registrations_by_expiry", "registrations", ["expires_at"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("device_name", sa.Text, nullable=False),
        sa.Column("user_agent", sa.Text, nullable=False),
        sa.Column("ip", sa.Text, nullable=False),
        sa.Column("methods", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("last_used_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("ends_at", moment, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("token_digest", sa.LargeBinary, nullable=False),
        sa.Column("rotated_at", moment, nullable=False),
        sa.Column("repeats", sa.Integer, nullable=False),
        sa.Column("revoked_at", moment),
        sa.Column("revoke_reason", sa.Text),
        sa.CheckConstraint("(revoked_at IS NULL) = (revoke_reason IS NULL)", name="sessions_revoked_for_a_reason"),
    )
    op.create_index("sessions_by_user", "sessions", ["user_id"])
    op.create_index("sessions_by_expiry", "sessions", ["expires_at"])
    op.create_index(
        "sessions_by_revocation", "sessions", ["revoked_at"], postgresql_where=sa.text("revoked_at IS NOT NULL")
    )
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("public_jwk", postgresql.JSONB, nullable=False),
        sa.Column("sealed_private_key", sa.LargeBinary),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("activated_at", moment),
        sa.Column("retired_at", moment),
        sa.CheckConstraint("state IN ('PENDING', 'ACTIVE', 'RETIRED')", name="signing_keys_state_known"),
        sa.CheckConstraint(
            "(state = 'RETIRED') = (sealed_private_key IS NULL)", name="signing_keys_private_until_retired"
        ),
    )
    # At most one key in each of these states, even when several replicas act at the same time.
    for state in ("PENDING", "ACTIVE"):
        op.create_index(
            f"signing_keys_one_{state.lower()}",
            "signing_keys",
            ["state"],
            unique=True,
            postgresql_where=sa.text(f"state = '{state}'"),
        )


def downgrade() -> None:
    for table in ("signing_keys", "sessions", "registrations", "users"):
        op.drop_table(table)
