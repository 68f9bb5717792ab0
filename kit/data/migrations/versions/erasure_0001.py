"""The record of erased people. Adopts the table of a database that its service's history built."""

import sqlalchemy as sa
from alembic import op

revision = "erasure_0001"
down_revision = None
branch_labels = ("erasure",)


def upgrade() -> None:
    op.create_table(
        "erased_subjects",
        sa.Column("subject_id", sa.Uuid, primary_key=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_table("erased_subjects")
