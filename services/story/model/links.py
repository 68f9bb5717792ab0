"""Links that show one story to whoever has them: their tokens, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from kit.identity.signing import Signer

LIFE = timedelta(days=30)
"""How long a link works from when it was made, or asked for again by its owner."""

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


class LinkPaths:
    """Turns links into paths of pages, and the tokens in these back into links' ids."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def path(self, link: Link) -> str:
        return _PATH + self._signer.sign_id(_SCOPE, link.id)

    def link_id(self, token: str) -> UUID | None:
        """The id of the link with this token; None if the token was not signed with the key."""
        return self._signer.open_id(_SCOPE, token)
