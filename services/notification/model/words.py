"""Makes text of people and models safe for a mail: one line of bounded length in which no mail client finds a link.

Readers trust a mail because of its sender, so text that somebody else chose must not bring a link to click.
"""

from __future__ import annotations

import re
import unicodedata

from kit.identity.display_text import DOTS, visible

NAME_LENGTH = 40
TITLE_LENGTH = 120
"""The longest title that a writer may give."""
EXCERPT_LENGTH = 400
"""The first lines of a story, as a mail quotes them; also the longest text of other people in any mail."""

_CUT = "…"

_ADDRESS = re.compile(r"//|\\\\|@|\bwww\b|[^\W\d_]:\S", re.IGNORECASE)
"""Matches a word that is a URL, a network share or an address, or has a scheme, such as `tel:`. Clock times do not match."""
_ENCLOSED_LETTERS = "\u24b6-\u24e9\U0001f110-\U0001f19a\U0001f1e6-\U0001f1ff"
_DOMAIN_DOT = re.compile(rf"(?<=[^\s{DOTS}])([{DOTS}])(?=[^\W\d_]|[{_ENCLOSED_LETTERS}])")


def plain(text: str, most: int) -> str:
    """The text cut to `most` characters. A URL or address becomes an ellipsis, and `a.example` becomes `a. example`."""
    words = " ".join(map(_unlinked, visible(text).split()))
    return words if len(words) <= most else words[: most - 1].rstrip() + _CUT


def _unlinked(word: str) -> str:
    """The word without a link. Checked in the compatible form (NFKC), because clients read full-width letters like others."""
    return _CUT if _ADDRESS.search(unicodedata.normalize("NFKC", word)) else _DOMAIN_DOT.sub(r"\1 ", word)
