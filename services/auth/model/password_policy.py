"""Which passwords are accepted.

The rule `length` is that of NIST SP 800-63B-4, 3.1.1.2: long enough and not to be guessed, whatever the characters. The rule
`classes` is for those who are bound to one of composition: shorter, but of four kinds of characters. Neither takes a password
from the blocklist, or one that takes too few guesses.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from kit.errors import InvalidArgument, Violation

from . import Profile
from .password_strength import advice

PasswordRule = Literal["length", "classes"]

_MAX_BYTES = 1024
_CLASSES_MIN_LENGTH = 8
_OWN_CHARACTERS = 8
"""What must be left of a password without the words that anybody would try first."""

_MOST_GUESSES_NEEDED = 10**10
"""The highest score that zxcvbn gives; hours for whoever has stolen the hashes and tries 10^6 a second."""

_SHORTEST_WORD = 4
_SERVICE = "storymesh"


def normalized(password: str) -> str:
    """NFC, as RFC 8265 has it, so that the same password typed on another keyboard is the same. Nothing is trimmed."""
    return unicodedata.normalize("NFC", password)


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    min_length: int
    """Of the rule `length`, in characters; the other rule has its own."""

    rule: PasswordRule = "length"

    def check(self, password: str, profile: Profile | None, *, field: str = "password") -> None:
        """Raises InvalidArgument on `field`. Takes the normalized form.

        Without a profile, as before the owner is known, the words of the account are not looked for.
        """
        violations = [
            Violation(field, description, reason) for reason, description in self._problems(password, profile)
        ]
        if violations:
            raise InvalidArgument(violations)

    def _problems(self, password: str, profile: Profile | None) -> list[tuple[str, str]]:
        # Too much text is looked at no further. What else is wrong with the form is told at once, guesses after that.
        if len(password.encode()) > _MAX_BYTES:
            return [("PASSWORD_TOO_LONG", f"must be at most {_MAX_BYTES} bytes long")]
        return list(self._faults_of_form(password)) or list(self._guesses(password, profile))

    @property
    def _shortest(self) -> int:
        return _CLASSES_MIN_LENGTH if self.rule == "classes" else self.min_length

    def _faults_of_form(self, password: str) -> Iterator[tuple[str, str]]:
        if len(password) < self._shortest:
            yield "PASSWORD_TOO_SHORT", f"must be at least {self._shortest} characters long"
        # NIST and ASVS ask for printing characters only. Others come from a paste gone wrong and cannot be typed again.
        if any(unicodedata.category(character) == "Cc" for character in password):
            yield "PASSWORD_UNPRINTABLE", "must not contain control characters such as line breaks"
        if self.rule == "classes":
            yield from _missing_classes(password)

    def _guesses(self, password: str, profile: Profile | None) -> Iterator[tuple[str, str]]:
        folded, context = password.casefold(), _context(profile)
        if _is_common(folded):
            yield "PASSWORD_COMMON", "is among the passwords that are tried first; choose another one"
        # The other rule's short passwords would have nothing left.
        elif self.rule == "length" and len(_without(context, folded)) < _OWN_CHARACTERS:
            yield "PASSWORD_CONTEXT", "is little more than the name of the account or of this service"
        # As many guesses as zxcvbn gives to random characters of the shortest length, ten for each.
        elif said := advice(password, context, guesses=min(10**self._shortest, _MOST_GUESSES_NEEDED)):
            yield "PASSWORD_GUESSABLE", f"takes too few guesses. {said}"


def _missing_classes(password: str) -> Iterator[tuple[str, str]]:
    if not any(character.islower() for character in password):
        yield "PASSWORD_NEEDS_LOWER_CASE", "must contain a lower-case letter"
    if not any(character.isupper() for character in password):
        yield "PASSWORD_NEEDS_UPPER_CASE", "must contain an upper-case letter"
    if not any(character.isdecimal() for character in password):
        yield "PASSWORD_NEEDS_DIGIT", "must contain a digit"
    # Punctuation, symbols and spaces; marks belong to their letters.
    if not any(unicodedata.category(character)[0] in "PSZ" for character in password):
        yield "PASSWORD_NEEDS_SYMBOL", "must contain a character that is neither a letter nor a digit"


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


def _context(profile: Profile | None) -> set[str]:
    if profile is None:
        return {_SERVICE}
    local, _, domain = profile.email.casefold().rpartition("@")
    words = {_SERVICE, local, *local.replace("_", ".").replace("+", ".").split("."), *domain.split(".")}
    words |= {name.casefold() for name in (profile.username or "", profile.first_name, profile.last_name)}
    return {word for word in words if len(word) >= _SHORTEST_WORD}


@cache
def _common() -> frozenset[str]:
    text = resources.files(__package__).joinpath("common_passwords.txt").read_text(encoding="ascii")
    return frozenset(line for line in text.splitlines() if not line.startswith("# "))
