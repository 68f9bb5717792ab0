"""Tokens by which the owner of a former address stops an email change."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "email_change_stops",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("token_digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
    )
    op.create_index("email_change_stops_by_user", "email_change_stops", ["user_id", "created_at"])
    op.create_index("email_change_stops_by_expiry", "email_change_stops", ["expires_at"])


def downgrade() -> None:
    op.drop_table("email_change_stops")
