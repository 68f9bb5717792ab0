"""Targets, groups and numbered changes of the notifications inside the application.

Only adds: the former version goes on to write notifications, which have no number and appear in lists alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    place = sa.text("coalesce(latest_id, id)")
    for column in (
        sa.Column("target_type", sa.Text),
        sa.Column("target_id", sa.Uuid),
        sa.Column("grouped", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("actors", postgresql.JSONB, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("actor_count", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("latest_id", sa.Uuid),
        sa.Column("updated_at", moment),
    ):
        op.add_column("notifications", column)
    op.create_index("notifications_by_place", "notifications", ["user_id", place])
    op.create_index(
        "notifications_unread", "notifications", ["user_id", place], postgresql_where=sa.text("read_at IS NULL")
    )
    op.create_index(
        "notifications_open_groups",
        "notifications",
        ["user_id", "type", "target_type", "target_id"],
        unique=True,
        postgresql_where=sa.text("grouped AND read_at IS NULL"),
    )
    op.create_index("notifications_by_age", "notifications", [sa.text("coalesce(updated_at, created_at)")])
    op.create_table(
        "notification_actors",
        sa.Column("notification_id", sa.Uuid, sa.ForeignKey("notifications.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("actor_id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("latest_id", sa.Uuid, nullable=False),
    )
    op.create_index("notification_actors_latest", "notification_actors", ["notification_id", "latest_id"])
    op.create_index("notification_actors_by_actor", "notification_actors", ["actor_id"])
    op.create_table(
        "notification_heads",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "notification_changes",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("change", sa.Text, nullable=False),
        sa.Column("notification_id", sa.Uuid),
        sa.Column("unread", sa.Integer, nullable=False),
        sa.Column("occurred_at", moment, nullable=False),
        sa.Column("before_at", moment),
    )
    op.create_index("notification_changes_by_age", "notification_changes", ["occurred_at"])


def downgrade() -> None:
    for table in ("notification_changes", "notification_heads", "notification_actors"):
        op.drop_table(table)
    for index in ("by_age", "open_groups", "unread", "by_place"):
        op.drop_index(f"notifications_{index}", "notifications")
    for column in ("updated_at", "latest_id", "actor_count", "actors", "grouped", "target_id", "target_type"):
        op.drop_column("notifications", column)
