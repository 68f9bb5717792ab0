"""Copy decisions about dead letters from the dead letters' rows into the table of decisions.

Only adds. A decision of the previous version is missing in that table and stands in the dead letter's row as before.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("""
        INSERT INTO dead_letter_decisions (event_id, inbox, decision, actor, because, decided_at)
        SELECT event_id, coalesce(inbox, 'story'), settlement, settled_by, coalesce(settled_because, ''), settled_at
        FROM dead_letters letters
        WHERE settled_at IS NOT NULL AND settled_by IS NOT NULL
          AND NOT EXISTS (SELECT FROM dead_letter_decisions known WHERE known.event_id = letters.event_id)
        ORDER BY settled_at
    """)


def downgrade() -> None:
    """Changes nothing: the version before does not see the decisions."""
