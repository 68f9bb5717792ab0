"""Where the object store has what belongs to a file.

All keys follow from that of the upload, so that a repeated step finds what it left.
"""

from __future__ import annotations

from collections.abc import Iterator

from .purposes import RENDITIONS

UPLOADS = "uploads/"
"""Beginning of the keys of what people upload. The rest is random: a key tells neither person nor name."""

IMAGES = "images/"
"""Beginning of the keys of renditions; the name of the uploaded object follows, and the rendition's target."""


def rendition_key(object_key: str, target: int) -> str:
    return f"{IMAGES}{object_key.removeprefix(UPLOADS)}/{target}"


def keys_of(object_key: str) -> Iterator[str]:
    """Every key at which there may be something of the file."""
    yield object_key
    for target in RENDITIONS:
        yield rendition_key(object_key, target)


def upload_of(key: str) -> str:
    """The key of the uploaded object that a key of `keys_of` belongs to."""
    return f"{UPLOADS}{key.removeprefix(IMAGES).partition('/')[0]}" if key.startswith(IMAGES) else key
