"""Manifest of the operators' service."""

from mesh.manifest import EVERY_SERVICE, Manifest

MANIFEST = Manifest(
    port=50,
    calls=(EVERY_SERVICE,),
    keys=("cursor_key",),
)
