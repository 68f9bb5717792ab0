"""The manifest of the toy service."""

from mesh.manifest import INBOX, Manifest

MANIFEST = Manifest(
    port=170,
    database=True,
    workers=1,
    calls=("auth",),
    keys=("toy_key",),
    takes={"toy": ("UserUpdated",)},
    kit_tables=(INBOX,),
    private_settings=("TOY_",),
    local_settings={"TOY_STEP": "2"},
)
