"""Proofs that end when what they protect changes, accounts without a password, and a new username at the end of a registration."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for table in ("users", "challenges"):
        op.add_column(table, sa.Column("proof_epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    for table in ("users", "registrations"):
        op.alter_column(table, "password_hash", nullable=True)
    op.add_column(
        "registrations",
        sa.Column("usernames_refused", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
    )


def downgrade() -> None:
    """Gives accounts without a password a hash that matches no password: they go on signing in by codes."""
    op.drop_column("registrations", "usernames_refused")
    op.execute("UPDATE users SET password_hash = '' WHERE password_hash IS NULL")
    op.execute("UPDATE registrations SET password_hash = '' WHERE password_hash IS NULL")
    for table in ("users", "registrations"):
        op.alter_column(table, "password_hash", nullable=False)
    for table in ("users", "challenges"):
        op.drop_column(table, "proof_epoch")
