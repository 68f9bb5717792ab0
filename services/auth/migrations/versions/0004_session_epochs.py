"""Epochs of sessions: one number ends all sessions of an account at once."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("users", sa.Column("session_epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("users", sa.Column("kept_session_id", sa.Uuid))
    op.add_column("users", sa.Column("unmarked_reason", sa.Text))
    op.create_index(
        "users_with_unmarked_sessions", "users", ["id"], postgresql_where=sa.text("unmarked_reason IS NOT NULL")
    )
    op.add_column("sessions", sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.drop_index("sessions_by_user", "sessions")
    op.create_index("sessions_by_user", "sessions", ["user_id", "id"])
    op.create_index(
        "sessions_unrevoked", "sessions", ["user_id", "last_used_at"], postgresql_where=sa.text("revoked_at IS NULL")
    )
    op.add_column("revocations", sa.Column("before_epoch", sa.BigInteger))
    op.add_column("revocations", sa.Column("excepted_session_id", sa.Uuid))
    op.create_table("audit_erasures", sa.Column("subject_id", sa.Uuid, primary_key=True))
    # A trigger and not a statement of the service, because replicas of the version before also open sessions and know no epochs.
    op.execute(
        """
        CREATE FUNCTION give_session_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          SELECT session_epoch INTO NEW.epoch FROM users WHERE id = NEW.user_id;
          NEW.epoch := coalesce(NEW.epoch, 0);
          RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER give_session_epoch BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION give_session_epoch()"
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION give_session_epoch CASCADE")
    op.drop_table("audit_erasures")
    op.drop_column("revocations", "excepted_session_id")
    op.drop_column("revocations", "before_epoch")
    op.drop_index("sessions_unrevoked", "sessions")
    op.drop_index("sessions_by_user", "sessions")
    op.create_index("sessions_by_user", "sessions", ["user_id"])
    op.drop_column("sessions", "epoch")
    op.drop_index("users_with_unmarked_sessions", "users")
    for column in ("unmarked_reason", "kept_session_id", "session_epoch"):
        op.drop_column("users", column)
