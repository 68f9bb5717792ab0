"""The record of erased people, whom a mail went to, and no words of mail servers, which quote addresses."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "erased_subjects",
        sa.Column("subject_id", sa.Uuid, primary_key=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.add_column("mails", sa.Column("user_id", sa.Uuid))
    op.create_index("mails_by_user", "mails", ["user_id"], postgresql_where=sa.text("user_id IS NOT NULL"))
    # A reply was kept as "(550, '5.1.1 <ada@example.com> no such user')"; its number stays.
    op.execute(r"UPDATE mails SET error = substring(error FROM '^\((-?[0-9]+)') WHERE error ~ '^\(-?[0-9]+, '")


def downgrade() -> None:
    op.drop_index("mails_by_user", "mails")
    op.drop_column("mails", "user_id")
    op.drop_table("erased_subjects")
