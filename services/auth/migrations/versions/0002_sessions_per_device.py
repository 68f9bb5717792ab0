"""Challenges, revocations, the audit log, and passwords that are disabled."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("users", sa.Column("password_disabled_at", moment))
    op.add_column("signing_keys", sa.Column("due_at", moment))
    op.create_table(
        "challenges",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("email", sa.Text),
        sa.Column("expires_at", moment, nullable=False),
        sa.CheckConstraint("(user_id IS NULL) = (email IS NULL)", name="challenges_of_nobody_keep_no_address"),
    )
    op.create_index("challenges_by_user", "challenges", ["user_id"])
    op.create_index("challenges_by_expiry", "challenges", ["expires_at"])
    # Id of the transaction that wrote the row: readers ask for what was committed since, which a sequence cannot tell them.
    op.create_table(
        "revocations",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column(
            "transaction", sa.BigInteger, nullable=False, server_default=sa.text("pg_current_xact_id()::text::bigint")
        ),
        sa.CheckConstraint("kind IN ('session', 'user', 'key')", name="revocations_kind_known"),
    )
    op.create_index("revocations_by_transaction", "revocations", ["transaction"])
    op.create_index("revocations_by_expiry", "revocations", ["expires_at"])
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("occurred_at", moment, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor_id", sa.Uuid),
        sa.Column("subject_id", sa.Uuid),
        sa.Column("session_id", sa.Uuid),
        sa.Column("ip", sa.Text, nullable=False),
        sa.Column("user_agent", sa.Text, nullable=False),
    )
    op.create_index("audit_entries_by_subject", "audit_entries", ["subject_id", "occurred_at"])
    op.create_index("audit_entries_by_actor", "audit_entries", ["actor_id"])
    op.create_index("audit_entries_by_time", "audit_entries", ["occurred_at"])
    # The audit log is append-only, also for wrong or injected statements of the service: an entry can only lose its address and
    # agent, when its account is deleted, and only old entries can be deleted.
    op.execute(
        """
        CREATE FUNCTION keep_audit_entries() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF TG_OP = 'DELETE' THEN
            IF OLD.occurred_at > now() - interval '90 days' THEN
              RAISE EXCEPTION 'audit entries are kept for 90 days at least';
            END IF;
            RETURN OLD;
          END IF;
          IF NEW.ip <> '' OR NEW.user_agent <> ''
            OR (NEW.id, NEW.occurred_at, NEW.action, NEW.reason, NEW.actor_id, NEW.subject_id, NEW.session_id)
              IS DISTINCT FROM
              (OLD.id, OLD.occurred_at, OLD.action, OLD.reason, OLD.actor_id, OLD.subject_id, OLD.session_id) THEN
            RAISE EXCEPTION 'audit entries are not changed';
          END IF;
          RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER keep_audit_entries BEFORE UPDATE OR DELETE ON audit_entries "
        "FOR EACH ROW EXECUTE FUNCTION keep_audit_entries()"
    )


def downgrade() -> None:
    op.drop_table("audit_entries")
    op.execute("DROP FUNCTION keep_audit_entries")
    op.drop_table("revocations")
    op.drop_table("challenges")
    op.drop_column("signing_keys", "due_at")
    op.drop_column("users", "password_disabled_at")
