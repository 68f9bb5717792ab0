"""Change nothing: kit migrates its own tables for erasure (kit/data/migrations).

The revision stays, because existing databases name it.
"""

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Change nothing."""


def downgrade() -> None:
    """Changes nothing."""
