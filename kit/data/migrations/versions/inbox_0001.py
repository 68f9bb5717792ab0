"""Processed events, dead letters and the decisions about them.

Adopts the tables of a database that its service's history built, whichever of its revisions that had reached: columns that its dead
letters lack are added.
"""

import sqlalchemy as sa
from alembic import op

revision = "inbox_0001"
down_revision = None
branch_labels = ("inbox",)


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "processed_events",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("processed_at", moment, nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )
    op.create_table(
        "dead_letters",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("died_at", moment, nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )
    for name, type_ in (
        ("inbox", sa.Text),
        ("settled_at", moment),
        ("settlement", sa.Text),
        ("settled_by", sa.Uuid),
        ("settled_because", sa.Text),
        ("returned_at", moment),
    ):
        op.add_column("dead_letters", sa.Column(name, type_), if_not_exists=True)
    op.create_index(
        "dead_letters_unsettled",
        "dead_letters",
        ["died_at", "event_id"],
        postgresql_where=sa.text("settled_at IS NULL"),
        if_not_exists=True,
    )
    op.create_index(
        "dead_letters_to_return",
        "dead_letters",
        ["settled_at"],
        postgresql_where=sa.text("settlement = 'REPLAYED' AND returned_at IS NULL"),
        if_not_exists=True,
    )
    op.create_table(
        "dead_letter_decisions",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, sa.ForeignKey("dead_letters.event_id", ondelete="CASCADE"), nullable=False),
        sa.Column("inbox", sa.Text, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("actor", sa.Uuid, nullable=False),
        sa.Column("because", sa.Text, nullable=False),
        sa.Column("decided_at", moment, nullable=False, server_default=sa.func.now()),
        if_not_exists=True,
    )
    op.create_index(
        "dead_letter_decisions_by_event", "dead_letter_decisions", ["event_id", "position"], if_not_exists=True
    )


def downgrade() -> None:
    for table in ("dead_letter_decisions", "dead_letters", "processed_events"):
        op.drop_table(table)
