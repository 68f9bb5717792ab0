"""What a file may be, by what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIB = 1024 * 1024
GIB = 1024 * MIB

RENDITIONS = (96, 512, 1600)
"""The longest sides, in pixels, of the images that are made of an uploaded one."""

IMAGES = frozenset({"image/jpeg", "image/png", "image/webp"})
"""The media types of images that are re-encoded, except for documents."""


class Purpose(StrEnum):
    AVATAR = "AVATAR"
    POST_PHOTO = "POST_PHOTO"
    MESSAGE_ATTACHMENT = "MESSAGE_ATTACHMENT"
    DOCUMENT = "DOCUMENT"


@dataclass(frozen=True, slots=True)
class PurposeRules:
    most_bytes: int
    kept_unshown: bool = False
    """Whether it stays when the last that showed it shows it no more."""

    named: bool = False
    """Whether others learn its name with it. Of a picture they need none, and it may say who or what is in it."""


RULES = {
    Purpose.AVATAR: PurposeRules(5 * MIB),
    Purpose.POST_PHOTO: PurposeRules(20 * MIB),
    Purpose.MESSAGE_ATTACHMENT: PurposeRules(100 * MIB, named=True),
    Purpose.DOCUMENT: PurposeRules(5 * GIB, kept_unshown=True, named=True),
}


def renders(purpose: Purpose, media_type: str) -> bool:
    """Whether the file is an image that is shown by renditions alone, so that the bytes as uploaded are deleted."""
    return media_type in IMAGES and purpose is not Purpose.DOCUMENT
