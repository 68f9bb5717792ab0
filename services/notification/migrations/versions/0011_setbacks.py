"""Counts of failed attempts and of claims without an outcome, by which pauses grow instead of by the number of the attempt.

Only adds: rows that the version before writes have the defaults.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for column in ("setbacks", "unsettled"):
        op.add_column("deliveries", sa.Column(column, sa.Integer, nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    for column in ("unsettled", "setbacks"):
        op.drop_column("deliveries", column)
