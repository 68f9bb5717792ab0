"""Create files, the images made of them, what shows them, and what counts towards quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("owner_id", sa.Uuid, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("request_digest", sa.LargeBinary, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("check_step", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("object_key", sa.Text(collation="C"), nullable=False),
        sa.Column("upload_id", sa.Text),
        sa.Column("part_size", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("stored", sa.Boolean, nullable=False),
        sa.Column("rendered", sa.Boolean, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("completed_at", MOMENT),
        sa.Column("dispatched_at", MOMENT),
        sa.Column("deleted_at", MOMENT),
    )
    op.create_index("files_by_owner", "files", ["owner_id", "id"])
    op.create_index("files_by_request", "files", ["owner_id", "request_id"], unique=True)
    op.create_index("files_by_object", "files", ["object_key"], unique=True)
    counted = "state IN ('PENDING', 'CHECKING', 'READY') AND deleted_at IS NULL"
    op.create_index("files_counted", "files", ["owner_id", "size"], postgresql_where=sa.text(counted))
    for name, column, where in (
        ("files_pending", "expires_at", "state = 'PENDING'"),
        ("files_checking", "dispatched_at", "state = 'CHECKING'"),
        ("files_ended", "completed_at", "state IN ('REJECTED', 'EXPIRED')"),
        (
            "files_useless",
            "completed_at",
            "stored AND (state IN ('REJECTED', 'EXPIRED') OR (state = 'READY' AND rendered))",
        ),
        ("files_to_delete", "deleted_at", "deleted_at IS NOT NULL"),
    ):
        op.create_index(name, "files", [column], postgresql_where=sa.text(where))
    op.create_table(
        "file_parts",
        sa.Column("file_id", sa.Uuid, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "file_renditions",
        sa.Column("file_id", sa.Uuid, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("target", sa.Integer, primary_key=True),
        sa.Column("object_key", sa.Text(collation="C"), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_index("file_renditions_by_object", "file_renditions", ["object_key"], unique=True)
    op.create_table(
        "file_claims",
        sa.Column("file_id", sa.Uuid, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("holder", sa.Text, primary_key=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
    )
    op.create_index(
        "file_claims_tentative", "file_claims", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL")
    )
    op.create_table(
        "file_admissions",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("owner_id", sa.Uuid, nullable=False),
        sa.Column("admitted_at", MOMENT, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_index("file_admissions_by_owner", "file_admissions", ["owner_id", "admitted_at"])
    op.create_index("file_admissions_by_time", "file_admissions", ["admitted_at"])


def downgrade() -> None:
    for table in ("file_admissions", "file_claims", "file_renditions", "file_parts", "files"):
        op.drop_table(table)
