"""People's and models' own words as a mail may show them: one line of bounded length in which no mail client finds a link.

A mail comes with the credit of its sender. Words that somebody else chose must not bring along where the reader is to click.
"""

from __future__ import annotations

import re
import unicodedata

NAME_LENGTH = 40
TITLE_LENGTH = 120
"""The longest that a writer may choose."""

_CUT = "…"
_JOINERS = "\u200c\u200d"
_DOTS = ".\u2024\u3002\ufe52\uff0e\uff61"
"""The full stop, and what browsers and mail clients take for one (UTS 46, 2.3)."""

_ADDRESS = re.compile(r"//|\\\\|@|\bwww\b|[^\W\d_]:\S", re.IGNORECASE)
"""Of a word: that it is a URL, a share, an address, or has a scheme, such as `tel:`. Clock times have none."""
_ENCLOSED_LETTERS = "\u24b6-\u24e9\U0001f110-\U0001f19a\U0001f1e6-\U0001f1ff"
_DOMAIN_DOT = re.compile(rf"(?<=[^\s{_DOTS}])([{_DOTS}])(?=[^\W\d_]|[{_ENCLOSED_LETTERS}])")


def plain(text: str, most: int) -> str:
    """At most so many characters. A word that is a URL or an address becomes an ellipsis, and `a.example` becomes `a. example`."""
    words = " ".join(map(_unlinked, _visible(text).split()))
    return words if len(words) <= most else words[: most - 1].rstrip() + _CUT


def _unlinked(word: str) -> str:
    """Looked at in the compatible form (NFKC), because clients read full-width letters like others."""
    return _CUT if _ADDRESS.search(unicodedata.normalize("NFKC", word)) else _DOMAIN_DOT.sub(r"\1 ", word)


def _visible(text: str) -> str:
    """Without what nobody sees but programs heed: controls, marks of direction, characters without width, lone surrogates."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(_shown(composed, at) for at in range(len(composed)))


def _shown(text: str, at: int) -> str:
    character = text[at]
    match unicodedata.category(character):
        case "Cc" | "Cs":
            return " "
        case "Cf":
            # Joiners shape Persian and Indic words and make one emoji of several; no domain needs them.
            between = character in _JOINERS and 0 < at < len(text) - 1
            return character if between and _is_shaped(text[at - 1]) and _is_shaped(text[at + 1]) else ""
    return character


def _is_shaped(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character)[0] in "LMS" and character not in _DOTS
