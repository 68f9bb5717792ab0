"""Links that show one story to whoever has them: their tokens, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from kit.identity.signing import Signer

LIFE = timedelta(days=30)
"""How long a link works from when it was made, or asked for again by its owner."""

OPENING_LENGTH = 300
_PATH = "/s/"
_SCOPE = "story-link"


@dataclass(frozen=True, slots=True)
class Link:
    """A story's link. Its token is not stored: the link's id and the key give it, so a copy of the database opens no story."""

    id: UUID
    """UUIDv7; another one for each link of a story."""
    story_id: UUID
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class SharedStory:
    """A finished story as a link shows it."""

    title: str
    text: str
    language: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Teaser:
    """What a mail shows of a finished story. No link if the owner has taken it back."""

    title: str
    opening: str
    language: str
    link: Link | None


class LinkPaths:
    """Turns links into paths of pages, and the tokens in these back into links' ids."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def path(self, link: Link) -> str:
        return _PATH + self._signer.sign_id(_SCOPE, link.id)

    def link_id(self, token: str) -> UUID | None:
        """The id of the link with this token; None if the token was not signed with the key."""
        return self._signer.open_id(_SCOPE, token)


def opening_of(text: str) -> str:
    """The beginning of a story on one line, cut at a word's end, with an ellipsis where it was cut."""
    line = " ".join(text.split())
    if len(line) <= OPENING_LENGTH:
        return line
    head = line[:OPENING_LENGTH]
    whole_words = head[: head.rfind(" ")] if " " in head else head[: OPENING_LENGTH - 1]
    return whole_words.rstrip(" .,;:-") + "…"
