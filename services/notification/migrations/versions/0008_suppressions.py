"""Suppressed addresses, the digest of the address to which a mail went, and the content of mails of unknown outcome.

Only adds and allows more: the version before writes neither column nor table, and deletes the content itself.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "suppressions",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("address_digest", sa.LargeBinary, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("address_digest", name="suppressions_once"),
        sa.CheckConstraint("reason IN ('NO_ADDRESS', 'MAILBOX')", name="suppressions_reason_known"),
        sa.CheckConstraint("source IN ('ANSWER', 'REPORT', 'PROVIDER')", name="suppressions_source_known"),
    )
    op.create_index(
        "suppressions_by_user", "suppressions", ["user_id", "id"], postgresql_where=sa.text("user_id IS NOT NULL")
    )
    op.add_column("deliveries", sa.Column("address_digest", sa.LargeBinary))
    op.drop_constraint("deliveries_event_kept", "deliveries")
    op.create_check_constraint(
        "deliveries_event_kept",
        "deliveries",
        "state = 'UNKNOWN' OR (event IS NOT NULL) = (state IN ('QUEUED', 'SENDING'))",
    )


def downgrade() -> None:
    op.execute("UPDATE deliveries SET event = NULL WHERE state = 'UNKNOWN'")
    op.drop_constraint("deliveries_event_kept", "deliveries")
    op.create_check_constraint(
        "deliveries_event_kept", "deliveries", "(event IS NOT NULL) = (state IN ('QUEUED', 'SENDING'))"
    )
    op.drop_column("deliveries", "address_digest")
    op.drop_table("suppressions")
