"""Deliveries and their steps. Only adds: the version before goes on with `mails`.

It finds a mail there as sent whose delivery the new version has decided: a trigger says so, for as long as that version may run.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("unknowns", sa.Integer, nullable=False),
        sa.Column("urgent", sa.Boolean, nullable=False),
        sa.Column("event", sa.LargeBinary),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("leased_until", moment),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("changed_at", moment, nullable=False),
        sa.UniqueConstraint("event_id", "channel", "target", name="deliveries_once"),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'SENDING', 'SENT', 'UNKNOWN', 'FAILED', 'SUPPRESSED', 'EXPIRED')",
            name="deliveries_state_known",
        ),
        sa.CheckConstraint("(event IS NOT NULL) = (state IN ('QUEUED', 'SENDING'))", name="deliveries_event_kept"),
    )
    queued, sending, named = (
        sa.text(condition) for condition in ("state = 'QUEUED'", "state = 'SENDING'", "user_id IS NOT NULL")
    )
    op.create_index("deliveries_due", "deliveries", ["urgent", "due_at"], postgresql_where=queued)
    op.create_index("deliveries_sending", "deliveries", ["leased_until"], postgresql_where=sending)
    op.create_index("deliveries_by_user", "deliveries", ["user_id", "id"], postgresql_where=named)
    op.create_table(
        "delivery_steps",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("occurred_at", moment, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("delivery_steps_by_event", "delivery_steps", ["event_id"])
    op.create_index("delivery_steps_by_user", "delivery_steps", ["user_id", "id"], postgresql_where=named)
    op.execute("""
        CREATE FUNCTION leave_mail_to_delivery() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM deliveries WHERE event_id = NEW.event_id AND channel = 'EMAIL') THEN
                NEW.state := 'SENT';
            END IF;
            RETURN NEW;
        END $$
    """)
    op.execute(
        "CREATE TRIGGER leave_mail_to_delivery BEFORE INSERT ON mails FOR EACH ROW EXECUTE FUNCTION leave_mail_to_delivery()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER leave_mail_to_delivery ON mails")
    op.execute("DROP FUNCTION leave_mail_to_delivery()")
    for table in ("delivery_steps", "deliveries"):
        op.drop_table(table)
