"""Every decision about a dead letter; its own row knows only the latest one, and none when it died again.

Only adds. What the version before decides is missing here, and stands in the letter's row as before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "dead_letter_decisions",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, sa.ForeignKey("dead_letters.event_id", ondelete="CASCADE"), nullable=False),
        sa.Column("inbox", sa.Text, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("actor", sa.Uuid, nullable=False),
        sa.Column("because", sa.Text, nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("dead_letter_decisions_by_event", "dead_letter_decisions", ["event_id", "position"])
    op.execute("""
        INSERT INTO dead_letter_decisions (event_id, inbox, decision, actor, because, decided_at)
        SELECT event_id, coalesce(inbox, 'story'), settlement, settled_by, coalesce(settled_because, ''), settled_at
        FROM dead_letters WHERE settled_at IS NOT NULL AND settled_by IS NOT NULL ORDER BY settled_at
    """)


def downgrade() -> None:
    op.drop_table("dead_letter_decisions")
