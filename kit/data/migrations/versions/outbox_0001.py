"""The outbox. Adopts the table of a database that its service's history built, whichever of its revisions that had reached."""

import sqlalchemy as sa
from alembic import op

revision = "outbox_0001"
down_revision = None
branch_labels = ("outbox",)


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "outbox",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("id", sa.Uuid, nullable=False, unique=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("traceparent", sa.Text, nullable=False),
        sa.Column("occurred_at", moment, nullable=False, server_default=sa.func.now()),
        sa.Column("published_at", moment),
        if_not_exists=True,
    )
    op.create_index(
        "outbox_unpublished",
        "outbox",
        ["key", "position"],
        postgresql_where=sa.text("published_at IS NULL"),
        if_not_exists=True,
    )
    op.create_index("outbox_by_key", "outbox", ["key"], if_not_exists=True)


def downgrade() -> None:
    op.drop_table("outbox")
