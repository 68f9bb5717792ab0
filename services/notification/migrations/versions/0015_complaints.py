"""Complaints suppress addresses too. Only allows more: the version before writes no such reason."""

from alembic import op

revision = "0015"
down_revision = "0014"

_KNOWN = "suppressions_reason_known"


def upgrade() -> None:
    op.drop_constraint(_KNOWN, "suppressions")
    op.create_check_constraint(_KNOWN, "suppressions", "reason IN ('NO_ADDRESS', 'MAILBOX', 'COMPLAINT')")


def downgrade() -> None:
    op.execute("DELETE FROM suppressions WHERE reason = 'COMPLAINT'")
    op.drop_constraint(_KNOWN, "suppressions")
    op.create_check_constraint(_KNOWN, "suppressions", "reason IN ('NO_ADDRESS', 'MAILBOX')")
