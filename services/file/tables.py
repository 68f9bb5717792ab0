"""The file service's tables."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)

metadata = MetaData()

files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("request_id", Text),
    Column("request_digest", LargeBinary, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("check_step", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # Where the store has, or would have, the bytes as uploaded; random.
    # Ordered as the store orders its objects, so that both can be read side by side.
    Column("object_key", Text(collation="C"), nullable=False),
    # The store's name of the upload by parts, once one was begun.
    Column("upload_id", Text),
    Column("part_size", BigInteger, nullable=False),
    # Grows with each change that a watch tells.
    Column("revision", BigInteger, nullable=False),
    # True while the store may have an object under `object_key`: until the worker has removed it, with what was uploaded in parts.
    Column("stored", Boolean, nullable=False),
    # True for a ready image that is shown by its renditions alone.
    Column("rendered", Boolean, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # Until when the file can be uploaded and completed.
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("completed_at", DateTime(timezone=True)),
    # When its FileUploaded was written last; NULL before it was uploaded.
    Column("dispatched_at", DateTime(timezone=True)),
    # A file with a deleted_at is hidden from everybody; its bytes are removed first, then the row.
    Column("deleted_at", DateTime(timezone=True)),
    Index("files_by_owner", "owner_id", "id"),
    Index("files_by_request", "owner_id", "request_id", unique=True),
    Index("files_by_object", "object_key", unique=True),
    Index(
        "files_counted",
        "owner_id",
        "size",
        postgresql_where=text("state IN ('PENDING', 'CHECKING', 'READY') AND deleted_at IS NULL"),
    ),
    Index("files_pending", "expires_at", postgresql_where=text("state = 'PENDING'")),
    Index("files_checking", "dispatched_at", postgresql_where=text("state = 'CHECKING'")),
    Index("files_ended", "completed_at", postgresql_where=text("state IN ('REJECTED', 'EXPIRED')")),
    Index(
        "files_useless",
        "completed_at",
        postgresql_where=text("stored AND (state IN ('REJECTED', 'EXPIRED') OR (state = 'READY' AND rendered))"),
    ),
    Index("files_to_delete", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
)

# The checksums of parts, as declared when their uploads were signed: not every store tells those of the parts that it has.
file_parts = Table(
    "file_parts",
    metadata,
    Column("file_id", Uuid, ForeignKey(files.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
)

# The images that were made of an uploaded one.
file_renditions = Table(
    "file_renditions",
    metadata,
    Column("file_id", Uuid, ForeignKey(files.c.id, ondelete="CASCADE"), primary_key=True),
    # The longest side that it was made for.
    Column("target", Integer, primary_key=True),
    Column("object_key", Text(collation="C"), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Index("file_renditions_by_object", "object_key", unique=True),
)

# What shows a file. A claim without an expires_at is confirmed.
file_claims = Table(
    "file_claims",
    metadata,
    Column("file_id", Uuid, ForeignKey(files.c.id, ondelete="CASCADE"), primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Index("file_claims_tentative", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

# The files that count towards quotas of a day. A table of its own, because a deleted file still counts.
file_admissions = Table(
    "file_admissions",
    metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("admitted_at", DateTime(timezone=True), nullable=False),
    Column("size", BigInteger, nullable=False),
    Index("file_admissions_by_owner", "owner_id", "admitted_at"),
    Index("file_admissions_by_time", "admitted_at"),
)
