"""Counters of a session's refreshes, and of the consecutive generations in which a retry came late."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for name in ("late_generation", "late_repeats"):
        op.add_column("sessions", sa.Column(name, sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("sessions", sa.Column("refreshed_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    for name in ("late_generation", "late_repeats", "refreshed_until"):
        op.drop_column("sessions", name)
