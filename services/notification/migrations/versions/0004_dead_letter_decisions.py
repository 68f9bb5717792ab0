"""Settlements that were stored only in the rows of their dead letters.

Only adds rows. A settlement by the version before is missing in the new table, and stays in its dead letter's row.
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
    """Changes nothing: the version before does not read these rows."""
