"""Profiles, who sees what of them, and whom people block and mute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from kit.identity.display_text import visible

from .avatars import AvatarChange
from .texts import paragraphs


class State(StrEnum):
    """What has become of a profile."""

    ACTIVE = "ACTIVE"
    ERASING = "ERASING"
    """Its owner or their account was deleted. Nobody sees it, and what belongs to it is being erased."""
    DELETED = "DELETED"
    """Everything is erased but the fact that there was one: only its owner's act makes another."""


class MessagePolicy(StrEnum):
    """Who may begin a conversation with a person."""

    EVERYONE = "EVERYONE"
    NOBODY = "NOBODY"


class Stance(StrEnum):
    """What a person may decide about another one."""

    BLOCK = "BLOCK"
    MUTE = "MUTE"


class Sight(StrEnum):
    """How much of a profile a viewer sees. One who sees nothing cannot tell it from absence."""

    NOTHING = "NOTHING"
    CARD = "CARD"
    WHOLE = "WHOLE"


@dataclass(frozen=True, slots=True)
class Profile:
    user_id: UUID
    state: State
    handle: str
    """Empty unless the profile is active."""
    display_name: str
    bio: str
    private: bool
    message_policy: MessagePolicy
    created_at: datetime
    avatar_file_id: UUID | None = None
    avatar_showing_id: UUID | None = None
    """A part of the name of the avatar's claim."""


@dataclass(frozen=True, slots=True)
class ProfileChange:
    """New values; None leaves a field as it is."""

    handle: str | None = None
    display_name: str | None = None
    bio: str | None = None
    private: bool | None = None
    message_policy: MessagePolicy | None = None
    avatar: AvatarChange | None = None

    def of(self, profile: Profile, showing_id: UUID) -> Profile:
        """The profile after the change, its texts without what nobody sees but programs heed.

        `showing_id` is for an avatar that the profile does not show yet.
        """
        if self.avatar and self.avatar.file_id != profile.avatar_file_id:
            file_id = self.avatar.file_id
            profile = replace(profile, avatar_file_id=file_id, avatar_showing_id=showing_id if file_id else None)
        return replace(
            profile,
            handle=profile.handle if self.handle is None else self.handle,
            display_name=profile.display_name if self.display_name is None else visible(self.display_name),
            bio=profile.bio if self.bio is None else paragraphs(self.bio),
            private=profile.private if self.private is None else self.private,
            message_policy=self.message_policy or profile.message_policy,
        )


@dataclass(frozen=True, slots=True)
class Relationship:
    """What a viewer has decided about a person."""

    blocking: bool = False
    muting: bool = False


@dataclass(frozen=True, slots=True)
class SeenProfile:
    """A profile as a viewer sees it: whole, or a card without bio and time."""

    profile: Profile
    sight: Sight
    relationship: Relationship


@dataclass(frozen=True, slots=True)
class ListedProfile:
    """A profile in a list of stances."""

    id: UUID
    """The stance's, by which the list is ordered."""
    seen: SeenProfile


def sight(viewer_id: UUID | None, profile: Profile | None, *, blocked: bool, blocking: bool) -> Sight:
    """How much the viewer sees of the profile. `store.visibility` says the same in SQL.

    `blocked`: whether its owner blocks the viewer; `blocking`: whether the viewer blocks its owner. None for a viewer stands for
    another service, which asks for nobody.
    """
    if profile is None or profile.state is not State.ACTIVE or blocked:
        return Sight.NOTHING
    if viewer_id is None or viewer_id == profile.user_id:
        return Sight.WHOLE
    return Sight.CARD if blocking or profile.private else Sight.WHOLE


def may_contact(sender: SeenProfile | None, recipient: SeenProfile | None) -> bool:
    """Whether the sender may begin a conversation. Both as the sender sees them: None for who is not there or blocks the sender."""
    return (
        sender is not None
        and recipient is not None
        and sender.profile.user_id != recipient.profile.user_id
        and not recipient.relationship.blocking
        and recipient.profile.message_policy is MessagePolicy.EVERYONE
    )
