"""Decisions about dead letters, and what is known of Redis' memory."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "redis_memories",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("repeat_since", moment),
        sa.Column("repeat_before", moment),
        sa.Column("repeat_after", sa.BigInteger),
        sa.Column("repeated_at", moment),
    )
    op.add_column("dead_letters", sa.Column("inbox", sa.Text))
    op.add_column("dead_letters", sa.Column("settled_at", moment))
    op.add_column("dead_letters", sa.Column("settlement", sa.Text))
    op.add_column("dead_letters", sa.Column("settled_by", sa.Uuid))
    op.add_column("dead_letters", sa.Column("settled_because", sa.Text))
    op.add_column("dead_letters", sa.Column("returned_at", moment))
    op.create_index(
        "dead_letters_unsettled",
        "dead_letters",
        ["died_at", "event_id"],
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_index(
        "dead_letters_to_return",
        "dead_letters",
        ["settled_at"],
        postgresql_where=sa.text("settlement = 'REPLAYED' AND returned_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("dead_letters_to_return", "dead_letters")
    op.drop_index("dead_letters_unsettled", "dead_letters")
    for column in ("returned_at", "settled_because", "settled_by", "settlement", "settled_at", "inbox"):
        op.drop_column("dead_letters", column)
    op.drop_table("redis_memories")
