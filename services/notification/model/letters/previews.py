"""Previews of all letters, as files: each part of each kind in each language, the whole mail, and a page that shows them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from .. import Letter
from ..rendering import Sender, render
from .samples import NOW, TIME_ZONE, samples
from .writing import Letters, languages, page

PAGE = "index.html"
_READER = "ada@example.com"
_EVENT = UUID(int=1)


@dataclass(frozen=True, slots=True)
class Preview:
    """One letter, as the page shows it."""

    name: str
    file: str
    """The name of its files without their endings."""
    letter: Letter
    short: str
    """What the application shows in its place."""


def previews(letters: Letters, sender: Sender, *, kind: str = "", language: str = "") -> dict[str, bytes]:
    """Files by name, the page among them, of all letters or those of one kind or language."""
    shown: list[Preview] = []
    files: dict[str, bytes] = {}
    for each, name, facts, unsubscribe_url in samples():
        if kind and each != kind:
            continue
        for tongue in [language] if language else languages():
            letter = letters.write(
                each, facts, now=NOW, language=tongue, time_zone=TIME_ZONE, unsubscribe_url=unsubscribe_url
            )
            short = letters.short(each, facts, now=NOW, language=tongue, time_zone=TIME_ZONE).body
            file = f"{name}.{tongue}"
            shown.append(Preview(name, file, letter, short))
            files[f"{file}.html"] = letter.html.encode()
            files[f"{file}.txt"] = letter.body.encode()
            files[f"{file}.eml"] = render(
                letter, sender, _READER, event_id=_EVENT, sent_at=NOW, trace_id="", unsubscribe_url=unsubscribe_url
            )
    return {PAGE: _page(shown)} | files


def _page(shown: Sequence[Preview]) -> bytes:
    return page("previews.html.jinja", previews=shown).encode()
