"""The record of erased people, and an index by which their events are found.

Its tables are the kit's, which migrates them itself (kit/data/migrations): the revision stays for databases that name it.
"""

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Changes nothing."""


def downgrade() -> None:
    """Changes nothing."""
