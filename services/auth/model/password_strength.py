"""Estimates how many guesses a password takes (zxcvbn), and advises about weak ones.

zxcvbn knows English words, names, common passwords, dates, sequences, repeats and English keyboards. Patterns that it misses are
rewritten into forms that it knows; the form with the fewest guesses counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from zxcvbn_rs_py import zxcvbn

_SEEN = 32
"""Characters that are estimated. The cost of an estimate grows faster than the text, and 32 characters suffice to decide."""

_LONG_RUN = re.compile(r"(.)\1{3,}", re.DOTALL)
_RUN = re.compile(r"(.)\1+", re.DOTALL)

# zxcvbn tries all readings of these together with digits: twenty kinds in 72 characters took it 320 ms, six take 1 ms.
_SUBSTITUTES = "@({[<!|$+%"
_MOST_KINDS = 6

_KEYBOARDS = tuple(
    str.maketrans(typed + typed.upper(), meant + meant.upper())
    for typed, meant in (
        ("yz", "zy"),  # QWERTZ
        ("azqwm", "qwaz;"),  # AZERTY
        ("йцукенгшщзхъфывапролджэячсмитьбю", "qwertyuiop[]asdfghjkl;'zxcvbnm,."),
    )
)
_ADVICE = "Add another word or two. Uncommon words are better."


def advice(password: str, words: Iterable[str], *, guesses: int) -> str | None:
    """Advice about a password that takes fewer than the needed guesses, else None. `words` are tried first."""
    known = sorted(words)
    for form in _forms(_LONG_RUN.sub(r"\1\1\1", password)[:_SEEN]):
        estimate = zxcvbn(_with_few_substitutes(form), known)
        if estimate.guesses < guesses:
            feedback = estimate.feedback
            if feedback is None:
                return _ADVICE
            said = [feedback.warning] if feedback.warning else []
            return " ".join(map(str, [*said, *feedback.suggestions])) or _ADVICE
    return None


def _forms(text: str) -> Iterator[str]:
    yield text
    further = {
        # aabbccdd is abcd.
        _RUN.sub(r"\1", text),
        # 1a2b3c4d is 1234 and abcd; w-o-r-d is word.
        text[::2] + text[1::2],
        *(text.translate(keyboard) for keyboard in _KEYBOARDS),
    }
    yield from sorted(further - {text})


def _with_few_substitutes(text: str) -> str:
    """Keeps so many kinds of digits and of substitutes; replacing the others by a mark makes few passwords easier to guess."""
    kinds = list(dict.fromkeys(each for each in text if each in _SUBSTITUTES))
    digits = len({each for each in text if each.isdecimal()})
    return text.translate({ord(each): "~" for each in kinds[max(0, _MOST_KINDS - digits) :]})
