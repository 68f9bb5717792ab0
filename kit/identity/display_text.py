"""Texts that people are shown and that others chose."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
DOTS = ".\u2024\u3002\ufe52\uff0e\uff61"
"""The full stop, and what browsers and mail clients take for one (UTS 46, 2.3)."""

_BLANK = " \u115f\u1160\u2800\u3164\uffa0"
"""The blank, Hangul fillers and the empty Braille pattern: the latter two count as letters and symbols."""


def visible(text: str) -> str:
    """On one line, in NFC, without what nobody sees but programs heed: controls, marks of direction, lone surrogates.

    Empty when nothing is left to be seen.
    """
    composed = unicodedata.normalize("NFC", text)
    words = " ".join("".join(_shown(composed, at) for at in range(len(composed))).split())
    return words if any(map(_is_seen, words)) else ""


def _shown(text: str, at: int) -> str:
    character = text[at]
    match unicodedata.category(character):
        case "Cc" | "Cs" | "Zl" | "Zp":
            return " "
        case "Cf":
            # Joiners shape Persian and Indic words and make one emoji of several; no domain needs them.
            between = character in _JOINERS and 0 < at < len(text) - 1
            return character if between and _is_shaped(text[at - 1]) and _is_shaped(text[at + 1]) else ""
    return character


def _is_shaped(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character)[0] in "LMS" and character not in DOTS


def _is_seen(character: str) -> bool:
    """False also for what only modifies other characters."""
    return unicodedata.category(character)[0] not in "MC" and character not in _BLANK
