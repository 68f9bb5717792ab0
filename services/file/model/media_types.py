"""Which media types a purpose allows, and whether bytes are what they were declared to be.

An allow-list: what is not recognised is refused. No purpose allows SVG, HTML or XML, because browsers run what is written in them.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Iterable, Mapping

import filetype

from .purposes import IMAGES, Purpose

HEAD_BYTES = 8192
"""How much of a file's beginning is looked at."""

TAIL_BYTES = 1 << 16
"""How much of the end of an archive is looked at, where its list of entries stands."""


_SNIFFED: Mapping[str, frozenset[str]] = {
    declared: frozenset(sniffed)
    for declared, sniffed in {
        "image/jpeg": ("image/jpeg",),
        "image/png": ("image/png", "image/apng"),
        "image/webp": ("image/webp",),
        "image/gif": ("image/gif",),
        "image/heic": ("image/heic",),
        "image/avif": ("image/avif",),
        "application/pdf": ("application/pdf",),
        "audio/mpeg": ("audio/mpeg",),
        "audio/ogg": ("audio/ogg", "video/ogg"),
        "audio/wav": ("audio/x-wav",),
        "audio/flac": ("audio/x-flac",),
        "audio/aac": ("audio/aac",),
        # The same containers hold sound alone and sound with pictures, and recorders do not mark which.
        "audio/mp4": ("audio/mp4", "video/mp4", "video/x-m4v"),
        "audio/webm": ("video/webm", "video/x-matroska"),
        "video/mp4": ("video/mp4", "video/x-m4v", "video/quicktime"),
        "video/quicktime": ("video/quicktime", "video/mp4"),
        "video/webm": ("video/webm", "video/x-matroska"),
        "video/x-matroska": ("video/x-matroska", "video/webm"),
    }.items()
}

_MORE_MP4_BRANDS = frozenset({b"avc1", b"dash", b"mp71"})
"""Brands of MP4 files, as recorders in browsers write them, that filetype does not know; nor does it know isoN."""

_TEXTS = frozenset({"text/plain", "text/csv", "text/markdown", "application/json"})

_OPEN_XML = "application/vnd.openxmlformats-officedocument."
_OFFICE = {
    f"{_OPEN_XML}wordprocessingml.document": "word/",
    f"{_OPEN_XML}spreadsheetml.sheet": "xl/",
    f"{_OPEN_XML}presentationml.presentation": "ppt/",
}
"""The folder in which an Office Open XML package keeps its main part."""

_SELF_NAMED = frozenset(
    {
        "application/epub+zip",
        "application/vnd.oasis.opendocument.text",
        "application/vnd.oasis.opendocument.spreadsheet",
        "application/vnd.oasis.opendocument.presentation",
    }
)
"""Packages whose first entry, `mimetype`, is stored without compression and says what they are."""

_ZIP = "application/zip"
ARCHIVES = frozenset({_ZIP, *_OFFICE, *_SELF_NAMED})
"""What is recognised by its end as well as by its beginning."""

_ATTACHED = frozenset({*_SNIFFED, *_TEXTS, *ARCHIVES})


def allowed(purpose: Purpose) -> frozenset[str]:
    """The media types that a file of this purpose may be declared as."""
    return IMAGES if purpose in (Purpose.AVATAR, Purpose.POST_PHOTO) else _ATTACHED


def matches(media_type: str, head: bytes, tail: bytes = b"") -> bool:
    """Whether a file is what it was declared as, by its first HEAD_BYTES and, for ARCHIVES, its last TAIL_BYTES."""
    if media_type in _TEXTS:
        return _is_text(head)
    if media_type in ARCHIVES:
        return head.startswith(b"PK\x03\x04") and _is_package(media_type, head, tail)
    return _sniffed(head) in _SNIFFED.get(media_type, ())


def _sniffed(head: bytes) -> str | None:
    found: str | None = filetype.guess_mime(head)
    if found is None and head[4:8] == b"ftyp" and (head[8:11] == b"iso" or head[8:12] in _MORE_MP4_BRANDS):
        return "video/mp4"
    return found


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters that does not begin like markup, which some programs would take it for."""
    try:
        # The last character may be cut off where the head ends.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return bool(text) and not _CONTROL.search(text) and not text.lstrip().startswith("<")


_FIRST_ENTRY = struct.Struct("<4s5H3I2H")
_LISTED_ENTRY = struct.Struct("<4s6H3I5H2I")
_LISTED_MARK = b"PK\x01\x02"
_STORED = 0


def _is_package(media_type: str, head: bytes, tail: bytes) -> bool:
    if media_type in _SELF_NAMED:
        return _named_by_itself(head) == media_type
    names = set(_entry_names(tail))
    if media_type in _OFFICE:
        folder = _OFFICE[media_type]
        return "[Content_Types].xml" in names and any(name.startswith(folder) for name in names)
    return bool(names)


def _named_by_itself(head: bytes) -> str | None:
    """What the first entry says, if it is a `mimetype`."""
    if len(head) < _FIRST_ENTRY.size:
        return None
    _, _, _, method, *_, size, _, name_length, extra_length = _FIRST_ENTRY.unpack_from(head)
    name_end = _FIRST_ENTRY.size + name_length
    if head[_FIRST_ENTRY.size : name_end] != b"mimetype" or method != _STORED:
        return None
    start = name_end + extra_length
    return head[start : start + size].decode("ascii", errors="replace")


def _entry_names(tail: bytes) -> Iterable[str]:
    """Names of the entries that the list at the archive's end has within the tail."""
    at = tail.find(_LISTED_MARK)
    while at >= 0 and at + _LISTED_ENTRY.size <= len(tail):
        name_length, extra_length, comment_length = _LISTED_ENTRY.unpack_from(tail, at)[10:13]
        start = at + _LISTED_ENTRY.size
        yield tail[start : start + name_length].decode("utf-8", errors="replace")
        at = tail.find(_LISTED_MARK, start + name_length + extra_length + comment_length)
