"""What people want to be told, how and when; which digest a mail waits for; when mails went out to a person."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "preferences",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("time_zone", sa.Text, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("paused_until", moment),
        sa.Column("quiet_start", sa.Time),
        sa.Column("quiet_end", sa.Time),
        sa.Column("digest_time", sa.Time, nullable=False),
        sa.Column("digest_weekday", sa.SmallInteger, nullable=False),
        sa.Column("mails_per_day", sa.Integer, nullable=False),
        sa.Column("choices", JSONB, nullable=False),
        sa.Column("changed_at", moment, nullable=False),
        sa.CheckConstraint("(quiet_start IS NULL) = (quiet_end IS NULL)", name="preferences_quiet_hours_whole"),
    )
    op.create_table(
        "counted_mails",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("sent_at", moment, nullable=False),
    )
    op.create_table(
        "digest_items",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("digest_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
    )
    op.create_index("digest_items_by_digest", "digest_items", ["digest_id"])
    op.create_index("digest_items_by_user", "digest_items", ["user_id"])


def downgrade() -> None:
    for table in ("digest_items", "counted_mails", "preferences"):
        op.drop_table(table)
