"""Webhooks of the installation, and what administrators did to them. The version before sees people's webhooks alone, as ever."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.alter_column("webhooks", "user_id", nullable=True)
    op.create_index(
        "webhooks_few_of_the_installation",
        "webhooks",
        ["place"],
        unique=True,
        postgresql_where=sa.text("user_id IS NULL"),
    )
    op.create_index("deliveries_by_target", "deliveries", ["target", "id"], postgresql_where=sa.text("target <> ''"))
    op.drop_constraint("deliveries_event_kept", "deliveries")
    op.create_check_constraint(
        "deliveries_event_kept",
        "deliveries",
        "state = 'UNKNOWN' OR (target <> '' AND state IN ('FAILED', 'SUPPRESSED'))"
        " OR (event IS NOT NULL) = (state IN ('QUEUED', 'SENDING'))",
    )
    op.create_table(
        "webhook_acts",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("webhook_id", sa.Uuid, nullable=False),
        sa.Column("actor_id", sa.Uuid),
        sa.Column("act", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("webhook_acts_by_webhook", "webhook_acts", ["webhook_id", "id"])
    op.create_index("webhook_acts_by_actor", "webhook_acts", ["actor_id"])


def downgrade() -> None:
    op.drop_table("webhook_acts")
    op.execute("UPDATE deliveries SET event = NULL WHERE state IN ('FAILED', 'SUPPRESSED')")
    op.drop_constraint("deliveries_event_kept", "deliveries")
    op.create_check_constraint(
        "deliveries_event_kept",
        "deliveries",
        "state = 'UNKNOWN' OR (event IS NOT NULL) = (state IN ('QUEUED', 'SENDING'))",
    )
    op.drop_index("deliveries_by_target", "deliveries")
    op.drop_index("webhooks_few_of_the_installation", "webhooks")
    op.execute("DELETE FROM webhooks WHERE user_id IS NULL")
    op.alter_column("webhooks", "user_id", nullable=False)
