"""What is known of Redis' memory. Adopts the table of a database that its service's history built."""

import sqlalchemy as sa
from alembic import op

revision = "redis_memory_0001"
down_revision = None
branch_labels = ("redis_memory",)


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
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_table("redis_memories")
