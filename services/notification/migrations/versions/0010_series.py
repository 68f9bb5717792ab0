"""Series of deliveries, of which a later one makes the earlier ones worthless.

Only adds: the version before writes deliveries that belong to no series.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("series", sa.Uuid))
    op.add_column("deliveries", sa.Column("occurred_at", sa.DateTime(timezone=True)))
    op.create_index(
        "deliveries_by_series", "deliveries", ["series", "occurred_at"], postgresql_where=sa.text("series IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("deliveries_by_series", "deliveries")
    for column in ("occurred_at", "series"):
        op.drop_column("deliveries", column)
