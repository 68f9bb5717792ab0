"""Add the links that show a story without signing in.

Only adds: the previous version makes no links, and its deletion of a story deletes the story's link by the foreign key.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "story_links",
        sa.Column("story_id", sa.Uuid, sa.ForeignKey("stories.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("owner_id", sa.Uuid, nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
    )
    op.create_index("story_links_by_id", "story_links", ["id"], unique=True)
    op.create_index("story_links_by_owner", "story_links", ["owner_id", "id"])
    op.create_index("story_links_by_end", "story_links", ["expires_at"], postgresql_where=sa.text("revoked_at IS NULL"))


def downgrade() -> None:
    op.drop_table("story_links")
