"""The password policy.

The rule `length` follows NIST SP 800-63B-4, 3.1.1.2: long enough and hard to guess, without rules about characters. The rule
`classes` is for operators who are bound to a composition rule: shorter, but of four kinds of characters. Both refuse passwords of
the blocklist and passwords that take too few guesses.
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
"""Characters that must remain of a password without the words that an attacker tries first."""

_MOST_GUESSES_NEEDED = 10**10
"""The highest score that zxcvbn gives; takes a thief of the hashes hours at 10^6 guesses a second."""

_SHORTEST_WORD = 4
_SERVICE = "storymesh"


def normalized(password: str) -> str:
    """NFC, as RFC 8265 requires, so that different keyboards produce the same password. Nothing is trimmed."""
    return unicodedata.normalize("NFC", password)


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    min_length: int
    """The shortest password in characters under the rule `length`; the rule `classes` has its own."""

    rule: PasswordRule = "length"

    def check(self, password: str, profile: Profile | None, *, field: str = "password") -> None:
        """Check a normalized password. Raises InvalidArgument on `field`.

        Without a profile, because the owner is not known yet, the words of the account are not looked for.
        """
        violations = [
            Violation(field, description, reason) for reason, description in self._problems(password, profile)
        ]
        if violations:
            raise InvalidArgument(violations)

    def _problems(self, password: str, profile: Profile | None) -> list[tuple[str, str]]:
        # Too long a text is examined no further. Faults of form are reported first, guessability after them.
        if len(password.encode()) > _MAX_BYTES:
            return [("PASSWORD_TOO_LONG", f"must be at most {_MAX_BYTES} bytes long")]
        return list(self._faults_of_form(password)) or list(self._guesses(password, profile))

    @property
    def _shortest(self) -> int:
        return _CLASSES_MIN_LENGTH if self.rule == "classes" else self.min_length

    def _faults_of_form(self, password: str) -> Iterator[tuple[str, str]]:
        if len(password) < self._shortest:
            yield "PASSWORD_TOO_SHORT", f"must be at least {self._shortest} characters long"
        # NIST and ASVS require printing characters only. Others come from a broken paste and cannot be typed again.
        if any(unicodedata.category(character) == "Cc" for character in password):
            yield "PASSWORD_UNPRINTABLE", "must not contain control characters such as line breaks"
        if self.rule == "classes":
            yield from _missing_classes(password)

    def _guesses(self, password: str, profile: Profile | None) -> Iterator[tuple[str, str]]:
        folded, context = password.casefold(), _context(profile)
        if _is_common(folded):
            yield "PASSWORD_COMMON", "is among the passwords that are tried first; choose another one"
        # The short passwords of the rule `classes` would have nothing left.
        elif self.rule == "length" and len(_without(context, folded)) < _OWN_CHARACTERS:
            yield "PASSWORD_CONTEXT", "is little more than the name of the account or of this service"
        # The guesses that zxcvbn gives to random characters of the shortest length: ten for each.
        elif said := advice(password, context, guesses=min(10**self._shortest, _MOST_GUESSES_NEEDED)):
            yield "PASSWORD_GUESSABLE", f"takes too few guesses. {said}"


def _missing_classes(password: str) -> Iterator[tuple[str, str]]:
    if not any(character.islower() for character in password):
        yield "PASSWORD_NEEDS_LOWER_CASE", "must contain a lower-case letter"
    if not any(character.isupper() for character in password):
        yield "PASSWORD_NEEDS_UPPER_CASE", "must contain an upper-case letter"
    if not any(character.isdecimal() for character in password):
        yield "PASSWORD_NEEDS_DIGIT", "must contain a digit"
    # Punctuation, symbols and spaces. Combining marks belong to their letters.
    if not any(unicodedata.category(character)[0] in "PSZ" for character in password):
        yield "PASSWORD_NEEDS_SYMBOL", "must contain a character that is neither a letter nor a digit"


def _is_common(folded: str) -> bool:
    """Whether the blocklist has the password, also when it is repeated or has digits and punctuation added at its ends."""
    unit = _unit(folded)
    core = _trimmed(folded)
    return len(unit) < _OWN_CHARACTERS or not {folded, unit, core, _unit(core)}.isdisjoint(_common())


def _unit(text: str) -> str:
    """The shortest prefix whose repetition, perhaps cut off, is the text (failure function of Knuth-Morris-Pratt)."""
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
