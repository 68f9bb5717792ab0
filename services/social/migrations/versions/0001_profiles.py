"""Create the tables of profiles, handles and stances."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "profiles",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("handle", sa.Text, unique=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("bio", sa.Text, nullable=False),
        sa.Column("private", sa.Boolean, nullable=False),
        sa.Column("message_policy", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.CheckConstraint("state IN ('ACTIVE', 'ERASING', 'DELETED')", name="profiles_state_known"),
        sa.CheckConstraint("(state = 'ACTIVE') = (handle IS NOT NULL)", name="profiles_handle_while_active"),
        sa.CheckConstraint("message_policy IN ('EVERYONE', 'NOBODY')", name="profiles_message_policy_known"),
    )
    op.create_table(
        "former_handles",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("owner_id", sa.Uuid),
        sa.Column("free_at", moment, nullable=False),
    )
    op.create_index("former_handles_by_owner", "former_handles", ["owner_id"])
    op.create_index("former_handles_by_end", "former_handles", ["free_at"])
    op.create_table(
        "handle_changes",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("changed_at", moment, nullable=False),
    )
    op.create_index("handle_changes_by_user", "handle_changes", ["user_id", "changed_at"])
    op.create_index("handle_changes_by_time", "handle_changes", ["changed_at"])
    for name in ("blocks", "mutes"):
        op.create_table(
            name,
            sa.Column("user_id", sa.Uuid, primary_key=True),
            sa.Column("subject_id", sa.Uuid, primary_key=True),
            sa.Column("id", sa.Uuid, nullable=False),
            sa.Column("created_at", moment, nullable=False),
            sa.CheckConstraint("user_id <> subject_id", name=f"{name}_of_others"),
        )
        op.create_index(f"{name}_by_id", name, ["user_id", "id"])
        op.create_index(f"{name}_by_subject", name, ["subject_id"])


def downgrade() -> None:
    for name in ("mutes", "blocks", "handle_changes", "former_handles", "profiles"):
        op.drop_table(name)
