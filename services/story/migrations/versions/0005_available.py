"""Add the time before which no attempt begins: the end of the pause after a failed one.

Only adds: a story that the previous version puts back into the queue is available at once, as that version expects.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("stories", sa.Column("available_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("stories", "available_at")
