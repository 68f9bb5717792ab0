"""Add the file that a profile shows as its avatar, and a part of the name of that file's claim.

Only adds: the previous version shows none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("profiles", sa.Column("avatar_file_id", sa.Uuid))
    op.add_column("profiles", sa.Column("avatar_showing_id", sa.Uuid))
    op.create_index(
        "profiles_by_avatar", "profiles", ["avatar_file_id"], postgresql_where=sa.text("avatar_file_id IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_column("profiles", "avatar_file_id")
    op.drop_column("profiles", "avatar_showing_id")
