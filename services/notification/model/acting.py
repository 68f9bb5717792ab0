"""Names the people who did what a notice tells of, in the language of the notice: "Ada", "Ada and Bob", "Ada and 12 others"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .words import NAME_LENGTH, plain


@dataclass(frozen=True, slots=True)
class _Words:
    somebody: str
    two: str
    more: str


_ENGLISH = _Words("Somebody", "{} and {}", "{} and {} others")
_WORDS: Mapping[str, _Words] = {"en": _ENGLISH, "de": _Words("Jemand", "{} und {}", "{} und {} andere")}
"""By the language. One that is missing here is written in English."""


def acting(names: Sequence[str], count: int, language: str) -> str:
    """The `count` people, the latest of whom have these names."""
    words = _WORDS.get(language, _ENGLISH)
    shown = [plain(name, NAME_LENGTH) or words.somebody for name in names]
    if count <= 1:
        return shown[0]
    return words.two.format(*shown[:2]) if count == 2 else words.more.format(shown[0], count - 1)


def worded() -> frozenset[str]:
    """The languages that have words of their own."""
    return frozenset(_WORDS)
