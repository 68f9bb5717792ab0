"""When a story whose attempt has failed may be tried again.

Only adds: what the version before puts back into the queue is available at once, as it was to that version.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("stories", sa.Column("available_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("stories", "available_at")
