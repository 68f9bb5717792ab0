"""Settlements of dead letters, and the record of Redis's memory, for redelivery after Redis has lost data.

Its tables are the kit's, which migrates them itself (kit/data/migrations): the revision stays for databases that name it.
"""

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Changes nothing."""


def downgrade() -> None:
    """Changes nothing."""
