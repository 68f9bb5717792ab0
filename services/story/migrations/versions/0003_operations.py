"""Add admissions, and the columns for deletions that can be interrupted and for a deadline that counts from the queueing.

Only adds, so that the previous version works beside it: that version leaves `queued_at` and `deleted_at` NULL, which is right for
the rows it writes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("stories", sa.Column("queued_at", moment))
    op.add_column("stories", sa.Column("deleted_at", moment))
    op.create_index("stories_by_state", "stories", ["owner_id", "state", "id"])
    op.create_index(
        "stories_by_completion", "stories", ["completed_at"], postgresql_where=sa.text("state = 'COMPLETED'")
    )
    op.create_index("stories_to_delete", "stories", ["deleted_at"], postgresql_where=sa.text("deleted_at IS NOT NULL"))
    op.create_table(
        "admissions",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("owner_id", sa.Uuid, nullable=False),
        sa.Column("admitted_at", moment, nullable=False),
    )
    op.create_index("admissions_by_owner", "admissions", ["owner_id", "admitted_at"])
    op.create_index("admissions_by_time", "admissions", ["admitted_at"])


def downgrade() -> None:
    op.drop_table("admissions")
    for index in ("stories_to_delete", "stories_by_completion", "stories_by_state"):
        op.drop_index(index, "stories")
    op.drop_column("stories", "deleted_at")
    op.drop_column("stories", "queued_at")
