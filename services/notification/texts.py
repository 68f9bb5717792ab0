"""The words of every mail and notification. Names and titles come from people and models: they are text, never markup."""

from __future__ import annotations

import unicodedata

from .model import Letter

_FAILURES = {
    "LANGUAGE_UNSUPPORTED": "The writer does not know the language you asked for. English always works.",
    "CONTENT_REFUSED": "The writer declined the subject. Another theme may work.",
}
_FAILURE = "The writer could not be reached, or did not finish. Asking again may work."


def code(first_name: str, digits: str, minutes: int) -> Letter:
    return _letter(
        "Your Storymesh code",
        first_name,
        f"Your code is {digits}.",
        f"It works once, for the next {minutes} minutes. If you did not ask for it, ignore this mail: nothing happens without it.",
    )


def registration_repeated(first_name: str) -> Letter:
    return _letter(
        "You already have a Storymesh account",
        first_name,
        "Somebody, perhaps you, tried to register with this address, which has an account already. Nothing was changed.",
        "If it was you, sign in with your password instead.",
    )


def welcome(first_name: str) -> Letter:
    return _letter(
        "Welcome to Storymesh",
        first_name,
        "Your account is ready.",
        "Ask for a story and watch it being written; a mail tells you when it is done.",
    )


def story_ready(first_name: str, title: str, url: str) -> Letter:
    return _letter(
        f"Your story is ready: {title}",
        first_name,
        f'"{title}" has been written for you.',
        f"Read it at {url}",
    )


def story_failed(first_name: str, reason: str) -> Letter:
    return _letter(
        "Your story could not be written",
        first_name,
        _FAILURES.get(reason, _FAILURE),
        f"The reason's name is {reason}.",
    )


def _letter(subject: str, first_name: str, *paragraphs: str) -> Letter:
    greeting = f"Hello {first_name}," if first_name else "Hello,"
    lines = [_line(text) for text in (greeting, *paragraphs, "Storymesh")]
    return Letter(_line(subject), "\n\n".join(lines) + "\n")


def _line(text: str) -> str:
    """One line without control characters: a header holds no more (RFC 5322, 2.2), and no name may add paragraphs of its own."""
    return " ".join("".join(" " if unicodedata.category(each) == "Cc" else each for each in text).split())
