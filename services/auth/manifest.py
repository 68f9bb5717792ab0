"""Manifest of the auth service."""

from mesh.manifest import OUTBOX, Manifest

MANIFEST = Manifest(
    port=10,
    database=True,
    workers=1,
    keys=("code_pepper", "refresh_key", "signing_key_secret", "cursor_key"),
    shared_keys=("mesh_key", "seal_key"),
    redis_keys=("codes", "signin", "usernames"),
    kit_tables=(OUTBOX,),
)
