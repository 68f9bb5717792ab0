"""What the mesh must know of the file service."""

from mesh.manifest import ERASURE, INBOX, LIMITER, OUTBOX, Manifest

MANIFEST = Manifest(
    port=60,
    database=True,
    workers=1,
    calls=("auth", LIMITER),
    keys=("cursor_key",),
    takes={
        "file": ("FileErased", "FileClaimsConfirmed", "FileClaimsReleased"),
        # Inboxes of their own: neither claims nor the deletion of an account may wait behind files that are checked.
        "file-checks": ("FileUploaded",),
        "file-accounts": ("UserDeleted",),
    },
    kit_tables=(OUTBOX, INBOX, ERASURE),
    private_settings=("S3_", "FILES_", "CLAMD_"),
    needs=("s3",),
)
