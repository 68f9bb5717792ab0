"""Avatars: files of the file service, of which a profile names one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

LIFE = timedelta(minutes=10)
"""How long a signed URL works: as long as somebody who may not see the avatar any more can still fetch it."""

SIZE = 512
"""The longest side of the image, in pixels, where nobody asks for another."""


@dataclass(frozen=True, slots=True)
class AvatarChange:
    """Another avatar, or none."""

    file_id: UUID | None


@dataclass(frozen=True, slots=True)
class SignedAvatar:
    """A URL at which anybody who has it fetches the image until it expires."""

    url: str
    expires_at: datetime

    def is_fresh(self, now: datetime) -> bool:
        """Whether it works for long enough to be handed out once more."""
        return self.expires_at - now > LIFE / 2


def holder_of(user_id: UUID, showing_id: UUID) -> str:
    """The name under which this service claims a file as the person's avatar.

    It is another one each time that a file becomes the avatar: the end of a former claim may be worked on late, and must not end
    the claim of a file that has become the avatar again.
    """
    return f"social:avatar:{user_id}:{showing_id}"
