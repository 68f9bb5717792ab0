"""The words of the notifications inside the application, which are short: the whole letter is in the mail.

They are written without asking auth, so they hold no name of the person. A kind without words here is told by mail alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import Kind
from .notifications import ShortText
from .words import TITLE_LENGTH, plain

Facts = Mapping[str, Any]
"""The fields of the event by name."""

_FAILURES = {
    "LANGUAGE_UNSUPPORTED": "The writer does not know the language you asked for. English always works.",
    "CONTENT_REFUSED": "The writer declined the subject. Another theme may work.",
    "WRITER_MISCONFIGURED": "The writer is not set up properly. An administrator has to act first.",
}
_FAILURE = "The writer could not be reached, or did not finish. Asking again may work."


def short_text(kind: Kind, facts: Facts) -> ShortText:
    """Raises KeyError for a kind that has no words here."""
    return _TEXTS[kind](facts)


def _plain(title: str, body: str) -> Callable[[Facts], ShortText]:
    return lambda _: ShortText(title, body)


def _password_changed(facts: Facts) -> ShortText:
    if facts["reset"]:
        return ShortText(
            "Your Storymesh password was reset",
            "Every device is signed out. If it was not you, reset the password again now.",
        )
    return ShortText(
        "Your Storymesh password was changed",
        "Every other device is signed out. If it was not you, reset the password now.",
    )


def _story_ready(facts: Facts) -> ShortText:
    return ShortText(f"Your story is ready: {plain(facts['title'], TITLE_LENGTH)}", "It has been written for you.")


def _story_failed(facts: Facts) -> ShortText:
    return ShortText("Your story could not be written", _FAILURES.get(facts["reason"], _FAILURE))


_TEXTS: Mapping[Kind, Callable[[Facts], ShortText]] = {
    Kind.WELCOME: _plain("Welcome to Storymesh", "Your account is ready. Ask for a story and watch it being written."),
    Kind.PASSWORD_CHANGED: _password_changed,
    Kind.PASSWORD_DISABLED: _plain(
        "Your Storymesh password is disabled",
        "A wrong one was tried very often. Sign in with a mailed code, or reset the password.",
    ),
    Kind.SESSION_REVOKED: _plain(
        "A device was signed out of Storymesh",
        "A sign-in of it was used a second time, so it may have been copied. Sign in there again.",
    ),
    Kind.EMAIL_CHANGED: _plain(
        "Your Storymesh address was changed",
        "Mail about your account goes to another address now. If it was not you, change the password.",
    ),
    Kind.STORY_READY: _story_ready,
    Kind.STORY_FAILED: _story_failed,
}
