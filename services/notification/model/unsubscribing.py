"""The links by which mails let people unsubscribe with one click (RFC 8058), and the pages behind them. Pure.

A link names the person by their id, which is random, and the kind of mail. It does not end: a mail may be read years later, and all
that it can do is to stop mails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from uuid import UUID

from kit.identity.signing import Signer
from mesh import pages

_PATH = "/v1/unsubscribe/"
_SCOPE = "unsubscribe"


@dataclass(frozen=True, slots=True)
class Subscription:
    """The mails that a link stops."""

    user_id: UUID
    kind: str


class UnsubscribeLinks:
    """Signs links by the first key, and opens those of all keys."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._signers = [Signer(key) for key in keys]

    def path(self, subscription: Subscription) -> str:
        """The link below the public URL."""
        token = self._signers[0].sign(_SCOPE, f"{subscription.user_id}/{subscription.kind}")
        return f"{_PATH}{token}"

    def open(self, token: str) -> Subscription | None:
        """What the link stops; None if none of the keys has signed it."""
        for signer in self._signers:
            if opened := signer.open(_SCOPE, token):
                user_id, _, kind = opened.partition("/")
                return Subscription(UUID(user_id), kind)
        return None


@dataclass(frozen=True, slots=True)
class _Words:
    title: str
    question: str
    button: str
    done: str
    done_text: str


_WORDS: Mapping[str, _Words] = {
    "en": _Words(
        "Unsubscribe",
        "You will get no more mails of this kind. Notices about the security of your account are not among them.",
        "Unsubscribe",
        "You are unsubscribed",
        "You will get no more mails of this kind. You can have them again at any time in your notification preferences.",
    ),
    "de": _Words(
        "Abbestellen",
        "Du bekommst dann keine E-Mails dieser Art mehr. Hinweise zur Sicherheit deines Kontos gehören nicht dazu.",
        "Abbestellen",
        "Abbestellt",
        "Du bekommst keine E-Mails dieser Art mehr. In deinen Einstellungen für Benachrichtigungen kannst du sie jederzeit wieder "
        "einschalten.",
    ),
}


def question_page(language: str) -> str:
    """The page with the button. It changes nothing by itself, because programs that check links open it too."""
    words = _words(language)
    # Without an action, a form posts to the address of its page.
    form = f'<form method="post"><button>{escape(words.button)}</button></form>'
    return _page(words.title, f"<p>{escape(words.question)}</p>\n{form}", language)


def done_page(language: str) -> str:
    words = _words(language)
    return _page(words.done, f"<p>{escape(words.done_text)}</p>", language)


def _words(language: str) -> _Words:
    return _WORDS.get(language, _WORDS["en"])


def _page(title: str, body: str, language: str) -> str:
    found = language if language in _WORDS else "en"
    return pages.document(title, f"<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>", language=found)
