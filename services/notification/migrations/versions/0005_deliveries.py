"""Deliveries and their steps. Only adds: the version before goes on with `mails`."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("unknowns", sa.Integer, nullable=False),
        sa.Column("urgent", sa.Boolean, nullable=False),
        sa.Column("event", sa.LargeBinary),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("leased_until", moment),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("changed_at", moment, nullable=False),
        sa.UniqueConstraint("event_id", "channel", "target", name="deliveries_once"),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'SENDING', 'SENT', 'UNKNOWN', 'FAILED', 'SUPPRESSED', 'EXPIRED')",
            name="deliveries_state_known",
        ),
        sa.CheckConstraint("(event IS NOT NULL) = (state IN ('QUEUED', 'SENDING'))", name="deliveries_event_kept"),
    )
    queued, sending, named = (
        sa.text(condition) for condition in ("state = 'QUEUED'", "state = 'SENDING'", "user_id IS NOT NULL")
    )
    op.create_index("deliveries_due", "deliveries", ["urgent", "due_at"], postgresql_where=queued)
    op.create_index("deliveries_sending", "deliveries", ["leased_until"], postgresql_where=sending)
    op.create_index("deliveries_by_user", "deliveries", ["user_id", "id"], postgresql_where=named)
    op.create_table(
        "delivery_steps",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("occurred_at", moment, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("delivery_steps_by_event", "delivery_steps", ["event_id"])
    op.create_index("delivery_steps_by_user", "delivery_steps", ["user_id", "id"], postgresql_where=named)


def downgrade() -> None:
    for table in ("delivery_steps", "deliveries"):
        op.drop_table(table)
