"""What the mesh must know of the social service."""

from mesh.manifest import ERASURE, INBOX, OUTBOX, Manifest

MANIFEST = Manifest(
    port=140,
    database=True,
    workers=1,
    calls=("auth", "file"),
    keys=("cursor_key", "handle_key"),
    takes={
        "social": ("UserRegistered", "FileErased"),
        # An inbox of its own: an erasure may take minutes, and a person who registers waits for a profile.
        "social-accounts": ("UserDeleted", "ProfileDeleted"),
    },
    kit_tables=(OUTBOX, INBOX, ERASURE),
)
