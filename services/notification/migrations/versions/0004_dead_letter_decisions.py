"""The decisions about dead letters that stood in the letters' own rows alone.

Only adds. What the version before decides is missing here, and stands in the letter's row as before.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("""
        INSERT INTO dead_letter_decisions (event_id, inbox, decision, actor, because, decided_at)
        SELECT event_id, coalesce(inbox, 'notification'), settlement, settled_by, coalesce(settled_because, ''), settled_at
        FROM dead_letters letters
        WHERE settled_at IS NOT NULL AND settled_by IS NOT NULL
          AND NOT EXISTS (SELECT FROM dead_letter_decisions known WHERE known.event_id = letters.event_id)
        ORDER BY settled_at
    """)


def downgrade() -> None:
    """Changes nothing: the version before does not see the decisions."""
