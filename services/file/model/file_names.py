"""The names that people give to files: which are refused, and how a download carries one."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

from kit.identity.display_text import visible

MOST_BYTES = 255
"""What file systems take."""

_SEPARATORS = frozenset("/\\")
_JOINERS = frozenset("\u200c\u200d")
"""Marks that shape Persian and Indic words and make one emoji of several. Every other invisible mark can only deceive."""


def fault_of(name: str) -> str | None:
    """What is wrong with a name, as the end of a sentence that begins with the field; None for a good one."""
    if not visible(name):
        return "must not be blank"
    if len(name.encode(errors="surrogatepass")) > MOST_BYTES:
        return f"must have at most {MOST_BYTES} bytes in UTF-8"
    if not _SEPARATORS.isdisjoint(name) or name in (".", ".."):
        return "must be a name without folders"
    if any(map(_is_hidden, name)):
        return "must have no control characters and no marks of direction"
    return None


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def content_disposition(name: str, *, inline: bool = False) -> str:
    """The header of a download (RFC 6266): a browser saves an attachment and never shows it as a page. Renditions are `inline`.

    `filename` is for clients that do not know `filename*`. Names that `fault_of` refuses come out harmless.
    """
    clean = "".join("_" if _is_hidden(each) or each in _SEPARATORS else each for each in name) or "_"
    plain = "".join(each if each.isascii() and each not in '"%' else "_" for each in clean)
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='')}"


def rendition_name(name: str) -> str:
    """The name of a rendition, which is WebP whatever was uploaded."""
    stem, dot, _ = name.rpartition(".")
    return f"{stem if dot and stem else name}.webp"
