"""The record of erased people, and an index by which their events are found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "erased_subjects",
        sa.Column("subject_id", sa.Uuid, primary_key=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("outbox_by_key", "outbox", ["key"])


def downgrade() -> None:
    op.drop_index("outbox_by_key", "outbox")
    op.drop_table("erased_subjects")
