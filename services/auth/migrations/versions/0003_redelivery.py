"""What is known of Redis' memory."""

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


def downgrade() -> None:
    op.drop_table("redis_memories")
