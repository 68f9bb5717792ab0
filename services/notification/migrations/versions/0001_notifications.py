"""Notifications and the record of mails."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("story_id", sa.Uuid),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("read_at", moment),
    )
    op.create_index("notifications_by_user", "notifications", ["user_id", "id"])
    op.create_table(
        "mails",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("template", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("changed_at", moment, nullable=False),
        sa.CheckConstraint(
            "state IN ('WAITING', 'SENDING', 'SENT', 'REFUSED', 'EXPIRED', 'UNKNOWN')", name="mails_state_known"
        ),
    )


def downgrade() -> None:
    for table in ("mails", "notifications"):
        op.drop_table(table)
