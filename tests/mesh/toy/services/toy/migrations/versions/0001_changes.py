"""Create the table of counted changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("changes", sa.Column("event_id", sa.Uuid, primary_key=True), sa.Column("counts", sa.Integer))


def downgrade() -> None:
    op.drop_table("changes")
