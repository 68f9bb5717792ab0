"""Fill in the inbox of dead letters."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # The story service has two inboxes; this event alone goes to the second.
    op.execute("UPDATE dead_letters SET inbox = 'story-accounts' WHERE type = 'storymesh.events.v1.UserDeleted'")


def downgrade() -> None:
    """Changes nothing: the version before knows no inbox."""
