"""Which passwords are accepted (NIST SP 800-63B-4, 3.1.1.2): long enough and not to be guessed; no composition rules."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from services.kit.errors import InvalidArgument, Violation

from .model import Profile

_MAX_BYTES = 1024
_OWN_CHARACTERS = 8
"""What must be left of a password without the words that anybody would try first."""

_SHORTEST_WORD = 4
_SERVICE = "storymesh"


def normalized(password: str) -> str:
    """NFC, as RFC 8265 has it, so that the same password typed on another keyboard is the same. Nothing is trimmed."""
    return unicodedata.normalize("NFC", password)


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    min_length: int

    def check(self, password: str, profile: Profile) -> None:
        """Raises InvalidArgument on the field `password`. Takes the normalized form."""
        problem = self._problem(password, profile)
        if problem:
            reason, description = problem
            raise InvalidArgument([Violation("password", description, reason)])

    def _problem(self, password: str, profile: Profile) -> tuple[str, str] | None:
        if len(password) < self.min_length:
            return "PASSWORD_TOO_SHORT", f"must be at least {self.min_length} characters long"
        if len(password.encode()) > _MAX_BYTES:
            return "PASSWORD_TOO_LONG", f"must be at most {_MAX_BYTES} bytes long"
        # NIST and ASVS ask for printing characters only. Others come from a paste gone wrong and cannot be typed again.
        if any(unicodedata.category(character) == "Cc" for character in password):
            return "PASSWORD_UNPRINTABLE", "must not contain control characters such as line breaks"
        folded = password.casefold()
        if _is_common(folded):
            return "PASSWORD_COMMON", "is among the passwords that are tried first; choose another one"
        if len(_without(_context(profile), folded)) < _OWN_CHARACTERS:
            return "PASSWORD_CONTEXT", "is little more than the name of the account or of this service"
        return None


def _is_common(folded: str) -> bool:
    """Also when it is repeated, or dressed up with digits and punctuation at its ends."""
    unit = _unit(folded)
    core = _trimmed(folded)
    return len(unit) < _OWN_CHARACTERS or not {folded, unit, core, _unit(core)}.isdisjoint(_common())


def _unit(text: str) -> str:
    """The shortest beginning that, repeated and perhaps cut off, makes the text (the failure function of Knuth-Morris-Pratt)."""
    borders = [0] * len(text)
    for end in range(1, len(text)):
        length = borders[end - 1]
        while length and text[end] != text[length]:
            length = borders[length - 1]
        borders[end] = length + (text[end] == text[length])
    return text[: len(text) - borders[-1]] if text else text


def _trimmed(text: str) -> str:
    letters = [index for index, character in enumerate(text) if character.isalpha()]
    return text[letters[0] : letters[-1] + 1] if letters else text


def _without(words: Iterable[str], text: str) -> str:
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "")
    return text


def _context(profile: Profile) -> set[str]:
    local, _, domain = profile.email.casefold().rpartition("@")
    words = {_SERVICE, local, *local.replace("_", ".").replace("+", ".").split("."), *domain.split(".")}
    words |= {name.casefold() for name in (profile.username or "", profile.first_name, profile.last_name)}
    return {word for word in words if len(word) >= _SHORTEST_WORD}


@cache
def _common() -> frozenset[str]:
    text = resources.files(__package__).joinpath("common_passwords.txt").read_text(encoding="ascii")
    return frozenset(line for line in text.splitlines() if not line.startswith("# "))
