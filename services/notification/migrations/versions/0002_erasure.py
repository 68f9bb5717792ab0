"""The person to whom a mail went, and no replies of mail servers, which quote addresses."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("mails", sa.Column("user_id", sa.Uuid))
    op.create_index("mails_by_user", "mails", ["user_id"], postgresql_where=sa.text("user_id IS NOT NULL"))
    # A reply was stored as "(550, '5.1.1 <ada@example.com> no such user')"; its number stays.
    op.execute(r"UPDATE mails SET error = substring(error FROM '^\((-?[0-9]+)') WHERE error ~ '^\(-?[0-9]+, '")


def downgrade() -> None:
    op.drop_index("mails_by_user", "mails")
    op.drop_column("mails", "user_id")
