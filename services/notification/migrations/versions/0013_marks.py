"""Marks of changes, by which a restored database shows, and changes for the notifications that the version before inserts.

Only adds. That version records no changes. Its rows have no target: a trigger records them, for as long as it may run.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    # In two steps: a default that differs from row to row would rewrite the table.
    op.add_column("notification_changes", sa.Column("mark", sa.Uuid))
    op.alter_column("notification_changes", "mark", server_default=sa.text("gen_random_uuid()"))
    op.execute("""
        CREATE FUNCTION number_notification() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            taken bigint;
        BEGIN
            INSERT INTO notification_heads AS heads (user_id, number) VALUES (NEW.user_id, 1)
                ON CONFLICT (user_id) DO UPDATE SET number = heads.number + 1
                RETURNING number INTO taken;
            INSERT INTO notification_changes (user_id, number, change, notification_id, unread, occurred_at)
                SELECT NEW.user_id, taken, 'ADDED', NEW.id, count(*), NEW.created_at
                FROM notifications WHERE user_id = NEW.user_id AND read_at IS NULL;
            PERFORM pg_notify('notification_changes', NEW.user_id::text);
            RETURN NULL;
        END $$
    """)
    op.execute(
        "CREATE TRIGGER number_notification AFTER INSERT ON notifications FOR EACH ROW WHEN (NEW.target_type IS NULL) "
        "EXECUTE FUNCTION number_notification()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER number_notification ON notifications")
    op.execute("DROP FUNCTION number_notification()")
    op.drop_column("notification_changes", "mark")
